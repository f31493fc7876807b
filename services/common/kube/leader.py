"""Leader election on a Lease: of several replicas one leads, and another takes over when it is gone.

As client-go does it: a lease that has not changed for its duration, by one's own clock, is free; every write is bound
to the version that was read. A leader that cannot renew stops before the others may start. A replica that comes back
under its own identity (a container restarted in its pod) goes on at once; of two that share one, the later one leads.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from schemas.kube import LEASES, Lease, LeaseSpec, Resource
from services.common.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from services.common.logs import Log


class Timing(msgspec.Struct, frozen=True):
    """Seconds. :ivar duration: how long others wait for a silent leader. :ivar deadline: how long one that cannot
    renew goes on leading; less than the duration. :ivar renew: between two renewals. :ivar retry: between two looks.
    """

    duration: float = 15.0
    deadline: float = 10.0
    renew: float = 4.0
    retry: float = 1.0
    release: float = 1.0


class Leases(Protocol):
    """What is needed of :class:`services.common.kube.client.Kube`."""

    async def get(self, resource: Resource[Lease], namespace: str | None, name: str) -> Lease:
        """Read one."""
        ...

    async def create(self, resource: Resource[Lease], namespace: str | None, body: Mapping[str, Any]) -> Lease:
        """Make one."""
        ...

    async def merge_patch(
        self, resource: Resource[Lease], namespace: str | None, name: str, body: Mapping[str, Any]
    ) -> Lease:
        """Change one."""
        ...


class Leader:
    """One replica's part.

    :param on_state: called when the lease can (not) be read and written, with why not.
    :ivar leading: whether this replica leads.
    """

    def __init__(
        self,
        kube: Leases,
        namespace: str,
        name: str,
        identity: str,
        *,
        log: Log,
        on_state: Callable[[bool, str], None] = lambda _ok, _why: None,
        timing: Timing | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._log = log.bind(lease=f"{namespace}/{name}", identity=identity)
        self._on_state = on_state
        self._timing = timing or Timing()
        self._rng = rng or random.Random()
        self._held: Lease | None = None
        self._seen: tuple[str, float] = ("", 0.0)
        self._started = False
        self.leading = False

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run ``lead`` whenever this replica leads, until cancelled; ``lead`` is cancelled when it no longer does.

        Whatever ``lead`` raises is raised; the lease is given back then, as it is when this is cancelled.
        """
        while True:
            await self._acquire()
            self._log.info("leading")
            self.leading = True
            work = asyncio.ensure_future(lead())
            try:
                await self._keep(work)
            finally:
                self.leading = False
                work.cancel()
                await asyncio.wait({work})
                await self._release()
            self._log.warning("no longer leading")
            if not work.cancelled():
                work.result()

    async def _acquire(self) -> None:
        while True:
            if await self._tried():
                return
            await asyncio.sleep(self._timing.retry * self._rng.uniform(0.8, 1.2))

    async def _tried(self) -> bool:
        """Take the lease if it is free."""
        loop = asyncio.get_running_loop()
        try:
            try:
                found = await self._kube.get(LEASES, self._namespace, self._name)
            except NotFound:
                self._held = await self._kube.create(LEASES, self._namespace, self._document(0))
            else:
                spec = found.spec
                # Under our name: we, before we were restarted. Once we have led, somebody who took it from us.
                if spec.holder_identity and (spec.holder_identity != self._identity or self._started):
                    if self._seen[0] != found.metadata.resource_version:
                        self._seen = (found.metadata.resource_version, loop.time())
                    if loop.time() - self._seen[1] < (spec.lease_duration_seconds or self._timing.duration):
                        self._on_state(True, "")
                        return False
                self._held = await self._patch(found, self._spec((spec.lease_transitions or 0) + 1))
        except (AlreadyExists, Conflict):
            return False
        except KubeError as error:
            self._on_state(False, f"lease {self._namespace}/{self._name}: {error.message}")
            return False
        self._started = True
        self._on_state(True, "")
        return True

    async def _keep(self, work: "asyncio.Future[None]") -> None:
        """Renew until the work has ended or the lease is lost."""
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
                    asked = loop.time()
                    mine = await self._renewed()
            except (KubeError, TimeoutError) as error:
                self._log.warning("the lease is not renewed", error=str(error) or "no answer in time")
                if loop.time() >= renewed + self._timing.deadline:
                    self._on_state(False, f"lease {self._namespace}/{self._name}: {error}")
                    return
                pause = self._timing.retry
                continue
            if not mine:
                self._held = None
                return
            renewed, pause = asked, self._timing.renew

    async def _renewed(self) -> bool:
        """Renew; ``False`` when the lease has become another's.

        :raises KubeError: it may still be ours.
        """
        held = self._held
        assert held is not None
        renewal = {"renewTime": _now(), "leaseDurationSeconds": round(self._timing.duration)}
        try:
            self._held = await self._patch(held, renewal)
        except NotFound:
            return False
        except Conflict:
            found = await self._kube.get(LEASES, self._namespace, self._name)
            if not _same(found.spec, held.spec):
                return False
            self._held = await self._patch(found, renewal)
        return True

    async def _release(self) -> None:
        """Let the next one begin at once. Best effort."""
        held, self._held = self._held, None
        if held is None:
            return
        with suppress(KubeError, TimeoutError):
            async with asyncio.timeout(self._timing.release):
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


def _same(one: LeaseSpec, other: LeaseSpec) -> bool:
    """Whether it is one and the same holding, not merely the same name."""
    return (one.holder_identity, one.acquire_time, one.lease_transitions) == (
        other.holder_identity,
        other.acquire_time,
        other.lease_transitions,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
