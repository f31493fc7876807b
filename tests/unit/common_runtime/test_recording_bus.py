"""Each published stage is recorded as a Kubernetes Event on the VMI, once per transition, without delaying the work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import LogCapture

from schemas.bus.events import Failed, GuestAttached, MultusAttached, ObjectRef, PodAnnotated, Requested
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.runtime.recording_bus import RecordingBus
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import add_trace_ids
from tests.support.bus.memory import MemoryBus
from tests.support.kube.node_kube import EVENTS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

VMI = ObjectRef("default", "vm1", "uid-vm1")
PLUG = Operation("op", OperationKind.PLUG, "blue")
STAGES = (Requested(PLUG, VMI), PodAnnotated(PLUG, VMI), MultusAttached(PLUG, VMI), GuestAttached(PLUG, VMI))
REASONS = [
    "InterfacePlugRequested",
    "InterfacePodAnnotated",
    "InterfaceMultusAttached",
    "InterfaceGuestAttached",
]


class Role:
    """A role's bus on a fake Kubernetes API."""

    def __init__(self, kube: FakeKube, client: Kube, telemetry: Telemetry, spans: InMemorySpanExporter) -> None:
        self.kube, self.client, self.telemetry, self.spans = kube, client, telemetry, spans
        self.logged = LogCapture()

    def start(self, success_delay: float = 0.05) -> RecordingBus:
        """Return the bus of a new start of the role."""
        log = structlog.wrap_logger(None, processors=[add_trace_ids, self.logged])
        events = EventRecorder(self.client, "handler", log=log, node="node1")
        return RecordingBus(MemoryBus(telemetry=self.telemetry, log=log), events, success_delay=success_delay)

    def reasons(self) -> list[str]:
        """Return the reasons of the recorded Events."""
        return [event["reason"] for event in self.kube.of(EVENTS)]


@pytest.fixture
async def role(tmp_path: Path) -> AsyncIterator[Role]:
    telemetry, spans = recording_telemetry()
    async with serving_kube(FakeKube()) as kube:
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            yield Role(kube, client, telemetry, spans)


async def test_events_are_recorded_in_order_and_once_across_restarts(role: Role) -> None:
    for start in range(2):
        bus = role.start()
        for event in (*STAGES, *STAGES):
            await bus.publish(event)
        await bus.close()
        assert role.reasons() == REASONS, start
    # Each start sends every Event once: the second one learns from the 409 that it exists.
    assert role.kube.counted("POST", EVENTS) == 2 * len(STAGES)
    (event,) = [event for event in role.kube.of(EVENTS) if event["reason"] == "InterfaceGuestAttached"]
    assert event["involvedObject"]["uid"] == "uid-vm1"
    assert event["metadata"]["annotations"]["hotnic.io/operation-id"] == "op"
    assert event["source"] == {"component": "hotnic-handler", "host": "node1"}


async def test_failure_is_recorded_at_once_after_all_earlier_events(role: Role) -> None:
    bus = role.start(success_delay=60.0)
    await bus.publish(STAGES[0])
    for attempt in (1, 2):
        await bus.publish(Failed(PLUG, VMI, at=Stage.MULTUS_ATTACHED, reason="CniFailed", attempt=attempt))
    await role.kube.until(lambda: role.reasons() == ["InterfacePlugRequested", "CniFailed"])
    await bus.close()


async def test_publishing_does_not_wait_for_the_api_server(role: Role) -> None:
    def refuse(method: str, _plural: str, _name: str) -> None:
        raise Refused(503, "ServiceUnavailable", "not now")

    role.kube.before = refuse
    bus = role.start()
    async with asyncio.timeout(0.5):
        for event in STAGES:
            await bus.publish(event)
    await bus.close()
    assert role.reasons() == []


async def test_pending_events_and_draining_are_bounded(role: Role) -> None:
    bus = role.start(success_delay=60.0)
    for number in range(1100):
        await bus.publish(Requested(Operation(f"op{number}", OperationKind.PLUG, "blue"), VMI))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            await bus.drain()
    assert len(role.reasons()) <= 1000


async def test_recording_adds_no_span_to_the_trace(role: Role) -> None:
    bus = role.start()
    with role.telemetry.tracer.start_as_current_span("work"):
        await bus.publish(STAGES[0])
    await bus.close()
    assert role.reasons() == REASONS[:1]
    assert {span.name for span in role.spans.get_finished_spans()} == {"work", "send hotplug.requested"}


@pytest.mark.parametrize("trace", ["0af7651916cd43dd8448eb211c80319c", None])
async def test_the_log_line_of_a_failure_has_the_operations_trace_or_none(role: Role, trace: str | None) -> None:
    def refuse(method: str, _plural: str, _name: str) -> None:
        raise Refused(503, "ServiceUnavailable", "not now")

    role.kube.before = refuse
    bus = role.start()
    plug = msgspec.structs.replace(PLUG, traceparent=trace and f"00-{trace}-b7ad6b7169203331-01")
    await bus.publish(Requested(plug, VMI))
    await bus.close()
    (line,) = role.logged.entries
    assert (line["event"], line.get("trace_id")) == ("event not recorded", trace)


async def test_events_of_ordinary_pods_are_not_recorded(role: Role) -> None:
    bus = role.start()
    await bus.publish(MultusAttached(PLUG))
    await bus.close()
    assert role.reasons() == []
