"""Leader election in virtual time: one replica leads, the next takes over, and two never lead at once."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import structlog

from schemas.kubernetes.objects import Lease, Resource
from services.common.kube.errors import AlreadyExists, Conflict, Forbidden, KubeError, NotFound, Unavailable
from services.common.kube.leader import Leader, LeaseTiming

pytestmark = pytest.mark.looptime


class Store:
    """An API server that stores one Lease."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.failing: Callable[[str], KubeError | None] = lambda _who: None
        self.held: set[str] = set()

    def hold(self, who: str) -> None:
        """Do not answer this replica, as while its process is stopped, until :meth:`release`."""
        self.held.add(who)

    def release(self, who: str) -> None:
        """Answer this replica again."""
        self.held.discard(who)

    def client(self, who: str) -> "Client":
        return Client(self, who)

    @property
    def holder(self) -> str:
        return "" if self.lease is None else str(self.lease["spec"]["holderIdentity"])


class Client:
    """One replica's client."""

    def __init__(self, store: Store, who: str) -> None:
        self.store, self.who = store, who

    async def _enter(self) -> None:
        await asyncio.sleep(0.001)
        while self.who in self.store.held:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        error = self.store.failing(self.who)
        if error is not None:
            raise error

    def _stored(self) -> Lease:
        assert self.store.lease is not None
        self.store.version += 1
        self.store.lease["metadata"]["resourceVersion"] = str(self.store.version)
        return msgspec.convert(self.store.lease, Lease)

    async def get(self, resource: Resource[Lease], namespace: str | None, name: str) -> Lease:
        await self._enter()
        if self.store.lease is None:
            raise NotFound("none", status=404)
        return msgspec.convert(self.store.lease, Lease)

    async def create(self, resource: Resource[Lease], namespace: str | None, body: Mapping[str, Any]) -> Lease:
        await self._enter()
        if self.store.lease is not None:
            raise AlreadyExists("there", status=409)
        self.store.lease = msgspec.json.decode(msgspec.json.encode(body))
        return self._stored()

    async def merge_patch(
        self, resource: Resource[Lease], namespace: str | None, name: str, body: Mapping[str, Any]
    ) -> Lease:
        await self._enter()
        if self.store.lease is None:
            raise NotFound("none", status=404)
        if body["metadata"]["resourceVersion"] != self.store.lease["metadata"]["resourceVersion"]:
            raise Conflict("changed", status=409)
        self.store.lease["spec"] |= body["spec"]
        return self._stored()


class Replicas:
    """Replicas of one role, and a record of which of them led."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.leading: set[str] = set()
        self.started: list[str] = []
        self.most = 0
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.states: list[tuple[str, bool, str]] = []

    def start(self, who: str, identity: str | None = None) -> Leader:
        def state(ok: bool, why: str) -> None:
            self.states.append((who, ok, why))

        log = structlog.get_logger()
        leader = Leader(self.store.client(who), "ns", "lease", identity or who, log=log, on_state=state)
        self.tasks[who] = asyncio.create_task(leader.run(lambda: self._lead(who)))
        return leader

    async def _lead(self, who: str) -> None:
        self.leading.add(who)
        self.started.append(who)
        self.most = max(self.most, len(self.leading))
        try:
            await asyncio.Event().wait()
        finally:
            self.leading.discard(who)

    async def until(self, *who: str, within: float = 60.0) -> float:
        """Wait until exactly these replicas lead; return the seconds it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(within):
            while self.leading != set(who):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return loop.time() - began

    async def stop(self, who: str) -> None:
        task = self.tasks.pop(who)
        task.cancel()
        await asyncio.wait({task})

    async def close(self) -> None:
        for who in list(self.tasks):
            await self.stop(who)


async def test_one_replica_leads_and_the_next_starts_when_it_stops() -> None:
    replicas = Replicas(Store())
    leader = replicas.start("a")
    assert await replicas.until("a") < 1
    assert leader.leading
    replicas.start("b")
    await asyncio.sleep(60)
    assert (replicas.leading, replicas.store.holder) == ({"a"}, "a")
    await replicas.stop("a")
    assert replicas.store.holder == ""
    assert await replicas.until("b") < 2
    assert replicas.most == 1
    assert all(ok for _, ok, _ in replicas.states)
    await replicas.close()


async def test_a_waiting_replica_logs_each_holder_once() -> None:
    replicas = Replicas(Store())
    with structlog.testing.capture_logs() as logs:
        replicas.start("a")
        await replicas.until("a")
        replicas.start("b")
        await asyncio.sleep(60)
        await replicas.stop("a")
        await replicas.until("b")
        replicas.start("a")
        await asyncio.sleep(60)
    waiting = [item for item in logs if item["event"] == "leadership held by another replica"]
    assert [(item["identity"], item["holder"], item["lease"]) for item in waiting] == [
        ("b", "a", "ns/lease"),
        ("a", "b", "ns/lease"),
    ]
    await replicas.close()


async def test_a_disconnected_leader_stops_before_another_starts() -> None:
    replicas = Replicas(Store())
    replicas.start("a")
    await replicas.until("a")
    replicas.start("b")
    await asyncio.sleep(5)
    replicas.store.failing = lambda who: Unavailable("away") if who == "a" else None
    stopped = await replicas.until()
    assert stopped <= LeaseTiming().deadline + LeaseTiming().renew
    assert await replicas.until("b") > 0
    replicas.store.failing = lambda _who: None
    await asyncio.sleep(60)
    assert replicas.leading == {"b"}
    assert replicas.most == 1
    assert [why for who, ok, why in replicas.states if who == "a" and not ok]
    await replicas.close()


async def test_a_short_outage_of_the_api_server_changes_nothing() -> None:
    replicas = Replicas(Store())
    replicas.start("a")
    replicas.start("b")
    (leads,) = [who for who in ("a", "b") if await _leads(replicas, who)]
    replicas.store.failing = lambda _who: Unavailable("away")
    await asyncio.sleep(8)
    replicas.store.failing = lambda _who: None
    await asyncio.sleep(60)
    assert replicas.leading == {leads}
    assert replicas.most == 1
    await replicas.close()


async def _leads(replicas: Replicas, who: str) -> bool:
    await asyncio.sleep(1)
    return who in replicas.leading


async def test_a_killed_leader_resumes_at_once_under_its_identity_and_others_wait_for_the_lease_to_expire() -> None:
    store = Store()
    first = Replicas(store)
    first.start("a")
    await first.until("a")
    # A killed replica releases nothing, so its lease remains.
    killed, store.lease = msgspec.json.encode(store.lease), None
    await first.close()
    store.lease = msgspec.json.decode(killed)
    again = Replicas(store)
    again.start("b")
    await asyncio.sleep(10)
    assert again.leading == set()
    again.start("a")
    assert await again.until("a") < 1
    await again.close()
    store.lease = msgspec.json.decode(killed)
    other = Replicas(store)
    other.start("b")
    assert LeaseTiming().duration <= await other.until("b") < LeaseTiming().duration + 3
    await other.close()


async def test_a_leader_that_was_frozen_leads_again_at_once_if_nobody_else_did_meanwhile() -> None:
    replicas = Replicas(Store())
    replicas.start("a")
    await replicas.until("a")
    replicas.store.hold("a")
    await replicas.until()
    # The renewal that was cut off has reached the API server: the version that this replica knows is old.
    assert replicas.store.lease is not None
    replicas.store.lease["metadata"]["resourceVersion"] = "renewed"
    replicas.store.release("a")
    assert await replicas.until("a") < LeaseTiming().retry * 2
    assert replicas.most == 1
    await replicas.close()


async def test_a_leader_that_was_frozen_waits_for_the_one_that_leads_since() -> None:
    replicas = Replicas(Store())
    replicas.start("a")
    await replicas.until("a")
    replicas.start("b")
    replicas.store.hold("a")
    await replicas.until("b")
    replicas.store.release("a")
    await asyncio.sleep(60)
    assert (replicas.leading, replicas.most) == ({"b"}, 1)
    await replicas.stop("b")
    # The lease that "b" released is free; one of its own, from before, is not in the store.
    assert await replicas.until("a") < LeaseTiming().retry * 2
    await replicas.close()


async def test_the_later_one_of_two_replicas_with_one_identity_leads() -> None:
    replicas = Replicas(Store())
    replicas.start("first", "same")
    await replicas.until("first")
    replicas.start("second", "same")
    await asyncio.sleep(LeaseTiming().renew + 0.1)
    assert replicas.leading == {"second"}
    await replicas.stop("second")
    await replicas.until("first")
    await replicas.close()


async def test_a_labelled_lease_is_kept_and_a_deleted_one_is_created_again() -> None:
    replicas = Replicas(Store())
    replicas.start("a")
    await replicas.until("a")
    assert replicas.store.lease is not None
    replicas.store.lease["metadata"]["resourceVersion"] = "labelled"
    await asyncio.sleep(20)
    assert replicas.leading == {"a"}
    replicas.store.lease = None
    await asyncio.sleep(20)
    assert (replicas.leading, replicas.store.holder) == ({"a"}, "a")
    assert replicas.started == ["a", "a"]
    await replicas.close()


async def test_without_permission_for_leases_nobody_leads_and_the_state_has_the_reason() -> None:
    replicas = Replicas(Store())
    replicas.store.failing = lambda _who: Forbidden("may not get leases", status=403)
    replicas.start("a")
    await asyncio.sleep(5)
    assert replicas.leading == set()
    assert ("a", False, "cannot acquire lease ns/lease: may not get leases") in replicas.states
    await replicas.close()


async def test_an_exception_of_the_leader_is_raised_and_the_lease_is_released() -> None:
    store = Store()

    async def broken() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await Leader(store.client("a"), "ns", "lease", "a", log=structlog.get_logger()).run(broken)
    assert store.holder == ""
