"""Ask the API server about tokens: TokenReview, and the node of a pod; a limited number at once, and not twice.

Next: :mod:`services.api.bus_auth.callout`, which answers NATS.
"""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final

import msgspec

from schemas.inputs import Edge, InputDecoder, RejectedInput
from schemas.kubernetes.objects import PODS, Pod
from services.api.bus_auth.plan import (
    BusAccounts,
    DenialReason,
    Denied,
    NatsIdentity,
    ReviewedToken,
    TokenHolder,
    find_holder,
    identify,
)
from services.common.kube.client import Kube
from services.common.kube.denials import describe_error
from services.common.kube.errors import KubeError, NotFound
from services.common.runtime.fair_queue import FairSlots
from services.common.telemetry.stores import Bounded

REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
MAX_REVIEWS: Final = 16
"""Reviews at once, shared fairly by client addresses: one that presents many tokens does not make the others wait.
After a restart of NATS every node connects; each review takes a few milliseconds."""
MAX_REVIEWED: Final = 2048
"""Remembered results: two for each of a thousand nodes."""
REMEMBERED: Final = 10.0
"""Seconds. The API server itself remembers a valid token for as long."""


class _User(msgspec.Struct, frozen=True):
    username: str = ""
    extra: dict[str, tuple[str, ...]] = {}


class _ReviewStatus(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _User = _User()
    audiences: tuple[str, ...] = ()
    error: str = ""


class _TokenReview(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


_review = InputDecoder(Edge.KUBE, _TokenReview)


class TokenReviewer:
    """Finds the identity of tokens.

    :param namespace: the namespace of the roles' pods.
    :param clock: seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        kube: Kube,
        accounts: BusAccounts,
        namespace: str,
        *,
        clock: Callable[[], float] | None = None,
        at_once: int = MAX_REVIEWS,
    ) -> None:
        self._kube = kube
        self._accounts = accounts
        self._namespace = namespace
        self._clock = clock or asyncio.get_running_loop().time
        self._slots = FairSlots(at_once)
        self._known: Bounded[bytes, tuple[float, NatsIdentity | Denied]] = Bounded("bus-auth-reviews", MAX_REVIEWED)

    async def identify(self, token: str, timeout: float, host: str) -> NatsIdentity:
        """Return the identity of a token's holder.

        :param timeout: seconds for everything, the wait for a slot included.
        :param host: address of the client.
        :raises Denied: it has none, or the API server has not said so in time.
        """
        # Not the token itself: whoever reads the memory of the process later gets none that is still valid.
        key = hashlib.sha256(token.encode(errors="replace")).digest()
        known = self._known.get(key)
        if known is None or known[0] <= self._clock():
            try:
                async with asyncio.timeout(timeout), self._slots.hold(host):
                    known = self._clock() + REMEMBERED, await self._review(token, timeout)
            except TimeoutError as error:
                raise Denied(DenialReason.REVIEW_TIMEOUT, f"no review of the token within {timeout:g} s") from error
            self._known[key] = known
        if isinstance(known[1], Denied):
            raise Denied(known[1].reason, str(known[1]))
        return known[1]

    async def _review(self, token: str, timeout: float) -> NatsIdentity | Denied:
        """Return what is true of a token for some time.

        :raises Denied: the API server does not answer, which may change at once.
        """
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._accounts.audience]},
        }
        try:
            response = await self._kube.request(
                "POST", REVIEWS, body=body, timeout=timeout, span="kube create tokenreviews"
            )
            holder = find_holder(decode_review(response.body), self._accounts)
            return identify(holder, await self._find_pod(holder) if holder.needs_pod else None)
        except Denied as denied:
            return denied
        except (KubeError, RejectedInput) as error:
            text = describe_error(error) if isinstance(error, KubeError) else str(error)
            raise Denied(DenialReason.REVIEW_FAILED, f"cannot review the token: {text}") from error

    async def _find_pod(self, holder: TokenHolder) -> Pod | None:
        try:
            return await self._kube.get(PODS, self._namespace, holder.pod)
        except NotFound:
            return None


def decode_review(data: bytes) -> ReviewedToken:
    """Return what a TokenReview says.

    :raises RejectedInput: it is none.
    """
    status = _review.decode(data).status
    return ReviewedToken(status.authenticated, status.user.username, status.audiences, status.user.extra, status.error)
