"""CloudEvents 1.0 in NATS' binary mode: an event's metadata as message headers, next to the W3C trace context.

Source: CloudEvents NATS protocol binding 1.0.2 (headers ``ce-*``). The payload itself is :mod:`schemas.events`.
"""

from collections.abc import Mapping

from schemas.stages import Stage

CONTENT_TYPE = "application/json"
_TYPE_PREFIX = "io.hotnic.hotplug."
_TYPE_SUFFIX = ".v1"


def event_type(stage: Stage) -> str:
    """``ce-type`` of a stage: ``io.hotnic.hotplug.<stage>.v1``."""
    return f"{_TYPE_PREFIX}{stage}{_TYPE_SUFFIX}"


def stage_of_type(ce_type: str) -> Stage:
    """The stage behind a ``ce-type``.

    :raises ValueError: another type, version or stage.
    """
    if not (ce_type.startswith(_TYPE_PREFIX) and ce_type.endswith(_TYPE_SUFFIX)):
        raise ValueError(f"not a hotplug event type: {ce_type!r}")
    return Stage(ce_type[len(_TYPE_PREFIX) : -len(_TYPE_SUFFIX)])


def source(role: str, node: str) -> str:
    """``ce-source``: ``/hotnic/<role>/<node>``."""
    return f"/hotnic/{role}/{node}"


def headers(*, event_id: str, stage: Stage, role: str, node: str, time: str) -> dict[str, str]:
    """The headers of one event.

    :param time: RFC 3339, UTC.
    """
    return {
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-type": event_type(stage),
        "ce-source": source(role, node),
        "ce-time": time,
        "content-type": CONTENT_TYPE,
    }


def check(found: Mapping[str, str], stage: Stage) -> None:
    """Check that the headers speak of the payload's stage.

    :raises ValueError: a header is missing or contradicts the payload.
    """
    for name in ("ce-specversion", "ce-id", "ce-type", "ce-source"):
        if not found.get(name):
            raise ValueError(f"header {name} is missing")
    if found["ce-specversion"] != "1.0":
        raise ValueError(f"CloudEvents {found['ce-specversion']!r} is not 1.0")
    if stage_of_type(found["ce-type"]) != stage:
        raise ValueError(f"header ce-type {found['ce-type']!r} contradicts the payload's stage {stage}")
