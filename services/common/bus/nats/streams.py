"""The desired configuration of the two streams, and its application on the server.

The controller applies it when it connects, and no other role (docs/adr/0037). A stream may vanish at any time and be
created again empty, which costs latency only. Next: :mod:`services.common.bus.settings`, the limits.
"""

import contextlib

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RePublish, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from schemas.bus.encoding import DEAD_ROOT, SUBJECT_ROOT, stored_notice
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.limits import describe_bus_error
from services.common.bus.settings import BusSettings
from services.common.telemetry.logs import Log

_CONSUMER_NOT_FOUND = 10014
"""Error code for a consumer that does not exist in a stream that does."""
_NAME_IN_USE = 10058
"""JetStream's code for a stream of that name with another configuration."""
_CHECKED_SETTINGS = (
    "subjects",
    "max_age",
    "max_bytes",
    "max_msg_size",
    "max_consumers",
    "duplicate_window",
    "num_replicas",
    "discard",
)


class StreamNotCreated(NatsError):
    """The server does not create a stream; the message says what to do."""


class StreamMissing(NatsError):
    """A stream does not exist; the message says who creates it."""


def stream_configs(settings: BusSettings) -> tuple[StreamConfig, StreamConfig]:
    """Return the configurations of the stream for events and of the stream for dead letters."""
    events = StreamConfig(
        name=settings.stream,
        description="hotnic: stages of NIC hot-plug operations",
        subjects=[f"{SUBJECT_ROOT}.>"],
        retention=RetentionPolicy.LIMITS,
        # No safe store: the server acks before it syncs the file, by default every 2 minutes (nats-server#7564).
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=settings.max_age,
        max_bytes=settings.max_bytes,
        max_msg_size=settings.message_limit(settings.stream),
        max_consumers=settings.max_consumers,
        duplicate_window=settings.duplicate_window,
        num_replicas=settings.replicas,
        allow_direct=True,
    )
    dead = StreamConfig(
        name=settings.dead_stream,
        description="hotnic: messages that no consumer could use",
        subjects=[f"{DEAD_ROOT}.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=settings.dead_max_age,
        max_bytes=settings.dead_max_bytes,
        max_msg_size=settings.message_limit(settings.dead_stream),
        duplicate_window=settings.duplicate_window,
        num_replicas=settings.replicas,
        allow_direct=True,
    )
    return events, dead


def notices_of(subjects: str) -> RePublish:
    """Return the setting by which a stream gives notice of each message that it has stored, without its payload.

    Only for a stream on which the controller alone publishes: a header of one byte, which a node may send, ends
    nats-server (2.15.1) when the message is published again.
    """
    return RePublish(src=subjects, dest=stored_notice(subjects), headers_only=True)


async def ensure_settings(js: JetStreamContext, stream: str, **settings: object) -> None:
    """Set what an existing stream lacks if an earlier version of hotnic has made it.

    Without notices, who follows the stream reads it at intervals. A missing limit is found by the doctor.
    """
    config = (await js.stream_info(stream)).config
    if any(getattr(config, name) != value for name, value in settings.items()):
        with contextlib.suppress(APIError):
            await js.update_stream(config.evolve(**settings))


async def ensure_streams(js: JetStreamContext, settings: BusSettings, log: Log) -> None:
    """Create missing streams and update the settings of existing ones.

    A setting that the server or the user's permissions do not allow to change is logged and left as it is.

    :raises StreamNotCreated: a missing stream could not be created.
    :raises nats.errors.Error: any other failure.
    """
    for config in stream_configs(settings):
        assert config.name is not None
        try:
            present = (await js.stream_info(config.name)).config
        except NotFoundError:
            try:
                await js.add_stream(config)
                log.info("stream created", stream=config.name)
                continue
            except APIError as error:
                if error.err_code != _NAME_IN_USE:
                    raise StreamNotCreated(describe_bus_error(error, config.name, settings)) from error
            # Another controller, with other settings, has created it since.
            present = (await js.stream_info(config.name)).config
        if present.sealed:
            # It cannot be unset, and the doctor says what to do.
            text = f"NATS takes no message for it; delete it, and it is made again: nats stream rm {config.name}"
            log.error("stream sealed", stream=config.name, error=text)
            continue
        different = [name for name in _CHECKED_SETTINGS if _differs(getattr(config, name), getattr(present, name))]
        if not different:
            continue
        try:
            await js.update_stream(config)
            log.info("stream updated", stream=config.name, settings=different)
        except (APIError, NatsError) as error:
            text = describe_bus_error(error, config.name, settings)
            log.warning("stream update failed", stream=config.name, settings=different, error=text)


async def check_stream(connection: BusConnection, consumer: str | None, settings: BusSettings) -> None:
    """Check that the stream of the events exists, for a role that does not create it.

    :param consumer: the consumer of a role of a node, which may only ask for that: the stream's own state names the
        VMs of all nodes.
    :raises StreamMissing: it does not exist yet.
    :raises nats.errors.Error: any other failure.
    """
    try:
        if consumer is None:
            await connection.js.stream_info(settings.stream)
        else:
            await connection.js.consumer_info(settings.stream, consumer)
    except NotFoundError as error:
        if error.err_code != _CONSUMER_NOT_FOUND:
            raise StreamMissing(
                f"stream {settings.stream} does not exist; the controller creates it when it connects"
            ) from error


def _differs(desired: object, actual: object) -> bool:
    return desired is not None and desired != actual
