"""The two spans of a message's way: ``send`` by the publisher, ``process`` by each consumer, one trace.

OpenTelemetry's messaging conventions: the span is named by operation and destination template, the message's own
context is the parent of ``process`` (one message, one span), and a redelivery is also linked to it.
No other span is made here: the client's own requests and inboxes would be noise.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from schemas.encoding import SUBJECT_ROOT
from services.common.bus.envelope import BusMessage
from services.common.telemetry.propagation import TRACEPARENT, context_of, inject, links

BUFFERED = "hotnic.bus.buffered"
REDELIVERED = "hotnic.bus.redelivered"
DELIVERIES = "hotnic.bus.deliveries"


def destination(stage: str) -> str:
    """The subject of a stage as far as it has few values; it names spans."""
    return f"{SUBJECT_ROOT}.{stage}"


def template(stage: str) -> str:
    """``messaging.destination.template`` of a stage."""
    return f"{destination(stage)}.{{node}}.{{namespace}}.{{vmi}}"


@contextmanager
def send(tracer: Tracer, message: BusMessage, *, stage: str, operation: str) -> Iterator[Span]:
    """The PRODUCER span ``send hotplug.<stage>``; puts its context into the message's headers."""
    with tracer.start_as_current_span(
        f"send {destination(stage)}", kind=SpanKind.PRODUCER, attributes=_for_sampling("send", message)
    ) as span:
        inject(message.headers)
        try:
            yield span
        finally:
            span.set_attributes({**_rest(message, stage), "hotnic.operation.id": operation})


@contextmanager
def process(
    tracer: Tracer, message: BusMessage, *, stage: str, consumer: str, stream: str, deliveries: int = 1
) -> Iterator[Span]:
    """The CONSUMER span ``process hotplug.<stage>``, child of the message's context."""
    parent = context_of(message.headers.get(TRACEPARENT))
    again = deliveries > 1
    with tracer.start_as_current_span(
        f"process {destination(stage)}",
        # Without a context of its own a message starts a trace; it must not join whatever span is current here.
        context=parent if parent is not None else Context(),
        kind=SpanKind.CONSUMER,
        attributes=_for_sampling("process", message),
        links=links(parent, **{REDELIVERED: True}) if again else None,
    ) as span:
        try:
            yield span
        finally:
            span.set_attributes(
                {
                    **_rest(message, stage),
                    "messaging.client.id": consumer,
                    "messaging.destination.subscription.name": f"{stream}/{consumer}",
                }
            )
            if again:
                span.set_attributes({REDELIVERED: True, DELIVERIES: deliveries})


def refuse(span: Span, reason: str, detail: str) -> None:
    """Mark a ``process`` span as one whose message became a dead letter."""
    span.set_attribute("error.type", reason)
    span.set_status(Status(StatusCode.ERROR, detail))


def _for_sampling(name: str, message: BusMessage) -> dict[str, str | int | bool]:
    """What a sampler wants at a span's start. The rest follows at its end: here every microsecond delays a NIC."""
    return {
        "messaging.system": "nats",
        "messaging.operation.name": name,
        "messaging.operation.type": name,
        "messaging.destination.name": message.subject,
    }


def _rest(message: BusMessage, stage: str) -> dict[str, str | int | bool]:
    return {
        "messaging.destination.template": template(stage),
        "messaging.message.id": message.id,
        "messaging.message.body.size": len(message.payload),
    }
