"""The two spans of a message in one trace: ``send`` by the publisher, ``process`` by each consumer.

They follow OpenTelemetry's messaging conventions. A span name consists of operation and destination template. The
context in the message is the parent of ``process``, because a consumer handles one message at a time; the span of a
redelivered message is also linked to it. The client's own requests and inboxes get no spans: they would be noise.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer

from schemas.bus.encoding import SUBJECT_ROOT
from services.common.bus.envelope import BusMessage
from services.common.telemetry.propagation import TRACEPARENT, context_of, inject, links
from services.common.telemetry.tracer import fail_span

BUFFERED = "hotnic.bus.buffered"
REDELIVERED = "hotnic.bus.redelivered"
DELIVERIES = "hotnic.bus.deliveries"


def destination(stage: str) -> str:
    """Return the subject prefix of a stage; it names spans because it has few values."""
    return f"{SUBJECT_ROOT}.{stage}"


def destination_template(stage: str) -> str:
    """Return the ``messaging.destination.template`` of a stage."""
    return f"{destination(stage)}.{{node}}.{{namespace}}.{{vmi}}"


@contextmanager
def send_span(tracer: Tracer, message: BusMessage, *, stage: str, operation: str) -> Iterator[Span]:
    """Start the PRODUCER span ``send hotplug.<stage>`` and inject its context into the message's headers."""
    with tracer.start_as_current_span(
        f"send {destination(stage)}", kind=SpanKind.PRODUCER, attributes=_sampling_attributes("send", message)
    ) as span:
        inject(message.headers)
        try:
            yield span
        finally:
            span.set_attributes({**_other_attributes(message, stage), "hotnic.operation.id": operation})


@contextmanager
def process_span(
    tracer: Tracer, message: BusMessage, *, stage: str, consumer: str, stream: str, deliveries: int = 1
) -> Iterator[Span]:
    """Start the CONSUMER span ``process hotplug.<stage>`` as a child of the context in the message."""
    parent = context_of(message.headers.get(TRACEPARENT))
    redelivered = deliveries > 1
    with tracer.start_as_current_span(
        f"process {destination(stage)}",
        # A message without trace context starts a new trace: it must not become a child of the current span.
        context=parent if parent is not None else Context(),
        kind=SpanKind.CONSUMER,
        attributes=_sampling_attributes("process", message),
        links=links(parent, **{REDELIVERED: True}) if redelivered else None,
    ) as span:
        try:
            yield span
        finally:
            span.set_attributes(
                {
                    **_other_attributes(message, stage),
                    "messaging.client.id": consumer,
                    "messaging.destination.subscription.name": f"{stream}/{consumer}",
                }
            )
            if redelivered:
                span.set_attributes({REDELIVERED: True, DELIVERIES: deliveries})


def mark_dead_lettered(span: Span, reason: str, detail: str) -> None:
    """Set the status of a ``process`` span whose message is dead-lettered."""
    span.set_attribute("error.type", reason)
    fail_span(span, detail)


def _sampling_attributes(name: str, message: BusMessage) -> dict[str, str | int | bool]:
    """Return the attributes that samplers read at the start of a span.

    All others are set at its end, because each microsecond before the message is sent delays the NIC.
    """
    return {
        "messaging.system": "nats",
        "messaging.operation.name": name,
        "messaging.operation.type": name,
        "messaging.destination.name": message.subject,
    }


def _other_attributes(message: BusMessage, stage: str) -> dict[str, str | int | bool]:
    return {
        "messaging.destination.template": destination_template(stage),
        "messaging.message.id": message.id,
        "messaging.message.body.size": len(message.payload),
    }
