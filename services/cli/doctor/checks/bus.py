"""Checks of the bus: streams and bucket exist and limit their messages, and there is room in the bucket and the store.

A full stream of events drops its oldest, so only a full bucket is a fault. hotnic works without the bus: these findings
cost latency, the times of stages, and the stored hot-plug status.
Next: :mod:`services.common.bus.nats.limits`, the same limits in the log of a role.
"""

from collections.abc import Iterator

from schemas.bus.encoding import BUCKET_STREAM_PREFIX
from services.cli.doctor.snapshot import BusSnapshot, Finding, NotChecked, NotVisible
from services.common.bus.settings import KIB, MIB, BusSettings, StreamUsage

NEARLY_FULL = 0.95
"""Share of its limit from which on a bucket counts as full. NATS then also refuses larger values of present keys."""
STORE_REPAIR = (
    "the roles create it when they connect; if it remains missing, the JetStream store has no room for it (log of a "
    "role: JetStream not ready): enlarge the store of the NATS server (max_file_store), or the account's share of it"
)


def check_streams(streams: tuple[StreamUsage, ...]) -> Iterator[Finding]:
    """Check that each stream exists and limits its messages, and that no bucket is full."""
    settings = BusSettings()
    reserved = sum(one.limit for one in streams)
    for one in streams:
        subject = f"NATS stream {one.name}"
        if one.used is None:
            yield Finding(
                "BusStreamMissing",
                subject,
                f"the stream does not exist; it reserves {_mib(one.limit)}, all streams of hotnic {_mib(reserved)}",
                STORE_REPAIR,
            )
        elif one.name.startswith(BUCKET_STREAM_PREFIX) and one.limit and one.used >= NEARLY_FULL * one.limit:
            yield Finding(
                "BusBucketFull",
                subject,
                # Without its size, which changes while the doctor looks twice.
                f"the bucket has nearly {_mib(one.limit)}; NATS refuses what exceeds that",
                f"enlarge it: nats stream edit {one.name} --max-bytes SIZE",
            )
        if one.sealed:
            yield Finding(
                "BusStreamSealed",
                subject,
                "the stream is sealed: NATS takes no message for it, and nobody can unset that; only the controller's "
                "identity or an administrator can have sealed it",
                f"find out who did, then delete it: nats stream rm {one.name} (its messages are lost, and no operation "
                "depends on them); the controller creates it again, at the latest when it is restarted",
            )
        # 0 is no limit.
        limit = settings.message_limit(one.name)
        if one.message_limit is not None and not 0 < one.message_limit <= limit:
            size = f"of up to {_kib(one.message_limit)}" if one.message_limit else "of any size"
            yield Finding(
                "BusMessagesTooLarge",
                subject,
                f"the stream takes messages {size}; hotnic makes none larger than {_kib(limit)}, and another client "
                "may fill the stream with them",
                f"the controller sets the limit when it connects (its log: stream update failed), or: nats stream edit "
                f"{one.name} --max-msg-size {limit}",
            )


def check_stores(bus: BusSnapshot) -> Iterator[Finding | NotChecked]:
    """Check that each store has room for the streams that do not exist, and is not full."""
    missing = sum(one.limit for one in bus.streams if one.used is None)
    for store in bus.stores:
        if isinstance(store, NotVisible):
            yield NotChecked("bus", "size of the store", store.message)
        elif missing > store.limit - store.reserved:
            yield Finding(
                "BusStoreTooSmall",
                store.name,
                f"of the store's {_mib(store.limit)}, streams reserve {_mib(store.reserved)}; the missing streams of "
                f"hotnic reserve {_mib(missing)}",
                f"enlarge it to {_mib(store.reserved + missing)} at least (max_file_store, or max_file of the account)",
            )
        elif store.used >= NEARLY_FULL * store.limit:
            yield Finding(
                "BusStoreFull",
                store.name,
                # Without what is used, which changes while the doctor looks twice.
                f"the streams have nearly filled the store's {_mib(store.limit)}; NATS then refuses every message",
                "enlarge it (max_file_store, or max_file of the account), or limit other streams that have no size",
            )


def _kib(size: int) -> str:
    return f"{size / KIB:g} KiB"


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
