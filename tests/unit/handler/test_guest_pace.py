"""How many runs and writes a guest can cause whose device comes and goes, on a clock of the test."""

import asyncio
from typing import Any

import msgspec
import pytest
import structlog
from opentelemetry.context import Context

from lab.apiserver.rest.patch import apply_json_patch
from schemas.bus.events import Failed
from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from schemas.kubernetes.objects import VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, read_operation
from schemas.names import device_alias, pod_interface
from schemas.stages import OperationKind
from services.common.domain.nic import parse_nics
from services.common.flowcontrol.pacer import BURST, INTERVAL, MAX_GRANTED, Pacer
from services.common.guest.agent import AgentUnavailable, GuestNic
from services.common.guest.port import GuestChange, GuestEvent, GuestView, NetDevice
from services.common.netlink.links import Address, Link
from services.common.reconcile import MAX_BACKOFF, Attempt, Reconciler, Source
from services.handler.apply import Target
from services.handler.observe import find_lost
from services.handler.plan import plan
from services.handler.plan.actions import RequestUnplug, SetLinkState, SetUpAndAttach, TearDown
from services.handler.plan.nics import absent_nics, desired_state, in_domain
from services.handler.pod_network.operations import ObservedLinks
from services.handler.report import StatusReporter
from services.handler.run import Run
from services.handler.sessions import REPORTS_OF_A_CHANGE, RUNS_OF_A_CHANGE, GuestSession, Key
from services.handler.unplug import UnplugEvent
from tests.support.bus.memory import MemoryBus
from tests.support.contexts import role_context
from tests.support.guest.events import ScriptedGuest
from tests.support.observed.handler import observed_state
from tests.support.observed.objects import NODE, POD_UID, nic, pod, vmi
from tests.support.telemetry.spans import recording_telemetry

pytestmark = pytest.mark.looptime

KEY = ("default", "vm1")
MAC = "02:00:00:00:00:01"
MINUTE = 60.0
PACED = BURST + 1 + MINUTE / INTERVAL
"""What a guest can cause in a minute."""


class Guest(ScriptedGuest):
    """A domain whose devices and events the test sets, and an agent that never responds.

    :ivar aliases: the devices, in the order of the plugs.
    :ivar up: the link state that the domain shows; ``None`` for what was set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.aliases: list[str] = []
        self.up: bool | None = None

    def view(self) -> GuestView:
        """Return what a list of the domain returns."""
        devices = {alias: NetDevice(alias, MAC, up=self.up is None or self.up) for alias in self.aliases}
        return GuestView(devices, tuple(f"rp{number}" for number in range(1, 33)))

    def emit(self, change: GuestChange, alias: str | None = None) -> None:
        """Let the domain send an event."""
        self.event_queue.put_nowait(GuestEvent(change, alias))

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        raise AgentUnavailable("no response")


class Node:
    """The handler's queue, session, plan and report of one VMI, and doubles of its domain and its API server.

    :ivar eject_after: seconds after which the guest ejects each device that is plugged; ``None`` for never.
    :ivar loses: whether the domain accepts each device and never lists it.
    :ivar plugs: the number of plugs so far.
    :ivar writes: the number of patches of the VMI so far.
    :ivar runs: the number of runs so far.
    """

    def __init__(self, *interfaces: str, eject_after: float | None = None) -> None:
        telemetry, _ = recording_telemetry("handler")
        self.guest, self.eject_after = Guest(), eject_after
        self.loses = False
        self.plugs = self.writes = self.runs = 0
        self.vmi = vmi(*map(nic, interfaces))
        self.queue: Reconciler[Key] = Reconciler(
            "handler", self._reconcile, log=structlog.get_logger(), meter=telemetry.meter
        )
        self.session = GuestSession(KEY, self.guest, self.guest, self._requeue, structlog.get_logger())
        self.bus = MemoryBus(role="handler", node=NODE, telemetry=telemetry)
        # As the reader of VMIs, and as the client.
        self.reporter = StatusReporter(role_context("handler", self, self.bus, telemetry, node=NODE), self)  # type: ignore[arg-type]
        self._task = asyncio.create_task(self.queue.run())

    async def close(self) -> None:
        await self.session.close()
        self._task.cancel()
        await asyncio.wait({self._task})

    def plug(self, *interfaces: str, operation: str) -> None:
        """Let a user plug interfaces, all of those that the VMI is to have."""
        names = {name: Operation(f"{operation}-{name}", OperationKind.PLUG, name) for name in interfaces}
        annotations = {operation_key(name): encode_annotation(found) for name, found in names.items()}
        new = vmi(*map(nic, interfaces), annotations=self.vmi.metadata.annotations | annotations)
        self.vmi = msgspec.structs.replace(self.vmi, metadata=new.metadata, spec=new.spec)
        self.queue.add(KEY, source="watch")

    def unplug(self, *interfaces: str, operation: str) -> None:
        """Let a user unplug interfaces, all of those that the VMI has."""
        names = {name: Operation(f"{operation}-{name}", OperationKind.UNPLUG, name) for name in interfaces}
        annotations = {operation_key(name): encode_annotation(found) for name, found in names.items()}
        new = vmi(
            *(nic(name, state="absent") for name in interfaces),
            annotations=self.vmi.metadata.annotations | annotations,
        )
        self.vmi = msgspec.structs.replace(self.vmi, metadata=new.metadata, spec=new.spec)
        self.queue.add(KEY, source="watch")

    async def json_patch(self, _resource: Any, _namespace: str, _name: str, ops: list[Any]) -> VirtualMachineInstance:
        """Patch the VMI, which the watch then shows."""
        self.writes += 1
        patched = apply_json_patch(msgspec.to_builtins(self.vmi), ops)
        self.vmi = msgspec.convert(patched, VirtualMachineInstance)
        self.queue.add(KEY, source="watch")
        return self.vmi

    def record_written(self, _vmi: VirtualMachineInstance) -> None:
        return

    async def attach(self, action: SetUpAndAttach, _target: Target) -> None:
        self.plugs += 1
        if not self.loses:
            self.guest.aliases.append(device_alias(action.nic.name))
        if self.eject_after is not None:
            asyncio.get_running_loop().call_later(self.eject_after, self._eject, self.guest.aliases[-1])
        self.session.record_attached(action.nic.name, action.device.mac, Context())
        self.session.requeue(Context())

    async def request_unplug(self, action: RequestUnplug, _target: Target) -> None:
        record = self.session.unplugs[action.nic.name]
        record.advance(action.event)
        record.record_request(action.now, restart=False)
        record.record_response(action.now, "")
        asyncio.get_running_loop().call_later(0.02, self._eject, device_alias(action.nic.name))

    async def tear_down(self, action: TearDown, _target: Target) -> None:
        record = self.session.unplugs[action.nic.name]
        record.advance(UnplugEvent.DEVICE_ABSENT)
        record.advance(UnplugEvent.POD_NETWORK_ABSENT)
        self.session.requeue(None)

    async def set_link(self, _action: SetLinkState, _target: Target) -> None:
        self.session.requeue(None)

    def _eject(self, alias: str) -> None:
        self.guest.aliases.remove(alias)
        self.guest.emit(GuestChange.DEVICE_DELETED, alias)

    def _requeue(self, key: Key, context: Context | None, source: Source) -> None:
        self.queue.add(key, source=source, context=context)

    async def _reconcile(self, _key: Key, attempt: Attempt) -> None:
        self.runs += 1
        view = self.guest.view()
        names = [interface.name for interface in self.vmi.spec.interface_items() if interface.name != "default"]
        status = encode_network_status(
            [NetworkStatus(name="default/net1", interface=pod_interface(name), mac=MAC) for name in names]
        )
        found = [Link(i, pod_interface(name), kind="veth", mac=MAC, mtu=1500) for i, name in enumerate(names, 2)]
        links = ObservedLinks((Link(1, "lo"), *found), tuple(Address(link.index, "10.0.0.2/24") for link in found))
        launcher = pod({NETWORK_STATUS: status})
        nics = parse_nics(self.vmi, launcher)
        for absent in absent_nics(nics):
            in_guest = in_domain(absent, view)
            self.session.open_unplug(absent.name, in_domain=in_guest, released=nics.released(absent))
        self.session.retain_unplugs(absent.name for absent in absent_nics(nics))
        # As the observer does it.
        lost = find_lost(self.session, view)
        observed = observed_state(
            self.vmi,
            launcher,
            guest=view,
            pod_links=links,
            sandbox_id="sandbox-1",
            unconfirmed=self.session.unconfirmed(),
            lost=lost,
            unplugs={name: record.unplug for name, record in self.session.unplugs.items()},
            now=asyncio.get_running_loop().time(),
        )
        self.session.record_desired(desired_state(observed.nics))
        self.session.watch_events()
        target = Target(observed, self.session, attempt)
        await Run(self, self.reporter, None, target).apply(plan(observed))  # type: ignore[arg-type]


async def test_a_guest_that_ejects_each_device_is_plugged_and_written_at_a_pace() -> None:
    node = Node("blue", eject_after=0.01)
    node.plug("blue", operation="a")
    await asyncio.sleep(MINUTE)
    # For the interfaces of the first observation, and for the operation.
    changes = 3
    assert BURST < node.plugs <= 2 * PACED + RUNS_OF_A_CHANGE * changes
    assert BURST < node.writes <= PACED + REPORTS_OF_A_CHANGE * changes
    before = node.plugs, node.writes, node.runs
    await asyncio.sleep(MINUTE)
    plugs, writes, runs = (now - then for now, then in zip((node.plugs, node.writes, node.runs), before, strict=True))
    assert plugs <= MINUTE / INTERVAL + 1
    assert writes <= MINUTE / INTERVAL + 1
    assert runs <= 4 * (MINUTE / INTERVAL + 1)
    # Neither is given up: the guest may keep the next one.
    node.eject_after = None
    await asyncio.sleep(2 * INTERVAL)
    assert node.guest.aliases == [device_alias("blue")]
    assert "domain" in str(node.vmi.status.interfaces)
    await node.close()


async def test_a_domain_that_never_lists_what_it_was_given_is_plugged_at_a_pace() -> None:
    """The agent does not respond either, so each plug leads to further looks at the domain."""
    node = Node("blue")
    node.loses = True
    node.queue.add(KEY, source="watch")
    await asyncio.sleep(MINUTE)
    assert BURST < node.plugs <= PACED + (RUNS_OF_A_CHANGE + REPORTS_OF_A_CHANGE) * 2
    before = node.plugs
    await asyncio.sleep(MINUTE)
    assert node.plugs - before <= MINUTE / INTERVAL + 1 + MINUTE / MAX_BACKOFF
    assert {event.reason for event in node.bus.published if isinstance(event, Failed)} == {"DeviceLost"}
    node.loses = False
    await asyncio.sleep(MAX_BACKOFF)
    assert "domain" in str(node.vmi.status.interfaces)
    await node.close()


async def test_a_domain_that_lists_something_else_each_time_is_written_at_a_pace() -> None:
    """It sends no event: the handler's own write leads to the next run."""
    node = Node()
    views = iter(range(10**9))
    node.guest.view = lambda: GuestView({}, tuple(f"rp{n}" for n in range(next(views) % 2)))  # type: ignore[method-assign]
    node.queue.add(KEY, source="watch")
    await asyncio.sleep(MINUTE)
    assert BURST <= node.writes <= PACED + REPORTS_OF_A_CHANGE
    await node.close()


async def test_a_domain_that_never_shows_the_link_state_that_was_set_is_set_at_a_pace() -> None:
    node = Node("blue")
    node.guest.up = False
    node.queue.add(KEY, source="watch")
    await asyncio.sleep(MINUTE)
    assert BURST <= node.runs <= 2 * (PACED + (RUNS_OF_A_CHANGE + REPORTS_OF_A_CHANGE) * 2)
    await node.close()


async def test_what_users_plug_does_not_wait_for_the_pace_of_the_guest() -> None:
    node = Node(eject_after=0.01)
    node.plug("blue", operation="a")
    await asyncio.sleep(MINUTE)
    # The allowance is used up, and something waits for its time.
    node.eject_after = None
    for number in range(5):
        node.plug("blue", *(f"n{n}" for n in range(number + 1)), operation=f"b{number}")
        await asyncio.sleep(0.001)
        assert device_alias(f"n{number}") in node.guest.aliases
        entries = {entry["name"]: entry for entry in node.vmi.status.interfaces or ()}
        assert "domain" in entries[f"n{number}"]["infoSource"]
    await node.close()


async def test_many_interfaces_at_once_are_plugged_and_reported_at_once() -> None:
    node = Node()
    names = [f"n{number}" for number in range(3)]
    for round_number in range(10):
        node.guest.aliases.clear()
        node.plug(*names, operation=f"round{round_number}")
        await asyncio.sleep(0.001)
        assert len(node.guest.aliases) == len(names)
    await node.close()


async def test_many_interfaces_are_plugged_and_unplugged_again_and_again_without_a_pause() -> None:
    node = Node()
    names = [f"n{number}" for number in range(16)]
    for number in range(5):
        node.plug(*names, operation=f"plug{number}")
        await asyncio.sleep(0.1)
        assert len(node.guest.aliases) == len(names)
        assert all("domain" in entry["infoSource"] for entry in node.vmi.status.interfaces or ())
        node.unplug(*names, operation=f"unplug{number}")
        await asyncio.sleep(0.1)
        operations = [read_operation(node.vmi.metadata.annotations, name) for name in names]
        assert [found.released for found in operations if found is not None] == [POD_UID] * len(names)
    await node.close()


class Session:
    """A session alone, and the times at which it requeues its key."""

    def __init__(self) -> None:
        self.guest = Guest()
        self.requeues: list[float] = []
        self.session = GuestSession(KEY, self.guest, self.guest, self._requeue, structlog.get_logger())
        self.session.watch_events()

    def _requeue(self, _key: Key, _context: Context | None, _source: Source) -> None:
        self.requeues.append(asyncio.get_running_loop().time())


@pytest.mark.parametrize("change", [GuestChange.DEVICE_DELETED, GuestChange.UNPLUG_REFUSED])
@pytest.mark.parametrize("unplugged", ["blue", "red"])
async def test_an_event_about_a_device_that_is_repeated_causes_a_bounded_number_of_runs(
    change: GuestChange, unplugged: str
) -> None:
    found = Session()
    found.session.open_unplug(unplugged, in_domain=True, released=False)
    for _ in range(600):
        found.guest.emit(change, "ua-blue")
        await asyncio.sleep(0.1)
    assert BURST <= len(found.requeues) <= PACED
    # The last one is not lost.
    before = asyncio.get_running_loop().time()
    await asyncio.sleep(INTERVAL)
    assert found.requeues[-1] >= before
    await found.session.close()


async def test_a_connection_that_ends_again_and_again_causes_a_bounded_number_of_runs() -> None:
    found = Session()
    for _ in range(600):
        found.guest.event_queue.put_nowait(None)
        await asyncio.sleep(0.1)
        found.session.watch_events()
    assert BURST <= len(found.requeues) <= PACED
    await found.session.close()


async def test_a_pacer_calls_with_what_was_requested_last_and_what_is_granted_is_not_late() -> None:
    calls: list[tuple[float, int]] = []
    pacer = Pacer(lambda number: calls.append((asyncio.get_running_loop().time(), number)))
    start = asyncio.get_running_loop().time()
    for number in range(2 * BURST):
        pacer.request(number)
    assert [number for _, number in calls] == list(range(BURST))
    pacer.grant(2)
    assert calls[-1] == (start, 2 * BURST - 1)
    for number in range(3):
        pacer.request(number)
    assert [number for _, number in calls[-2:]] == [0, 1]
    await asyncio.sleep(INTERVAL)
    assert calls[-1] == (pytest.approx(start + INTERVAL), 2)
    pacer.grant(10 * MAX_GRANTED)
    for number in range(10 * MAX_GRANTED):
        pacer.request(number)
    assert len(calls) <= 2 * BURST + MAX_GRANTED
    pacer.close()


async def test_who_asks_whether_it_may_is_called_when_it_may() -> None:
    calls: list[float] = []
    pacer = Pacer(lambda: calls.append(asyncio.get_running_loop().time()))
    start = asyncio.get_running_loop().time()
    assert [pacer.admit() for _ in range(BURST + 2)] == [True] * BURST + [False] * 2
    assert calls == []
    await asyncio.sleep(2 * INTERVAL)
    assert calls == [pytest.approx(start + INTERVAL)]
    assert pacer.admit()
    pacer.close()
