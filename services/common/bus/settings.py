"""All limits of the bus in one struct: streams, consumers, publishing, reconnecting; and the usage of a limit.

Next: :mod:`services.common.bus.nats.streams`, which applies the limits of the streams.
"""

import msgspec

from schemas.bus.encoding import DEAD_STREAM, STREAM
from schemas.bus.events import MAX_EVENT_BYTES

KIB = 1024
MIB = 1024 * 1024
CALLOUT_TIMEOUT = 5
"""Seconds for which a server waits for the answer of an auth callout."""


class BusSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Names and limits; times in seconds, sizes in bytes.

    :ivar stream: the stream of the events; ``max_age`` and ``max_bytes`` are its limits.
    :ivar replicas: copies of each stream and bucket in a NATS cluster.
    :ivar dead_stream: the stream of the dead letters, with limits of its own.
    :ivar max_message_bytes: of payload and headers of an event, and of a value of the bucket. The payload has at most
        :data:`schemas.bus.events.MAX_EVENT_BYTES`, the value less.
    :ivar dead_max_message_bytes: of a dead letter, which has headers of its own besides.
    :ivar max_consumers: set explicitly, because the server's default is 1,000 and each node role needs a consumer.
    :ivar duplicate_window: how long the server drops repeated publishes of one message id, which it keeps in memory
        meanwhile, however long it is. A publish is repeated after a timeout or a lost connection.
    :ivar publish_budget: how long a publish may block its caller.
    :ivar publish_timeout: how long the outbox waits for the ack of one publish.
    :ivar buffer_events: how many events the outbox holds before the oldest is dropped.
    :ivar ack_wait: how long the server waits for the ack of a message before it delivers the message again.
    :ivar max_deliver: how often the server delivers a message that is not acked. Whoever receives acks at once, so only
        a message that ends receivers comes near; what it said is found by watch and resync.
    :ivar max_ack_pending: how many messages of a consumer may wait for their ack before the server sends no more.
    :ivar max_behind: how many messages may wait for a consumer of the controller, before it leaves them out: some
        seconds of what a controller handles. A node can publish faster, and the events of all wait in one row.
    :ivar inactive_threshold: how long the server keeps the consumer of a process that has ended.
    :ivar read_interval: how long a watch waits for a notice of the server, before it reads the stream without one.
    :ivar follow_interval: how often a command reads the events that come, of which the server gives no notice.
    :ivar pull_batch: how many messages one pull request requests.
    :ivar pull_expires: how long the server serves one pull request.
    :ivar pull_heartbeat: interval of the server's heartbeats for a pull request; after two missing ones it is renewed.
    :ivar connect_timeout: how long a connection may take, which an auth callout examines meanwhile.
    :ivar api_timeout: how long a request to the JetStream API may take.
    :ivar account_timeout: how long a request for the limits of the account may take, which few may read.
    :ivar reconnect_delay: longest pause between two attempts to connect.
    :ivar files_interval: interval of the checks whether a file with credentials was replaced.
    :ivar close_timeout: how long the outbox may take at shutdown, and then each close of a connection.
    """

    stream: str = STREAM
    max_age: float = 24 * 3600.0
    max_bytes: int = 256 * MIB
    max_message_bytes: int = MAX_EVENT_BYTES + 8 * KIB
    max_consumers: int = 20_000
    duplicate_window: float = 5.0
    replicas: int = 1

    dead_stream: str = DEAD_STREAM
    dead_max_age: float = 7 * 24 * 3600.0
    dead_max_bytes: int = 64 * MIB
    dead_max_message_bytes: int = MAX_EVENT_BYTES + 16 * KIB

    bucket_max_bytes: int = 64 * MIB

    publish_budget: float = 0.05
    publish_timeout: float = 2.0
    buffer_events: int = 1_000

    ack_wait: float = 30.0
    max_deliver: int = 10
    max_ack_pending: int = 1_000
    max_behind: int = 10_000
    inactive_threshold: float = 3600.0
    read_interval: float = 5.0
    follow_interval: float = 0.5
    pull_batch: int = 256
    pull_expires: float = 30.0
    pull_heartbeat: float = 5.0

    connect_timeout: float = CALLOUT_TIMEOUT + 1.0
    api_timeout: float = 5.0
    account_timeout: float = 2.0
    reconnect_delay: float = 2.0
    files_interval: float = 5.0
    close_timeout: float = 1.0

    @property
    def reserved_bytes(self) -> int:
        """The size that both streams and the bucket reserve in the store of each server that has a replica of them."""
        return self.max_bytes + self.dead_max_bytes + self.bucket_max_bytes

    def message_limit(self, stream: str) -> int:
        """Return how many bytes a message of a stream may have; a bucket is the stream ``KV_<bucket>``."""
        return self.dead_max_message_bytes if stream == self.dead_stream else self.max_message_bytes


class StreamUsage(msgspec.Struct, frozen=True):
    """How much of its limit a stream uses.

    :ivar name: a bucket is the stream ``KV_<bucket>``.
    :ivar limit: in bytes, reserved in the server's store; 0 for none; the intended one while the stream does not exist.
    :ivar used: in bytes; ``None`` while the stream does not exist.
    :ivar message_limit: bytes of one message; 0 for none; ``None`` while the stream does not exist.
    :ivar sealed: whether it takes no message and no change of its settings any more.
    """

    name: str
    limit: int
    used: int | None
    message_limit: int | None = None
    sealed: bool = False


class StoreUsage(msgspec.Struct, frozen=True):
    """How much of a JetStream store is reserved and used, by all streams of an account or of a server.

    :ivar name: whose store it is, as a finding names it.
    :ivar limit: in bytes.
    :ivar reserved: in bytes: the sum of the streams' limits.
    :ivar used: in bytes.
    """

    name: str
    limit: int
    reserved: int
    used: int
