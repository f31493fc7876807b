"""The one desired configuration of a consumer, and its creation, which only the controller may do.

Next: :mod:`services.common.bus.nats.consumers.requests`, by which the roles of the nodes have it done.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TypeGuard

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from services.common.bus.settings import BusSettings


def consumer_config(
    name: str, filters: Sequence[str], settings: BusSettings, since: datetime | None = None
) -> ConsumerConfig:
    """Return the desired configuration: in memory, named, removed by the server some time after its last use.

    :param since: a consumer that is created delivers what was stored from then on; ``None``: new messages only.
    """
    return ConsumerConfig(
        name=name,
        filter_subject=filters[0] if len(filters) == 1 else None,
        filter_subjects=list(filters) if len(filters) > 1 else None,
        deliver_policy=DeliverPolicy.BY_START_TIME if since else DeliverPolicy.NEW,
        opt_start_time=since,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=settings.ack_wait,
        max_ack_pending=settings.max_ack_pending,
        max_deliver=settings.max_deliver,
        inactive_threshold=settings.inactive_threshold,
        # The loss of a consumer costs latency only, so it needs neither disk nor replicas.
        mem_storage=True,
        num_replicas=1,
    )


async def find_consumer(js: JetStreamContext, stream: str, name: str) -> ConsumerInfo | None:
    """Return a consumer; ``None`` if there is none, or no stream."""
    try:
        found: ConsumerInfo = await js.consumer_info(stream, name)
    except NotFoundError:
        return None
    return found


def is_desired(found: ConsumerInfo | None, desired: ConsumerConfig) -> TypeGuard[ConsumerInfo]:
    """Return whether a consumer exists, delivers what it should, and gives up in the end."""
    return serves(found, desired) and found.config.max_deliver == desired.max_deliver


def serves(found: ConsumerInfo | None, desired: ConsumerConfig) -> TypeGuard[ConsumerInfo]:
    """Return whether a consumer exists and delivers what it should, perhaps for ever, as those of earlier versions.

    Its name says role and node, the code its filters: another version of the role may have had others. One that pushes
    was created by somebody else.
    """
    if found is None or found.config.deliver_subject:
        return False
    return sorted(_filters(found.config)) == sorted(_filters(desired))


async def ensure_consumer(js: JetStreamContext, stream: str, desired: ConsumerConfig) -> datetime | None:
    """Create a consumer, unless it exists as desired; return the time of its creation, ``None`` if it existed.

    :raises nats.errors.Error: the server refuses it, or the stream does not exist.
    """
    assert desired.name is not None
    found = await find_consumer(js, stream, desired.name)
    if is_desired(found, desired):
        return None
    if found is not None:
        await js.delete_consumer(stream, desired.name)
    try:
        return creation_time(await js.add_consumer(stream, desired))
    except APIError:
        # Another controller may have created it at the same time, from another time on.
        found = await find_consumer(js, stream, desired.name)
        if is_desired(found, desired):
            return creation_time(found)
        raise


def creation_time(info: ConsumerInfo) -> datetime | None:
    """Return the time of a consumer's creation, which nats-py (2.16) leaves as text in some answers."""
    return info.created if isinstance(info.created, datetime) else None


def _filters(config: ConsumerConfig) -> list[str]:
    return config.filter_subjects or ([config.filter_subject] if config.filter_subject else [])
