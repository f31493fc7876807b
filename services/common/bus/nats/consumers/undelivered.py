"""What the server gives up to deliver to a consumer: counted and logged by the controllers.

A node acks its messages or not as it likes. Next: :mod:`services.common.bus.nats.consumers.creation`, which limits how
often a message is delivered.
"""

import msgspec
from nats.aio.msg import Msg

from schemas.bus.encoding import CONTROLLER_CONSUMER, PROJECTOR_CONSUMER
from schemas.bus.permissions import NODE_ROLES, UNDELIVERED
from schemas.inputs import Edge, InputDecoder, RejectedInput
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.consumers.requests import QUEUE
from services.common.telemetry import Metrics
from services.common.telemetry.logs import Log

_KNOWN = frozenset({CONTROLLER_CONSUMER, PROJECTOR_CONSUMER, *NODE_ROLES})
"""The first parts of the names of consumers, and the values of a label; everything else is ``other``."""


class _Undelivered(msgspec.Struct, frozen=True):
    consumer: str
    stream_seq: int
    deliveries: int


_undelivered = InputDecoder(Edge.BUS, _Undelivered)


async def watch_undelivered(connection: BusConnection, metrics: Metrics, log: Log) -> None:
    """Count each message that a consumer did not ack however often it got it, as long as the connection lasts.

    Each consumer is logged once: a node that acks nothing causes no more lines.
    """
    logged: set[str] = set()

    async def on_advisory(msg: Msg) -> None:
        try:
            found = _undelivered.decode(msg.data)
        except RejectedInput as error:
            log.debug("unknown advisory of NATS", error=str(error))
            return
        role = found.consumer.partition("_")[0]
        metrics.record_undelivered(role if role in _KNOWN else "other")
        log_undelivered = log.debug if role in logged else log.warning
        log_undelivered(
            "message not delivered", consumer=found.consumer, sequence=found.stream_seq, deliveries=found.deliveries
        )
        logged.update({role} & _KNOWN)

    await connection.client.subscribe(f"{UNDELIVERED}.>", queue=QUEUE, cb=on_advisory)
