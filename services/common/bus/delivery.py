"""The way of a message from arrival to the event handler: count, trace, decode, hand over or dead-letter.

All buses share this code. It uses no connection: the caller acks the message.
Next: :mod:`services.common.bus.middleware`, the parts.
"""

from collections.abc import Callable

from services.common.bus.envelope import BusMessage
from services.common.bus.middleware import (
    DeliveryHandler,
    Middleware,
    count_redeliveries,
    dead_letter_unusable,
    decode_event,
    reject_failures,
    trace_delivery,
)
from services.common.bus.protocol import EventHandler
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import Log


def build_delivery_handler(
    handler: EventHandler,
    *,
    consumer: str,
    telemetry: Telemetry,
    log: Log,
    publish_dead_letter: Callable[[BusMessage], None],
) -> DeliveryHandler:
    """Return the handler of the messages that a consumer receives.

    :param handler: gets the event of every valid message.
    :param publish_dead_letter: publishes the dead letter of an unusable message. It must not block.
    """
    return chain(
        count_redeliveries(telemetry.metrics),
        trace_delivery(telemetry.tracer),
        # Inside the span, which gets the reason of a dead letter.
        dead_letter_unusable(publish_dead_letter, telemetry.metrics, log),
        handler=decode_event(reject_failures(handler, consumer=consumer, log=log)),
    )


def chain(*middlewares: Middleware, handler: DeliveryHandler) -> DeliveryHandler:
    """Return a handler wrapped in middlewares, the first one outermost."""
    for middleware in reversed(middlewares):
        handler = middleware(handler)
    return handler
