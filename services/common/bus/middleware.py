"""The middlewares of a delivered message: each wraps a handler in another one that adds one thing.

None of them uses a connection or knows another middleware. None retries: the keyed queue of the role does that.
Next: :mod:`services.common.bus.delivery`, which puts them together.
"""

from collections.abc import Callable
from typing import TypeAlias

import msgspec
from opentelemetry import context as otel_context
from opentelemetry.trace import Tracer, get_current_span

from schemas.bus.encoding import SUBJECT_ROOT
from schemas.stages import Stage
from services.common.bus import spans
from services.common.bus.envelope import BusMessage, UnusableMessage, build_dead_letter, decode_message
from services.common.bus.protocol import EventHandler, ReceivedEvent
from services.common.bus.shares import NodeShares, node_of
from services.common.telemetry import Metrics
from services.common.telemetry.logs import Log

_STAGES = frozenset(str(stage) for stage in Stage)


class Delivery(msgspec.Struct, frozen=True):
    """One delivery of a message to a consumer.

    :ivar sequence: sequence of the message in its stream.
    :ivar number: number of deliveries of the message, this one included.
    """

    message: BusMessage
    consumer: str
    stream: str
    sequence: int
    number: int = 1


DeliveryHandler: TypeAlias = Callable[[Delivery], None]
"""Handles one delivery; raises :class:`UnusableMessage` if no consumer can process the message."""
Middleware: TypeAlias = Callable[[DeliveryHandler], DeliveryHandler]


def count_redeliveries(metrics: Metrics) -> Middleware:
    """Return a middleware that counts the deliveries after the first one of a message."""

    def wrap(handle: DeliveryHandler) -> DeliveryHandler:
        def counted(delivery: Delivery) -> None:
            if delivery.number > 1:
                metrics.record_redelivery(delivery.consumer)
            handle(delivery)

        return counted

    return wrap


def limit_nodes(shares: NodeShares, metrics: Metrics, log: Log) -> Middleware:
    """Return a middleware that skips messages of a node beyond its share."""

    def wrap(handle: DeliveryHandler) -> DeliveryHandler:
        def limited(delivery: Delivery) -> None:
            subject = delivery.message.subject
            if shares.take_event(subject):
                handle(delivery)
                return
            metrics.record_excess(delivery.consumer)
            if shares.may_log(subject):
                log.warning("events of a node skipped", node=node_of(subject), consumer=delivery.consumer)

        return limited

    return wrap


def trace_delivery(tracer: Tracer) -> Middleware:
    """Return a middleware that handles a message in its ``process`` span."""

    def wrap(handle: DeliveryHandler) -> DeliveryHandler:
        def traced(delivery: Delivery) -> None:
            with spans.process_span(
                tracer,
                delivery.message,
                stage=_stage_token(delivery.message.subject),
                consumer=delivery.consumer,
                stream=delivery.stream,
                deliveries=delivery.number,
            ):
                handle(delivery)

        return traced

    return wrap


def dead_letter_unusable(
    publish: Callable[[BusMessage], None], metrics: Metrics, log: Log, *, start_id: str, shares: NodeShares
) -> Middleware:
    """Return a middleware that dead-letters an unusable message.

    The current span and the metrics have the reason; so has the log, if the message's node has not had its share.

    :param publish: publishes the dead letter.
    :param start_id: random id of the process' start.
    """

    def wrap(handle: DeliveryHandler) -> DeliveryHandler:
        def dead_lettering(delivery: Delivery) -> None:
            message, consumer, sequence = delivery.message, delivery.consumer, delivery.sequence
            try:
                handle(delivery)
            except UnusableMessage as error:
                spans.mark_dead_lettered(get_current_span(), error.reason, error.detail)
                metrics.record_dead_letter(error.reason)
                if not shares.take_dead_letter(message.subject):
                    return
                log.warning(
                    "message dead-lettered",
                    subject=message.subject,
                    consumer=consumer,
                    sequence=sequence,
                    reason=error.reason,
                    detail=error.detail,
                )
                publish(build_dead_letter(message, error, consumer=consumer, sequence=sequence, start_id=start_id))

        return dead_lettering

    return wrap


def decode_event(handler: EventHandler) -> DeliveryHandler:
    """Return the innermost handler: it decodes the message and passes the event on, with the current trace context.

    The returned handler raises :class:`UnusableMessage` if the message is not a valid event.
    """

    def decode(delivery: Delivery) -> None:
        message = delivery.message
        event, subject = decode_message(message.subject, message.headers, message.payload)
        redelivered, time = delivery.number > 1, message.headers.get("ce-time", "")
        handler(ReceivedEvent(event, subject, otel_context.get_current(), redelivered, time))

    return decode


def reject_failures(handler: EventHandler, *, consumer: str, log: Log) -> EventHandler:
    """Return an event handler whose exceptions make the message unusable.

    A handler that raises has a bug. Its message is dead-lettered, not retried, because the resync repeats the work.
    """

    def rejecting(received: ReceivedEvent) -> None:
        try:
            handler(received)
        except Exception as error:
            log.exception("event handler failed", subject=str(received.subject), consumer=consumer)
            raise UnusableMessage("HandlerFailed", f"{type(error).__name__}: {error}") from error

    return rejecting


def _stage_token(subject: str) -> str:
    """Return the stage token of a subject, ``_`` if it is unknown: a span name must have few values."""
    root, _, rest = subject.partition(".")
    token = rest.partition(".")[0]
    return token if root == SUBJECT_ROOT and token in _STAGES else "_"
