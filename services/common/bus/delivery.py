"""One message from its arrival to the handler: decode, span, hand over, or put aside. The same for every bus.

No connection here: acknowledging, and publishing the dead letter, is left to the caller.
"""

from opentelemetry import context as otel_context
from structlog.typing import FilteringBoundLogger

from schemas.encoding import SUBJECT_ROOT
from schemas.stages import Stage
from services.common.bus import spans
from services.common.bus.envelope import BusMessage, Unusable, dead_letter, incoming
from services.common.bus.protocol import EventHandler, Received
from services.common.telemetry import Telemetry


def deliver(
    message: BusMessage,
    handler: EventHandler,
    *,
    telemetry: Telemetry,
    log: FilteringBoundLogger,
    consumer: str,
    stream: str,
    sequence: int,
    deliveries: int = 1,
) -> BusMessage | None:
    """Hand a message to the handler.

    A handler that raises is a bug of its role; the message is put aside, never retried: resync covers the work.

    :param deliveries: how often the message was delivered, this time included.
    :returns: the dead letter to publish, ``None`` when the message was handed over.
    """
    if deliveries > 1:
        telemetry.metrics.redelivered(consumer)
    with spans.process(
        telemetry.tracer,
        message,
        stage=_stage_token(message.subject),
        consumer=consumer,
        stream=stream,
        deliveries=deliveries,
    ) as span:
        try:
            event, subject = incoming(message.subject, message.headers, message.payload)
            try:
                handler(
                    Received(
                        event, subject, otel_context.get_current(), deliveries > 1, message.headers.get("ce-time", "")
                    )
                )
            except Exception as error:
                log.exception("an event handler failed", subject=message.subject, consumer=consumer)
                raise Unusable("HandlerFailed", f"{type(error).__name__}: {error}") from error
        except Unusable as error:
            spans.refuse(span, error.reason, error.detail)
            telemetry.metrics.dead_letter(error.reason)
            log.warning(
                "a message is put aside",
                subject=message.subject,
                consumer=consumer,
                sequence=sequence,
                reason=error.reason,
                detail=error.detail,
            )
            return dead_letter(message, error, consumer=consumer, sequence=sequence)
    return None


_STAGES = frozenset(str(stage) for stage in Stage)


def _stage_token(subject: str) -> str:
    """The stage in a subject, for names; anything else as ``_`` (a span's name must have few values)."""
    root, _, rest = subject.partition(".")
    token = rest.partition(".")[0]
    return token if root == SUBJECT_ROOT and token in _STAGES else "_"
