"""The way of a message from arrival to the event handler: limit, count, trace, decode, hand over or dead-letter.

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
    limit_nodes,
    reject_failures,
    trace_delivery,
)
from services.common.bus.protocol import EventHandler
from services.common.bus.shares import NodeShares
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import Log


def build_delivery_handler(
    handler: EventHandler,
    *,
    consumer: str,
    start_id: str,
    telemetry: Telemetry,
    log: Log,
    publish_dead_letter: Callable[[BusMessage], None],
) -> DeliveryHandler:
    """Return the handler of the messages that a consumer receives.

    :param handler: gets the event of every valid message.
    :param start_id: random id of the process' start.
    :param publish_dead_letter: publishes the dead letter of an unusable message. It must not block.
    """
    shares = NodeShares()
    return chain(
        # Outermost, so that a message beyond its share costs as little as possible.
        limit_nodes(shares, telemetry.metrics, log),
        count_redeliveries(telemetry.metrics),
        trace_delivery(telemetry.tracer),
        # Inside the span, which gets the reason of a dead letter.
        dead_letter_unusable(publish_dead_letter, telemetry.metrics, log, start_id=start_id, shares=shares),
        handler=decode_event(reject_failures(handler, consumer=consumer, log=log)),
    )


def chain(*middlewares: Middleware, handler: DeliveryHandler) -> DeliveryHandler:
    """Return a handler wrapped in middlewares, the first one outermost."""
    for middleware in reversed(middlewares):
        handler = middleware(handler)
    return handler
