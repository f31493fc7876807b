"""Every limit of the bus in one struct: streams, consumers, publishing, reconnecting."""

import msgspec

from schemas.encoding import DEAD_STREAM, STREAM

MIB = 1024 * 1024


class BusSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Names and limits; times in seconds, sizes in bytes.

    :ivar max_consumers: explicit, because a server's own default stops at 1,000: a stream serves one per node role.
    :ivar duplicate_window: how long the server absorbs retries of one publish.
    :ivar publish_budget: how long a publish may hold up its caller.
    :ivar buffer_events: how many events wait for an absent bus before the oldest is dropped.
    :ivar inactive_threshold: how long the server keeps the consumer of a process that went away.
    :ivar watch_threshold: how long it keeps the consumer of a watch that ended; a bucket has room for 1,000.
    :ivar pull_heartbeat: how often the server says that a pull still stands; two missing mean that it does not.
    :ivar reconnect_delay: the longest pause between two attempts to connect.
    """

    stream: str = STREAM
    max_age: float = 24 * 3600.0
    max_bytes: int = 256 * MIB
    max_consumers: int = 20_000
    duplicate_window: float = 120.0
    replicas: int = 1

    dead_stream: str = DEAD_STREAM
    dead_max_age: float = 7 * 24 * 3600.0
    dead_max_bytes: int = 64 * MIB

    bucket_max_bytes: int = 64 * MIB

    publish_budget: float = 0.05
    publish_timeout: float = 2.0
    buffer_events: int = 1_000

    ack_wait: float = 30.0
    max_ack_pending: int = 1_000
    inactive_threshold: float = 3600.0
    watch_threshold: float = 5.0
    pull_batch: int = 256
    pull_expires: float = 30.0
    pull_heartbeat: float = 5.0

    connect_timeout: float = 2.0
    api_timeout: float = 5.0
    reconnect_delay: float = 2.0
    close_timeout: float = 1.0
