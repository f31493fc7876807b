"""The middlewares of a delivered message: each alone, then all of them in their order."""

from collections.abc import Callable

import msgspec
import pytest
import structlog
from opentelemetry.trace import StatusCode, get_current_span
from structlog.testing import capture_logs

from schemas.bus.events import Requested
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind
from services.common.bus.delivery import build_delivery_handler, chain
from services.common.bus.envelope import DEAD_CONSUMER, DEAD_REASON, BusMessage, UnusableMessage, encode_message
from services.common.bus.middleware import (
    Delivery,
    DeliveryHandler,
    Middleware,
    count_redeliveries,
    dead_letter_unusable,
    decode_event,
    limit_nodes,
    reject_failures,
    trace_delivery,
)
from services.common.bus.protocol import ReceivedEvent
from services.common.bus.shares import (
    DEAD_LETTERS_PER_SECOND,
    EVENTS_PER_SECOND,
    LOG_INTERVAL,
    MAX_DEAD_LETTERS,
    MAX_EVENTS,
    NodeShares,
)
from services.common.telemetry import Telemetry
from services.common.telemetry.propagation import span_context
from tests.support.telemetry.spans import named, recording_telemetry

EVENT = Requested(Operation("op", OperationKind.PLUG, "iface1"))
MESSAGE = encode_message(EVENT, role="api", node="_", start_id="start")
FIRST = Delivery(MESSAGE, "controller", "HOTPLUG", 41)
SECOND = msgspec.structs.replace(FIRST, number=2)
REDELIVERIES = b'hotnic_bus_redeliveries_total{consumer="controller"}'


def unusable(_delivery: Delivery) -> None:
    raise UnusableMessage("Undecodable", "a detail")


def failing(_received: ReceivedEvent) -> None:
    raise KeyError("bug")


def dead_lettering(published: list[BusMessage], telemetry: Telemetry) -> Middleware:
    log = structlog.get_logger()
    return dead_letter_unusable(published.append, telemetry.metrics, log, start_id="start", shares=NodeShares())


def test_second_delivery_is_counted_and_handled() -> None:
    telemetry, _ = recording_telemetry()
    handled: list[Delivery] = []
    handle = count_redeliveries(telemetry.metrics)(handled.append)
    handle(FIRST)
    assert REDELIVERIES not in telemetry.metrics_text()
    handle(SECOND)
    assert REDELIVERIES + b" 1.0" in telemetry.metrics_text()
    assert handled == [FIRST, SECOND]


def test_message_is_handled_in_its_process_span() -> None:
    telemetry, exporter = recording_telemetry()
    current: list[int] = []
    trace_delivery(telemetry.tracer)(lambda _: current.append(get_current_span().get_span_context().span_id))(SECOND)
    span = named(exporter.get_finished_spans(), "process hotplug.requested")
    assert current == [span.context.span_id]
    assert span.attributes is not None
    assert span.attributes["messaging.destination.subscription.name"] == "HOTPLUG/controller"
    assert span.attributes["hotnic.bus.deliveries"] == 2


@pytest.mark.parametrize("subject", ["hotplug.nonsense._.default.vm", "elsewhere.requested._.default.vm", "hotplug"])
def test_unknown_stage_has_one_span_name(subject: str) -> None:
    telemetry, exporter = recording_telemetry()
    delivery = msgspec.structs.replace(FIRST, message=msgspec.structs.replace(MESSAGE, subject=subject))
    trace_delivery(telemetry.tracer)(lambda _: None)(delivery)
    assert [span.name for span in exporter.get_finished_spans()] == ["process hotplug._"]


def test_unusable_message_is_dead_lettered_with_span_metric_and_log() -> None:
    telemetry, exporter = recording_telemetry()
    published: list[BusMessage] = []
    with capture_logs() as lines, telemetry.tracer.start_as_current_span("process"):
        dead_lettering(published, telemetry)(unusable)(FIRST)
    (letter,) = published
    assert (letter.headers[DEAD_REASON], letter.headers[DEAD_CONSUMER]) == ("Undecodable", "controller")
    assert b'hotnic_dead_letters_total{reason="Undecodable"} 1.0' in telemetry.metrics_text()
    assert [(line["event"], line["reason"], line["sequence"]) for line in lines] == [
        ("message dead-lettered", "Undecodable", 41)
    ]
    span = named(exporter.get_finished_spans(), "process")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "a detail")
    assert span.events == ()


def test_usable_message_is_not_dead_lettered() -> None:
    telemetry, _ = recording_telemetry()
    published: list[BusMessage] = []
    handled: list[Delivery] = []
    dead_lettering(published, telemetry)(handled.append)(FIRST)
    assert (published, handled) == ([], [FIRST])


def test_exception_of_a_bug_is_not_dead_lettered_as_unusable() -> None:
    def broken(_delivery: Delivery) -> None:
        raise KeyError("bug")

    telemetry, _ = recording_telemetry()
    published: list[BusMessage] = []
    with pytest.raises(KeyError):
        dead_lettering(published, telemetry)(broken)(FIRST)
    assert published == []


def test_event_is_decoded_with_context_and_time() -> None:
    telemetry, _ = recording_telemetry()
    received: list[ReceivedEvent] = []
    with telemetry.tracer.start_as_current_span("process") as span:
        decode_event(received.append)(SECOND)
    (event,) = received
    assert (event.event, event.subject, event.redelivered) == (EVENT, EVENT.subject, True)
    assert event.time == MESSAGE.headers["ce-time"]
    assert span_context(event.context) == span.get_span_context()


def test_invalid_message_does_not_reach_the_event_handler() -> None:
    received: list[ReceivedEvent] = []
    with pytest.raises(UnusableMessage, match="Undecodable"):
        decode_event(received.append)(
            msgspec.structs.replace(FIRST, message=msgspec.structs.replace(MESSAGE, payload=b"{"))
        )
    assert received == []


def test_exception_of_the_event_handler_makes_the_message_unusable() -> None:
    handle = decode_event(reject_failures(failing, consumer="controller", log=structlog.get_logger()))
    with capture_logs() as lines, pytest.raises(UnusableMessage) as raised:
        handle(FIRST)
    assert (raised.value.reason, raised.value.detail) == ("HandlerFailed", "KeyError: 'bug'")
    assert isinstance(raised.value.__cause__, KeyError)
    (line,) = lines
    assert (line["event"], line["subject"], line["consumer"], line["exc_info"]) == (
        "event handler failed",
        MESSAGE.subject,
        "controller",
        True,
    )


def test_first_middleware_of_a_chain_is_outermost() -> None:
    order: list[str] = []

    def recording(name: str) -> Callable[[DeliveryHandler], DeliveryHandler]:
        def wrap(handle: DeliveryHandler) -> DeliveryHandler:
            def record(delivery: Delivery) -> None:
                order.append(name)
                handle(delivery)

            return record

        return wrap

    chain(recording("first"), recording("second"), handler=lambda _: order.append("handler"))(FIRST)
    assert order == ["first", "second", "handler"]


def test_failed_handler_leaves_one_dead_letter_and_a_failed_process_span() -> None:
    telemetry, exporter = recording_telemetry()
    published: list[BusMessage] = []
    handle = build_delivery_handler(
        failing,
        consumer="controller",
        start_id="start",
        telemetry=telemetry,
        log=structlog.get_logger(),
        publish_dead_letter=published.append,
    )
    handle(SECOND)
    assert [letter.headers[DEAD_REASON] for letter in published] == ["HandlerFailed"]
    assert REDELIVERIES + b" 1.0" in telemetry.metrics_text()
    span = named(exporter.get_finished_spans(), "process hotplug.requested")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "HandlerFailed"


def of(node: str) -> Delivery:
    return msgspec.structs.replace(
        FIRST, message=msgspec.structs.replace(MESSAGE, subject=f"hotplug.failed.{node}.default.vm")
    )


def test_events_of_the_clusters_roles_use_up_no_nodes_share() -> None:
    """They name the node of the VM's status, which users may write."""
    shares = NodeShares(lambda: 0.0)
    for stage in ("requested", "pod-annotated"):
        for _ in range(2 * MAX_EVENTS):
            assert shares.take_event(f"hotplug.{stage}.node1.default.vm1")
    for _ in range(MAX_EVENTS):
        assert shares.take_event("hotplug.guest-attached.node1.other.vm2")
    assert not shares.take_event("hotplug.failed.node1.other.vm2")


def test_a_node_that_floods_the_bus_takes_nothing_from_the_others() -> None:
    telemetry, _ = recording_telemetry()
    now, handled = 0.0, list[Delivery]()
    handle = limit_nodes(NodeShares(lambda: now), telemetry.metrics, structlog.get_logger())(handled.append)
    with capture_logs() as lines:
        for _ in range(MAX_EVENTS + 10):
            handle(of("hostile"))
        for _ in range(10):
            handle(of("node1"))
        for _ in range(2 * MAX_EVENTS):
            handle(of("_"))
        assert len(handled) == MAX_EVENTS + 10 + 2 * MAX_EVENTS
        assert b'hotnic_bus_excess_total{consumer="controller"} 10.0' in telemetry.metrics_text()
        now = LOG_INTERVAL - 1
        for _ in range(MAX_EVENTS + 10):
            handle(of("hostile"))
        assert [(line["event"], line["node"]) for line in lines] == [("events of a node skipped", "hostile")]
        now = 10 * LOG_INTERVAL
        before = len(handled)
        for _ in range(3 * MAX_EVENTS):
            handle(of("hostile"))
        assert len(handled) == before + min(MAX_EVENTS, int(9 * LOG_INTERVAL + 1) * EVENTS_PER_SECOND)
    assert len(lines) == 2


def test_dead_letters_of_one_node_crowd_out_no_event_and_no_other_dead_letter() -> None:
    telemetry, _ = recording_telemetry()
    now, published = 0.0, list[BusMessage]()
    handle = dead_letter_unusable(
        published.append, telemetry.metrics, structlog.get_logger(), start_id="s", shares=NodeShares(lambda: now)
    )(unusable)
    with capture_logs() as lines:
        for _ in range(5 * MAX_DEAD_LETTERS):
            handle(of("hostile"))
        handle(of("node1"))
    assert len(published) == len(lines) == MAX_DEAD_LETTERS + 1
    assert published[-1].subject == "hotplug-dead.failed.node1.default.vm"
    count = f'hotnic_dead_letters_total{{reason="Undecodable"}} {5.0 * MAX_DEAD_LETTERS + 1}'
    assert count.encode() in telemetry.metrics_text()
    now = 7.0
    for _ in range(MAX_DEAD_LETTERS):
        handle(of("hostile"))
    assert len(published) == MAX_DEAD_LETTERS + 1 + 7 * DEAD_LETTERS_PER_SECOND
