"""Answer NATS' auth callout: request → token claims → review → identity → user with permissions, or a refusal.

Everything has a limit: the size of a request, the requests that wait, those of one client address, and the time. NATS
refuses a connection by itself when no answer comes. Each refusal is logged and counted.
Next: :mod:`services.api.bus_auth.serving`, the connection to NATS.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from opentelemetry.metrics import Meter

from schemas.bus.permissions import account_of, role_permissions
from schemas.inputs import RejectedInput, printable
from services.api.bus_auth.plan import (
    BusAccounts,
    DenialReason,
    Denied,
    NatsIdentity,
    check_claims,
    expiry,
)
from services.api.bus_auth.review import TokenReviewer
from services.api.bus_auth.tokens import CalloutRequest, decode_request, grant, read_token, refuse
from services.common.bus.nkeys import KeyKind, SigningKey
from services.common.telemetry.logs import Log
from services.common.telemetry.stores import STORES

MAX_WAITING: Final = 512
"""Requests at once, those that wait for a review included; beyond it each is refused, and its client tries again."""
MAX_WAITING_OF_HOST: Final = 64
"""Requests of one client address at once, so that one client cannot take the place of all others."""
MAX_PATIENCE: Final = 5.0
"""Seconds for a review at most; a server may wait longer."""
MARGIN: Final = 0.5
"""Seconds of the server's patience that are left for the way of the response."""
MAX_LOGGED: Final = 100
"""Refusals that are logged in :data:`LOGGING_PERIOD`. The metric counts all, and the next line says how many."""
LOGGING_PERIOD: Final = 10.0
NOBODY = ""


class IssuerKeys:
    """The keys that sign responses: every file ``issuer*.nk`` of a directory, read for each response.

    There may be two while the key is replaced: the server names the one that it expects.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, public: str) -> SigningKey | None:
        """Return the key with a public key; ``None`` if there is none."""
        for path in sorted(self._directory.glob("issuer*.nk")):
            try:
                key = SigningKey(path.read_text())
            except (OSError, ValueError):
                continue
            if key.kind is KeyKind.ACCOUNT and key.public == public:
                return key
        return None


class AuthCallout:
    """Answers the requests of NATS servers."""

    def __init__(
        self,
        reviewer: TokenReviewer,
        accounts: BusAccounts,
        keys: IssuerKeys,
        *,
        log: Log,
        meter: Meter,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reviewer = reviewer
        self._accounts = accounts
        self._keys = keys
        self._log = log
        self._clock = clock
        self._hosts: Counter[str] = Counter()
        self._waiting = 0
        self._period, self._logged = float("-inf"), 0
        self._answers = meter.create_counter(
            "hotnic_bus_auth_answers", description="Connections to NATS that were let in or refused"
        )
        STORES.watch("bus-auth-requests", self, lambda callout: callout._waiting, MAX_WAITING)

    async def answer(self, data: bytes) -> bytes | None:
        """Return the response to a request; ``None`` if it must not or cannot have one."""
        try:
            request = decode_request(data)
        except RejectedInput as error:
            self._record(NOBODY, DenialReason.MALFORMED_REQUEST, str(error), host="")
            return None
        key = self._keys.find(request.issuer)
        if key is None:
            text = f"no issuer*.nk has the key {request.issuer} that the server expects"
            self._record(NOBODY, DenialReason.UNKNOWN_ISSUER, text, host=request.host)
            return None
        subject = NOBODY
        try:
            with self._place(request.host):
                if not request.token:
                    raise Denied(DenialReason.NO_TOKEN, "the client has presented no token")
                try:
                    claims = read_token(request.token)
                except RejectedInput as error:
                    raise Denied(DenialReason.MALFORMED_TOKEN, f"not a ServiceAccount token: {error}") from error
                subject = claims.subject
                check_claims(claims, self._accounts, self._now())
                patience = min(MAX_PATIENCE, max(MARGIN, request.patience - MARGIN))
                identity = await self._reviewer.identify(request.token, patience, request.host)
            return self._let_in(request, key, identity, expiry(claims, self._now()))
        except Denied as denied:
            return self._refuse(request, key, denied, subject)
        except Exception as error:
            self._log.exception("auth callout failed", client=request.host)
            defect = Denied(DenialReason.INTERNAL_ERROR, f"a defect of hotnic: {type(error).__name__}")
            return self._refuse(request, key, defect, subject)

    def _let_in(self, request: CalloutRequest, key: SigningKey, identity: NatsIdentity, expires: int) -> bytes:
        self._answers.add(1, {"role": str(identity.role), "result": "Accepted"})
        self._log.info("bus identity given", identity=str(identity), pod=identity.pod, client=request.host)
        return grant(
            request,
            key,
            name=str(identity),
            account=account_of(identity.role),
            permissions=role_permissions(identity.role, identity.node),
            expires=expires,
            now=self._now(),
        )

    def _refuse(self, request: CalloutRequest, key: SigningKey, denied: Denied, subject: str) -> bytes:
        self._record(subject, denied.reason, str(denied), host=request.host)
        return refuse(request, key, why=f"{denied.reason}: {denied}", now=self._now())

    def _record(self, subject: str, reason: DenialReason, text: str, *, host: str) -> None:
        # The subject is only what the token claims: its role counts as known only once it is let in.
        self._answers.add(1, {"role": "", "result": str(reason)})
        now = asyncio.get_running_loop().time()
        if now >= self._period + LOGGING_PERIOD:
            if self._logged > MAX_LOGGED:
                self._log.warning("bus identities refused, not logged", refusals=self._logged - MAX_LOGGED)
            self._period, self._logged = now, 0
        self._logged += 1
        if self._logged <= MAX_LOGGED:
            self._log.warning(
                "bus identity refused", claimed=printable(subject), reason=str(reason), error=text, client=host
            )

    @contextmanager
    def _place(self, host: str) -> Iterator[None]:
        if self._waiting >= MAX_WAITING or self._hosts[host] >= MAX_WAITING_OF_HOST:
            raise Denied(DenialReason.OVERLOADED, "too many connections wait for a review")
        self._waiting += 1
        self._hosts[host] += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]

    def _now(self) -> int:
        return int(self._clock())
