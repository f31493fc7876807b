"""The time line of a VM: the same line from the bus and from a Kubernetes Event, as far as each tells it."""

import pytest

from schemas.events import Event, Failed, GuestAttached, ObjectRef, Requested
from schemas.operations import Operation
from schemas.stages import OperationKind, Stage
from services.cli.bus import shown
from services.cli.output import NONE
from services.cli.timeline import COLUMNS, cells, of_event, of_message
from services.common.bus.envelope import BusMessage, outgoing
from services.common.domain.kubernetes_events import kubernetes_event

TRACE = "a" * 32
VMI = ObjectRef("default", "vm1", "uid")
PLUG = Operation("op", OperationKind.PLUG, "blue", traceparent=f"00-{TRACE}-{'b' * 16}-01")
LOST = Failed(PLUG, VMI, at=Stage.MULTUS_ATTACHED, reason="CniFailed", message="no\nlease", attempt=3, retry_after=0.4)


def from_bus(event: Event, role: str, node: str) -> BusMessage:
    return outgoing(event, role=role, node=node, start_id="s")


def from_cluster(event: Event, role: str, host: str | None) -> dict[str, object]:
    said = kubernetes_event(event)
    assert said is not None
    return {
        "metadata": {"annotations": said.annotations},
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "reason": said.reason,
        "message": said.message,
        "source": {"component": f"hotnic-{role}"} | ({"host": host} if host else {}),
    }


@pytest.mark.parametrize(
    ("event", "role", "node"),
    [(Requested(PLUG, VMI), "api", "_"), (GuestAttached(PLUG, VMI), "handler", "n1"), (LOST, "networks", "n1")],
)
def test_bus_and_kubernetes_tell_the_same_story(event: Event, role: str, node: str) -> None:
    host = None if node == "_" else node
    bus, cluster = of_message(from_bus(event, role, node)), of_event(from_cluster(event, role, host))
    assert bus is not None
    assert cluster is not None
    for name in ("stage", "interface", "kind", "operation", "by", "trace_id"):
        assert getattr(bus, name) == getattr(cluster, name)
    assert bus.by == (role if host is None else f"{role}/n1")
    assert len(cells(bus)) == len(cells(cluster)) == len(COLUMNS)
    assert all(cells(bus))


def test_a_failed_attempt_says_at_what_why_and_when_it_is_tried_again() -> None:
    line = of_message(from_bus(LOST, "networks", "n1"))
    assert line is not None
    assert (line.at, line.reason, line.attempt, line.retry_after) == ("multus-attached", "CniFailed", 3, 0.4)
    shown_ = cells(line)
    assert "failed (multus-attached)" in shown_
    assert shown_[-1] == "CniFailed: no lease"


def test_what_cannot_be_read_and_what_others_wrote_is_no_line() -> None:
    assert of_message(BusMessage("hotplug.requested._.default.vm1", b"{", {})) is None
    assert of_event({"source": {"component": "kubelet"}, "metadata": {}}) is None
    assert of_event({"metadata": {}}) is None


def test_an_event_of_ours_that_is_no_stage_is_a_line_as_well() -> None:
    line = of_event({"source": {"component": "hotnic-controller"}, "metadata": {}, "reason": "X", "message": "y"})
    assert line is not None
    assert cells(line)[1:4] == [NONE] * 3
    assert cells(line)[-1] == "X: y"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("nats://host:4222", "nats://host:4222"),
        ("nats://me:secret@host:4222", "nats://host:4222"),
        ("nats://token@a, tls://me:x@b:1", "nats://a,tls://b:1"),
        ("me:secret@host", "//host"),
    ],
)
def test_what_lets_one_in_is_not_shown(url: str, wanted: str) -> None:
    assert shown(url) == wanted
