"""Leader election on a Lease: one of several replicas leads, and another takes over when it is gone.

It follows client-go. A lease is free once it has not changed for its duration, by the replica's own clock, so clocks
need not agree. Every write is bound to the resource version that was read. A leader that cannot renew stops before the
others may start. A replica that restarts under its own identity (a container restarted in its pod) continues at once,
and so does one that stopped for longer than its deadline (a frozen process) if nobody has led since; if two replicas
share an identity, the later one leads.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from schemas.kubernetes.objects import LEASES, Lease, LeaseSpec, Resource
from services.common.kube.denials import describe_error
from services.common.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from services.common.telemetry.logs import Log


class LeaseTiming(msgspec.Struct, frozen=True):
    """Durations of leader election, in seconds. Duration and deadline are the defaults of Kubernetes' own controllers.

    :ivar duration: how long the others wait for a leader that does not renew.
    :ivar deadline: how long a leader that cannot renew continues; less than ``duration``.
    :ivar renew: between two renewals.
    :ivar retry: between two attempts to acquire the lease.
    :ivar release: for releasing the lease at the end.
    """

    duration: float = 15.0
    deadline: float = 10.0
    renew: float = 4.0
    retry: float = 1.0
    release: float = 1.0


class LeaseClient(Protocol):
    """The part of :class:`services.common.kube.client.Kube` that is used."""

    async def get(self, resource: Resource[Lease], namespace: str | None, name: str) -> Lease:
        """Read a Lease."""
        ...

    async def create(self, resource: Resource[Lease], namespace: str | None, body: Mapping[str, Any]) -> Lease:
        """Create a Lease."""
        ...

    async def merge_patch(
        self, resource: Resource[Lease], namespace: str | None, name: str, body: Mapping[str, Any]
    ) -> Lease:
        """Patch a Lease."""
        ...


class Leader:
    """One replica's participation in an election.

    :param namespace: namespace of the Lease.
    :param name: name of the Lease.
    :param identity: holder identity of this replica.
    :param on_state: called with whether the Lease can be read and written, and otherwise the reason.
    :ivar leading: whether this replica leads.
    """

    def __init__(
        self,
        kube: LeaseClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        log: Log,
        on_state: Callable[[bool, str], None] = lambda _ok, _why: None,
        timing: LeaseTiming | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._log = log.bind(lease=f"{namespace}/{name}", identity=identity)
        self._on_state = on_state
        self._timing = timing or LeaseTiming()
        self._rng = rng or random.Random()
        self._held: Lease | None = None
        self._observed: tuple[str, float] = ("", 0.0)
        self._logged_holder = ""
        self._last_term: LeaseSpec | None = None
        self.leading = False

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run ``lead`` while this replica leads, until cancelled.

        ``lead`` is cancelled when the lease is lost. The lease is released when ``lead`` raises, which is raised again,
        and when this call is cancelled.
        """
        while True:
            await self._acquire()
            self._log.info("leadership acquired")
            self.leading = True
            work = asyncio.ensure_future(lead())
            try:
                await self._renew_until_lost(work)
            finally:
                self.leading = False
                work.cancel()
                await asyncio.wait({work})
                await self._release()
            self._log.warning("leadership lost")
            if not work.cancelled():
                work.result()

    async def _acquire(self) -> None:
        while True:
            if await self._try_acquire():
                return
            await asyncio.sleep(self._timing.retry * self._rng.uniform(0.8, 1.2))

    async def _try_acquire(self) -> bool:
        """Acquire the lease if it is free; return whether this replica holds it now."""
        loop = asyncio.get_running_loop()
        try:
            try:
                found = await self._kube.get(LEASES, self._namespace, self._name)
            except NotFound:
                self._held = await self._kube.create(LEASES, self._namespace, self._document(0))
            else:
                spec = found.spec
                if spec.holder_identity and not self._is_own(spec):
                    if self._observed[0] != found.metadata.resource_version:
                        # The duration starts when this replica observes a change, whatever the holder's clock says.
                        self._observed = (found.metadata.resource_version, loop.time())
                    if loop.time() - self._observed[1] < (spec.lease_duration_seconds or self._timing.duration):
                        self._on_state(True, "")
                        self._log_holder(spec.holder_identity)
                        return False
                self._held = await self._patch(found, self._spec((spec.lease_transitions or 0) + 1))
        except (AlreadyExists, Conflict):
            return False
        except KubeError as error:
            self._on_state(False, f"cannot acquire lease {self._namespace}/{self._name}: {describe_error(error)}")
            return False
        self._last_term = self._held.spec
        self._on_state(True, "")
        return True

    def _log_holder(self, holder: str) -> None:
        """Log who holds the lease, once for each holder."""
        if holder != self._logged_holder:
            self._logged_holder = holder
            self._log.info("leadership held by another replica", holder=holder)

    def _is_own(self, spec: LeaseSpec) -> bool:
        """Return whether a held lease is this replica's own, so that it need not wait for its end."""
        if self._last_term is not None:
            # Under our identity, but of another term: a replica with the same identity has taken it.
            return _same_term(spec, self._last_term)
        # From before a restart of this process.
        return spec.holder_identity == self._identity

    async def _renew_until_lost(self, work: "asyncio.Future[None]") -> None:
        """Renew the lease until the work has ended or the lease is lost."""
        loop = asyncio.get_running_loop()
        renewed, pause = loop.time(), self._timing.renew
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await asyncio.wait({work})
            if work.done():
                return
            try:
                async with asyncio.timeout_at(renewed + self._timing.deadline):
                    # Before the request: the others may have observed the renewal at any time since.
                    requested = loop.time()
                    held = await self._renew()
            except (KubeError, TimeoutError) as error:
                self._log.warning("lease renewal failed", error=str(error) or "no response in time")
                if loop.time() >= renewed + self._timing.deadline:
                    self._on_state(False, f"cannot renew lease {self._namespace}/{self._name}: {error}")
                    return
                pause = self._timing.retry
                continue
            if not held:
                self._held = None
                return
            renewed, pause = requested, self._timing.renew

    async def _renew(self) -> bool:
        """Renew the lease; return ``False`` if another replica holds it.

        :raises KubeError: the renewal failed, and this replica may still hold the lease.
        """
        held = self._held
        assert held is not None
        renewal = {"renewTime": _now(), "leaseDurationSeconds": round(self._timing.duration)}
        try:
            self._held = await self._patch(held, renewal)
        except NotFound:
            return False
        except Conflict:
            # The Lease has another version. Anyone may have edited it, so what counts is who holds it.
            found = await self._kube.get(LEASES, self._namespace, self._name)
            if not _same_term(found.spec, held.spec):
                return False
            self._held = await self._patch(found, renewal)
        return True

    async def _release(self) -> None:
        """Release the lease, so that another replica can lead at once. Best effort."""
        held, self._held = self._held, None
        if held is None:
            return
        with suppress(KubeError, TimeoutError):
            async with asyncio.timeout(self._timing.release):
                # As client-go's ReleaseOnCancel: a lease without a holder is free at once.
                await self._patch(held, {"holderIdentity": "", "renewTime": _now()})

    async def _patch(self, found: Lease, spec: Mapping[str, Any]) -> Lease:
        version = {"resourceVersion": found.metadata.resource_version}
        return await self._kube.merge_patch(LEASES, self._namespace, self._name, {"metadata": version, "spec": spec})

    def _document(self, transitions: int) -> dict[str, Any]:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec(transitions),
        }

    def _spec(self, transitions: int) -> dict[str, Any]:
        now = _now()
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._timing.duration),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }


def _same_term(one: LeaseSpec, other: LeaseSpec) -> bool:
    """Return whether both specs are the same term of the same holder."""
    return (one.holder_identity, one.acquire_time, one.lease_transitions) == (
        other.holder_identity,
        other.acquire_time,
        other.lease_transitions,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
