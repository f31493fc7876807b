"""Stages that KubeVirt reaches are published once for each operation and pod, as spans of the operation's trace."""

from dataclasses import dataclass, field

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from schemas.bus.cloudevents import OBSERVED as HEADER
from schemas.bus.events import MultusAttached, ObjectRef, PodAnnotated, Requested, is_observed
from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from schemas.kubernetes.operations import (
    HotplugMark,
    Operation,
    PodNic,
    encode_annotation,
    hotplug_mark_key,
    operation_key,
    pod_nic_key,
)
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.common.domain.nic import parse_nics
from services.controller.observed_stages import OBSERVED, ObservedStages
from services.controller.plan.observed_stages import ObservedStage, observed_stages
from tests.support.bus.memory import Broker, MemoryBus
from tests.support.contexts import role_context
from tests.support.observed import objects
from tests.support.telemetry.spans import named, recording_telemetry

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BLUE = pod_interface("blue")
REQUESTED = 1_764_331_200_000_000_000
"""2025-11-28T12:00:00Z, nanoseconds."""
SECOND = 1_000_000_000


def event(pod: str = "pod1") -> PodAnnotated:
    """Return the event of a plug that was requested at :data:`REQUESTED`."""
    operation = Operation(
        "1",
        OperationKind.PLUG,
        "blue",
        traceparent=f"00-{TRACE}-{PARENT}-01",
        requested_at="2025-11-28T12:00:00.000Z",
        vm="vm",
    )
    return PodAnnotated(operation=operation, vmi=ObjectRef("ns", "vm1", "vmi"), pod=ObjectRef("ns", pod, pod))


@dataclass
class Observer:
    """A role that follows stages; ``now`` is its wall clock."""

    broker: Broker = field(default_factory=Broker)
    now: int = REQUESTED

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start the role, which then remembers nothing."""
        telemetry, self.spans = recording_telemetry("controller")
        bus = MemoryBus(self.broker, role="controller", telemetry=telemetry)
        self.stages = ObservedStages(role_context("controller", None, bus, telemetry), clock=lambda: self.now)
        self.bus = bus

    async def see(self, *, reached: bool, due: bool = True, pod: str = "pod1", after: float = 0.0) -> None:
        """See a stage some seconds after the request."""
        self.now = REQUESTED + int(after * SECOND)
        await self.stages.follow([ObservedStage(event(pod), reached, due)])


async def test_a_stage_is_published_once_in_a_span_from_when_it_was_due() -> None:
    observer = Observer()
    await observer.see(reached=False, due=False, after=100)
    await observer.see(reached=False, after=101)
    await observer.see(reached=False, after=102)
    for after in (103, 104):
        await observer.see(reached=True, after=after)
    assert observer.bus.published == [event()]
    span = named(observer.spans.get_finished_spans(), "kubevirt annotate blue")
    assert (span.start_time, (span.attributes or {})[OBSERVED]) == (REQUESTED + 101 * SECOND, True)
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert [message.headers[HEADER] for message in observer.broker.messages] == ["true"]


async def test_a_stage_of_another_pod_is_another_one() -> None:
    observer = Observer()
    for pod in ("pod1", "pod2"):
        await observer.see(reached=False, pod=pod)
        await observer.see(reached=True, pod=pod)
    assert observer.bus.published == [event("pod1"), event("pod2")]


async def test_a_stage_that_a_migration_reaches_is_published_however_late() -> None:
    observer = Observer()
    await observer.see(reached=False, due=False, pod="pod1", after=1)
    await observer.see(reached=True, pod="pod2", after=3600)
    assert observer.bus.published == [event("pod2")]


async def test_a_stage_that_was_reached_before_anybody_looked_is_published_only_while_it_is_new() -> None:
    observer = Observer()
    await observer.see(reached=True, after=0.2)
    assert len(observer.bus.published) == 1
    span: InMemorySpanExporter = observer.spans
    assert named(span.get_finished_spans(), "kubevirt annotate blue").start_time == REQUESTED
    # After a restart nobody knows whether it was published; later it is not.
    observer.start()
    await observer.see(reached=True, after=5)
    assert len(observer.broker.messages) == 2
    observer.start()
    await observer.see(reached=True, after=3600)
    assert observer.bus.published == []


@pytest.mark.parametrize("vm", [None, "vm"])
def test_only_what_others_do_beside_kubevirt_is_observed(vm: str | None) -> None:
    operation = Operation("1", OperationKind.PLUG, "blue", vm=vm)
    assert is_observed(PodAnnotated(operation=operation), "controller") is (vm is not None)
    assert is_observed(MultusAttached(operation=operation), "controller") is (vm is not None)
    assert not is_observed(MultusAttached(operation=operation), "networks")
    assert not is_observed(Requested(operation=operation), "controller")


@pytest.mark.parametrize(
    ("written", "published"),
    [
        (None, True),
        (PodNic("another pod", "sandbox", BLUE, "02:00:00:00:00:02", 1500, settings_digest="digest"), True),
        (PodNic(objects.POD_UID, "sandbox", BLUE, "02:00:00:00:00:02", 1500), True),
        (PodNic(objects.POD_UID, "sandbox", BLUE, "02:00:00:00:00:02", 1500, settings_digest="digest"), False),
        (HotplugMark(objects.POD_UID, BLUE, settings_digest="digest"), False),
    ],
    ids=["upstream", "record-of-another-pod", "at-the-creation-of-the-pod", "networks", "networks-without-a-record"],
)
def test_an_attachment_that_networks_made_is_published_by_networks_only(
    written: PodNic | HotplugMark | None, published: bool
) -> None:
    operation = Operation("1", OperationKind.PLUG, "blue", vm=objects.VM_UID, network="default/net1")
    statuses = [NetworkStatus("default/net1", BLUE, ["10.0.0.1"], "02:00:00:00:00:02")]
    annotations = {NETWORK_STATUS: encode_network_status(statuses)}
    if written is not None:
        key = pod_nic_key("blue") if isinstance(written, PodNic) else hotplug_mark_key(BLUE)
        annotations[key] = encode_annotation(written)
    entry = {operation_key("blue"): encode_annotation(operation)}
    nics = parse_nics(objects.vmi(objects.nic("blue"), owned=True, annotations=entry), objects.pod(annotations))
    found = [one.event for one in observed_stages(nics) if one.reached]
    assert [type(event) for event in found] == ([MultusAttached] if published else [])
    assert [event.ips for event in found if isinstance(event, MultusAttached)] == [("10.0.0.1",)] * published
