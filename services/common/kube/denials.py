"""What the API server forbids a role to read: as text with the way out, and as one state for ``/readyz``.

A role without a permission does not end. It retries, because an administrator may grant the permission at any time.
Not the refusal of a write, which is an outcome of the reconcile that sent it.
Next: :mod:`services.common.kube.cache.reflector`, which reports what it may not list or watch.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.common.kube.errors import Forbidden, KubeconfigError, KubeError
from services.common.telemetry.logs import Log

T = TypeVar("T")

RETRY_INTERVAL = 1.0
"""Seconds between two attempts at a request of the start."""
_MESSAGE = re.compile(
    r'User "(?P<user>[^"]+)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)"'
    r'(?: in API group "(?P<group>[^"]*)")?(?: in the namespace "(?P<namespace>[^"]+)"| at the cluster scope)?'
    r"(?::? *(?P<more>.+))?"
)
_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):(.+)")


class Denials:
    """What is forbidden to a role at present.

    :param on_change: called after each change: whether nothing is forbidden, and otherwise a text for users.
    """

    def __init__(self, on_change: Callable[[bool, str], None] = lambda _ok, _why: None) -> None:
        self._on_change = on_change
        self._found: dict[object, str] = {}

    def set(self, source: object, why: str) -> None:
        """Set what is forbidden to one source of requests; an empty text when it is allowed."""
        if self._found.get(source, "") == why:
            return
        if why:
            self._found[source] = why
        else:
            del self._found[source]
        # Several watches of one resource may lack the same permission.
        self._on_change(not self._found, "; ".join(dict.fromkeys(self._found.values())))

    async def retry(self, call: Callable[[], Awaitable[T]], *, log: Log) -> T:
        """Send a request that the start of a role depends on, until it is answered.

        :raises KubeError: an error that another attempt cannot change.
        """
        while True:
            try:
                answer = await call()
            except KubeError as error:
                if not error.transient or isinstance(error, KubeconfigError):
                    raise
                forbidden, why = isinstance(error, Forbidden), describe_error(error)
                wait = max(RETRY_INTERVAL, error.retry_after or 0.0)
                event = "permission missing" if forbidden else "request of the start failed"
                log.warning(event, error=why, reason=error.reason, again_in=wait)
                self.set(call, why if forbidden else "")
                await asyncio.sleep(wait)
            else:
                self.set(call, "")
                return answer


def is_missing_permission(error: KubeError) -> bool:
    """Return whether an authorizer forbids the request to this process; ``False`` for the refusal of a webhook."""
    return isinstance(error, Forbidden) and _MESSAGE.search(error.message) is not None


def describe_error(error: KubeError) -> str:
    """Return the message of an error; for a missing permission with who lacks it and how to check it.

    The API server's words are those of ``apiserver/pkg/endpoints/handlers/responsewriters/errors.go``.
    """
    found = _MESSAGE.search(error.message)
    if not isinstance(error, Forbidden) or found is None:
        return error.message
    user, group, namespace = found["user"], found["group"], found["namespace"]
    name, _, subresource = found["resource"].partition("/")
    resource = f"{name}.{group}" if group else name
    account = _ACCOUNT.fullmatch(user)
    who = f"ServiceAccount {account[1]}/{account[2]}" if account else f'user "{user}"'
    where = f"namespace {namespace}" if namespace else "all namespaces"
    check = f"kubectl auth can-i {found['verb']} {resource} --as {user} {f'-n {namespace}' if namespace else '-A'}"
    if subresource:
        resource, check = f"{resource}/{subresource}", f"{check} --subresource={subresource}"
    more = f" ({found['more']})" if found["more"] else ""
    return (
        f"{who} may not {found['verb']} {resource} in {where}{more}; bind a role that allows it, as the chart does "
        f"(check: {check})"
    )
