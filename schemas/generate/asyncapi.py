"""The AsyncAPI 3.0 document of the bus: one channel per stage with its publishers, headers and payloads.

Source: AsyncAPI specification 3.0.0. The document repeats no fact by hand: it is built from the stage table,
the encodings and the event structs. Next: :mod:`schemas.bus.cloudevents`, the message headers.
"""

from typing import Any

import msgspec

from schemas.bus import cloudevents
from schemas.bus.encoding import DEAD_ROOT, DEAD_STREAM, NO_NODE, NO_VMI, STREAM, SUBJECT_ROOT
from schemas.bus.events import MAX_EVENT_BYTES, Event
from schemas.describe import describe
from schemas.stages import TABLE, StageRow

VERSION = "1.0.0"
"""Version of the messages: the ``v1`` in their ``ce-type``."""


def build_document() -> dict[str, Any]:
    """Return the AsyncAPI document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "hotnic events",
            "version": VERSION,
            "description": (
                "Stages of NIC hot-plug operations on running virtual machines. An event is a hint that something "
                "changed and carries the trace of the request; Kubernetes objects hold the truth. "
                f"The stream {STREAM} (subjects {SUBJECT_ROOT}.>) stores the events, the stream {DEAD_STREAM} "
                f"(subjects {DEAD_ROOT}.>) the dead letters. Later versions only add optional fields. "
                f"A payload has at most {MAX_EVENT_BYTES} bytes."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": cloudevents.CONTENT_TYPE,
        "channels": {**{_key(row): _channel(row) for row in TABLE}, "deadLetters": _dead_letters()},
        "operations": {
            f"{role}-{_key(row)}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{_key(row)}"},
                "summary": f"{role} publishes after: {row.fact}",
            }
            for row in TABLE
            for role in row.sources
        },
        "components": {
            "messages": {_key(row): _message(row) for row in TABLE},
            "schemas": _schemas(),
            "parameters": {
                "node": {"description": f"Kubernetes node of the pod; `{NO_NODE}` while unknown."},
                "namespace": {"description": "Namespace of the VMI, or of an ordinary pod."},
                "vmi": {"description": f"Name of the VMI; `{NO_VMI}` for an ordinary pod."},
            },
        },
    }


def _key(row: StageRow) -> str:
    """Return the name of a stage's channel, message and payload."""
    return "".join(part.capitalize() for part in row.stage.split("-"))


def _channel(row: StageRow) -> dict[str, Any]:
    following = ", ".join(f"{stage} ({kind})" for kind, stage in row.next.items())
    return {
        "address": f"{SUBJECT_ROOT}.{row.stage}.{{node}}.{{namespace}}.{{vmi}}",
        "description": (
            f"Published after: {row.fact}. Followed by: {following or 'nothing'}. "
            "Each byte of a token outside [A-Za-z0-9_-] is encoded as %XX."
        ),
        "messages": {_key(row): {"$ref": f"#/components/messages/{_key(row)}"}},
        "parameters": _parameters(),
    }


def _dead_letters() -> dict[str, Any]:
    return {
        "address": f"{DEAD_ROOT}.{{stage}}.{{node}}.{{namespace}}.{{vmi}}",
        "description": "Dead letters: unusable messages, unchanged, with the reason in `Hotnic-Dead-*` headers.",
        "parameters": {"stage": {"description": "Stage token of the original subject."}, **_parameters()},
    }


def _parameters() -> dict[str, Any]:
    return {name: {"$ref": f"#/components/parameters/{name}"} for name in ("node", "namespace", "vmi")}


def _message(row: StageRow) -> dict[str, Any]:
    return {
        "name": cloudevents.event_type(row.stage),
        "title": f"{row.stage}: {row.fact}",
        "contentType": cloudevents.CONTENT_TYPE,
        "headers": _headers(row),
        "payload": {"$ref": f"#/components/schemas/{_key(row)}"},
    }


def _headers(row: StageRow) -> dict[str, Any]:
    sample = cloudevents.build_headers(event_id="", stage=row.stage, role="", node="", time="")
    meaning: dict[str, dict[str, Any]] = {
        "ce-specversion": {"const": sample["ce-specversion"]},
        "ce-id": {"description": "The same as Nats-Msg-Id."},
        "ce-type": {"const": sample["ce-type"]},
        "ce-source": {
            "pattern": f"^/hotnic/({'|'.join(row.sources)})/.+$",
            "description": "/hotnic/<role>/<node>",
        },
        "ce-time": {"format": "date-time"},
        "content-type": {"const": sample["content-type"]},
        cloudevents.OBSERVED: {"const": "true", "description": "Only of what somebody else did, such as KubeVirt."},
        "traceparent": {"description": "W3C trace context of the publisher's span."},
        "Nats-Msg-Id": {"description": "Deduplicates retries of one publish; nothing else may depend on it."},
    }
    return {
        "type": "object",
        "properties": {name: {"type": "string", **rest} for name, rest in meaning.items()},
        # Those that `cloudevents.check_headers` requires.
        "required": ["ce-specversion", "ce-id", "ce-type", "ce-source"],
    }


def _schemas() -> dict[str, Any]:
    _, components = msgspec.json.schema_components([Event], ref_template="#/components/schemas/{name}")
    describe(components, Event)
    return components
