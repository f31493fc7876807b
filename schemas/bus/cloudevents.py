"""CloudEvents 1.0 in the binary content mode of NATS: an event's metadata as message headers.

Source: CloudEvents NATS protocol binding 1.0.2 (headers ``ce-*``). The W3C trace context uses headers of its own.
The payload is :mod:`schemas.bus.events`.
"""

from collections.abc import Mapping

from schemas.stages import Stage

CONTENT_TYPE = "application/json"
OBSERVED = "hotnic-observed"
"""Header of an event about what somebody else did, such as KubeVirt; its value is ``true``."""
_TYPE_PREFIX = "io.hotnic.hotplug."
_TYPE_SUFFIX = ".v1"


def event_type(stage: Stage) -> str:
    """Return the ``ce-type`` of a stage: ``io.hotnic.hotplug.<stage>.v1``."""
    return f"{_TYPE_PREFIX}{stage}{_TYPE_SUFFIX}"


def stage_of_type(ce_type: str) -> Stage:
    """Return the stage that a ``ce-type`` names.

    :raises ValueError: the type, its version or its stage is unknown.
    """
    if not (ce_type.startswith(_TYPE_PREFIX) and ce_type.endswith(_TYPE_SUFFIX)):
        raise ValueError(f"not a hotplug event type: {ce_type!r}")
    return Stage(ce_type[len(_TYPE_PREFIX) : -len(_TYPE_SUFFIX)])


def source(role: str, node: str) -> str:
    """Return the ``ce-source`` of a publisher: ``/hotnic/<role>/<node>``."""
    return f"/hotnic/{role}/{node}"


def parse_source(ce_source: str) -> tuple[str, str]:
    """Return role and node of a ``ce-source``.

    :raises ValueError: it is not that of a publisher of hotnic.
    """
    root, prefix, role, node, *rest = (*ce_source.split("/", 3), "", "", "", "")
    if root or prefix != "hotnic" or not role or not node or any(rest):
        raise ValueError(f"not a publisher of hotnic: {ce_source!r}")
    return role, node


def build_headers(*, event_id: str, stage: Stage, role: str, node: str, time: str) -> dict[str, str]:
    """Return the headers of one event.

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


def check_headers(headers: Mapping[str, str], stage: Stage) -> None:
    """Check that the headers are complete and name the stage of the payload.

    :raises ValueError: a header is missing or contradicts the payload.
    """
    # `ce-time` is optional in CloudEvents 1.0.
    for name in ("ce-specversion", "ce-id", "ce-type", "ce-source"):
        if not headers.get(name):
            raise ValueError(f"header {name} is missing")
    if headers["ce-specversion"] != "1.0":
        raise ValueError(f"CloudEvents {headers['ce-specversion']!r} is not 1.0")
    if stage_of_type(headers["ce-type"]) != stage:
        raise ValueError(f"header ce-type {headers['ce-type']!r} contradicts the payload's stage {stage}")
