"""Checks of the bus: the streams and the bucket exist, and the bucket has room.

A full stream of events drops its oldest, so only a full bucket is a fault. hotnic works without the bus: these findings
cost latency, the times of stages, and the stored hot-plug status.
Next: :mod:`services.common.bus.nats.limits`, the same limits in the log of a role.
"""

from collections.abc import Iterator

from services.cli.doctor.snapshot import Finding
from services.common.bus.settings import BUCKET_STREAM, MIB, StreamUsage

NEARLY_FULL = 0.95
"""Share of its limit from which on a bucket counts as full. NATS then also refuses larger values of present keys."""
STORE_REPAIR = (
    "the roles create it when they connect; if it remains missing, the JetStream store has no room for it (log of a "
    "role: JetStream not ready): enlarge the store of the NATS server (max_file_store), or the account's share of it"
)


def check_bus(streams: tuple[StreamUsage, ...]) -> Iterator[Finding]:
    """Check that each stream exists, and that no bucket is full."""
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
        elif one.name.startswith(BUCKET_STREAM) and one.limit and one.used >= NEARLY_FULL * one.limit:
            yield Finding(
                "BusBucketFull",
                subject,
                # Without its size, which changes while the doctor looks twice.
                f"the bucket has nearly {_mib(one.limit)}; NATS refuses what exceeds that",
                f"enlarge it: nats stream edit {one.name} --max-bytes SIZE",
            )


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
