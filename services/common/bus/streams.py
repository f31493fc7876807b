"""The two streams as they should be, and bringing the server there.

Whoever connects does it; the streams may vanish at any time and come back empty, which costs latency only.
"""

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError
from structlog.typing import FilteringBoundLogger

from schemas.encoding import DEAD_ROOT, SUBJECT_ROOT
from services.common.bus.settings import BusSettings

_CHECKED = ("subjects", "max_age", "max_bytes", "max_consumers", "duplicate_window", "num_replicas", "discard")


def wanted(settings: BusSettings) -> tuple[StreamConfig, StreamConfig]:
    """The stream of the events and the one of the dead letters."""
    events = StreamConfig(
        name=settings.stream,
        description="hotnic: stages of NIC hot-plug operations",
        subjects=[f"{SUBJECT_ROOT}.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=settings.max_age,
        max_bytes=settings.max_bytes,
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
        duplicate_window=settings.duplicate_window,
        num_replicas=settings.replicas,
        allow_direct=True,
    )
    return events, dead


async def ensure(js: JetStreamContext, settings: BusSettings, log: FilteringBoundLogger) -> None:
    """Make the streams that are missing and bring the others to our settings.

    A setting that the server will not change (or that this user may not) is logged and lived with.

    :raises nats.errors.Error: a missing stream could not be made.
    """
    for config in wanted(settings):
        assert config.name is not None
        try:
            found = (await js.stream_info(config.name)).config
        except NotFoundError:
            await js.add_stream(config)
            log.info("a stream is made", stream=config.name)
            continue
        different = [name for name in _CHECKED if _differs(getattr(config, name), getattr(found, name))]
        if not different:
            continue
        try:
            await js.update_stream(config)
            log.info("a stream is brought to its settings", stream=config.name, settings=different)
        except (APIError, NatsError) as error:
            log.warning("a stream keeps settings of its own", stream=config.name, settings=different, error=str(error))


def _differs(ours: object, theirs: object) -> bool:
    return ours is not None and ours != theirs
