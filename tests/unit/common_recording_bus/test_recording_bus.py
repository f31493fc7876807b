"""Every publish becomes a Kubernetes Event on the VMI: once per transition, over restarts, never in the work's way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from schemas.events import Failed, GuestAttached, MultusAttached, ObjectRef, PodAnnotated, Requested
from schemas.operations import Operation
from schemas.stages import OperationKind, Stage
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.recording_bus import RecordingBus
from tests.support.bus import MemoryBus
from tests.support.node_kube import EVENTS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.spans import recording_telemetry

VMI = ObjectRef("default", "vm1", "uid-vm1")
PLUG = Operation("op", OperationKind.PLUG, "blue")
WAY = (Requested(PLUG, VMI), PodAnnotated(PLUG, VMI), MultusAttached(PLUG, VMI), GuestAttached(PLUG, VMI))
REASONS = [
    "InterfacePlugRequested",
    "InterfacePodAnnotated",
    "InterfaceMultusAttached",
    "InterfaceGuestAttached",
]


class Role:
    """A role's bus over a scripted Kubernetes API."""

    def __init__(self, kube: FakeKube, client: Kube) -> None:
        self.kube, self.client = kube, client
        self.telemetry, self.spans = recording_telemetry()

    def start(self, later: float = 0.05) -> RecordingBus:
        """The role starts (again)."""
        log = structlog.get_logger()
        events = EventRecorder(self.client, "handler", log=log, node="node1")
        return RecordingBus(MemoryBus(telemetry=self.telemetry, log=log), events, later=later)

    def told(self) -> list[str]:
        """The Events there are."""
        return [event["reason"] for event in self.kube.of(EVENTS)]


@pytest.fixture
async def role(tmp_path: Path) -> AsyncIterator[Role]:
    telemetry, _ = recording_telemetry()
    async with serving_kube(FakeKube()) as kube:
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            yield Role(kube, client)


async def test_a_plug_is_told_in_order_and_a_restarted_role_tells_nothing_twice(role: Role) -> None:
    for start in range(2):
        bus = role.start()
        for event in (*WAY, *WAY):
            await bus.publish(event)
        await bus.close()
        assert role.told() == REASONS, start
    # The first start asked for each once; the second had to ask to learn that they are there.
    assert role.kube.counted("POST", EVENTS) == 2 * len(WAY)
    (event,) = [event for event in role.kube.of(EVENTS) if event["reason"] == "InterfaceGuestAttached"]
    assert event["involvedObject"]["uid"] == "uid-vm1"
    assert event["metadata"]["annotations"]["hotnic.io/operation-id"] == "op"
    assert event["source"] == {"component": "hotnic-handler", "host": "node1"}


async def test_a_failure_is_told_at_once_with_all_that_came_before(role: Role) -> None:
    bus = role.start(later=60.0)
    await bus.publish(WAY[0])
    for attempt in (1, 2):
        await bus.publish(Failed(PLUG, VMI, at=Stage.MULTUS_ATTACHED, reason="CniFailed", attempt=attempt))
    await role.kube.until(lambda: role.told() == ["InterfacePlugRequested", "CniFailed"])
    await bus.close()


async def test_publishing_does_not_wait_for_the_api_server(role: Role) -> None:
    def refuse(method: str, _plural: str, _name: str) -> None:
        raise Refused(503, "ServiceUnavailable", "not now")

    role.kube.before = refuse
    bus = role.start()
    async with asyncio.timeout(0.5):
        for event in WAY:
            await bus.publish(event)
    await bus.close()
    assert role.told() == []


async def test_what_waits_is_bounded_and_the_end_of_a_process_too(role: Role) -> None:
    bus = role.start(later=60.0)
    for number in range(1100):
        await bus.publish(Requested(Operation(f"op{number}", OperationKind.PLUG, "blue"), VMI))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            await bus.drain()
    assert len(role.told()) <= 1000


async def test_telling_leaves_no_span_in_the_trace_of_the_work(role: Role) -> None:
    bus = role.start()
    with role.telemetry.tracer.start_as_current_span("work"):
        await bus.publish(WAY[0])
    await bus.close()
    assert role.told() == REASONS[:1]
    assert {span.name for span in role.spans.get_finished_spans()} == {"work", "send hotplug.requested"}


async def test_an_ordinary_pods_events_are_not_told_of(role: Role) -> None:
    bus = role.start()
    await bus.publish(MultusAttached(PLUG))
    await bus.close()
    assert role.told() == []
