"""The api's own permissions: a missing one is no refusal of the user's request, and the answer says so.

An API server that has just started may forbid everything until its RBAC caches are filled, so a request is first tried
again for a short time. What a webhook refuses stays the answer to the user.
Next: :mod:`services.api.apply`.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from services.common.flowcontrol.backoff import jittered
from services.common.http.server import StatusError
from services.common.kube.denials import describe_error, is_missing_permission
from services.common.kube.errors import Forbidden

T = TypeVar("T")

WARM_UP = 3.0
"""Seconds that a request is tried again while the api lacks a permission."""
FIRST_BACKOFF, MAX_BACKOFF = 0.1, 0.5


class ApiPermissionMissing(Exception):
    """The API server forbids the api itself a call; the text names the ServiceAccount and the way out."""


@contextmanager
def own_reads() -> Iterator[None]:
    """Raise a forbidden read, or a forbidden review, as :class:`ApiPermissionMissing`: they use the api's account."""
    try:
        yield
    except Forbidden as error:
        raise ApiPermissionMissing(describe_error(error)) from error


@contextmanager
def own_write() -> Iterator[None]:
    """Raise a write that the api may not make as :class:`ApiPermissionMissing`; a webhook's refusal stays one."""
    try:
        yield
    except Forbidden as error:
        if not is_missing_permission(error):
            raise
        raise ApiPermissionMissing(describe_error(error)) from error


async def wait_permitted(call: Callable[[], Awaitable[T]], *, rng: random.Random | None = None) -> T:
    """Run a call, again for :data:`WARM_UP` while the api lacks a permission for it.

    :raises StatusError: 500; the api still lacks it.
    """
    loop, rng = asyncio.get_running_loop(), rng or random.Random()
    deadline, failures = loop.time() + WARM_UP, 0
    while True:
        try:
            return await call()
        except ApiPermissionMissing as error:
            failures += 1
            wait = jittered(failures, FIRST_BACKOFF, MAX_BACKOFF, rng)
            if loop.time() + wait > deadline:
                raise StatusError(500, None, f"hotnic's api lacks a permission: {error}") from error
            await asyncio.sleep(wait)
