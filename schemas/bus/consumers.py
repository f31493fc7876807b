"""The request of a role of a node for its consumer, and the answer of a controller.

Who asks is in the subject, which NATS binds to the identity (:func:`schemas.bus.encoding.consumer_request`); the
consumer follows from that alone. The body only says from when on it delivers, so it is not part of any permission.
"""

from datetime import datetime
from typing import Annotated

import msgspec

from schemas.inputs import Edge, InputDecoder

MAX_BYTES = 1024
"""Limit of a request and of an answer."""


class ConsumerRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of a request.

    :ivar since: a new consumer delivers what the stream has stored from then on; ``None``: new messages only.
    """

    since: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class ConsumerAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an answer.

    :ivar error: why there is no consumer; empty: it exists.
    """

    error: str = ""


decode_request = InputDecoder(Edge.BUS, ConsumerRequest, max_bytes=MAX_BYTES).decode
decode_answer = InputDecoder(Edge.BUS, ConsumerAnswer, max_bytes=MAX_BYTES).decode
encode_body = msgspec.json.Encoder().encode
