"""The bus as an AsyncAPI 3.0 document: one channel per stage, who sends on it, headers and payloads.

Source: the AsyncAPI specification 3.0.0. All facts come from the stage table, the encodings and the events.
"""

from typing import Any

import msgspec

from schemas import cloudevents
from schemas.describe import describe
from schemas.encoding import DEAD_ROOT, DEAD_STREAM, NO_NODE, NO_VMI, STREAM, SUBJECT_ROOT
from schemas.events import MAX_EVENT_BYTES, Event
from schemas.stages import TABLE, StageRow

VERSION = "1.0.0"
"""Of the messages: the ``v1`` of their ``ce-type``."""


def document() -> dict[str, Any]:
    """The document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "hotnic events",
            "version": VERSION,
            "description": (
                "Stages of NIC hot-plug operations on running virtual machines. An event is a hint that something "
                "changed and carries the trace of the request; the truth stands in Kubernetes objects. "
                f"JetStream keeps the events in the stream {STREAM} (subjects {SUBJECT_ROOT}.>) and messages that "
                f"could not be used in {DEAD_STREAM} (subjects {DEAD_ROOT}.>). Fields are only ever added, and only "
                f"optional ones. A payload has at most {MAX_EVENT_BYTES} bytes."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": cloudevents.CONTENT_TYPE,
        "channels": {**{_key(row): _channel(row) for row in TABLE}, "deadLetters": _dead_letters()},
        "operations": {
            f"{role}-{_key(row)}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{_key(row)}"},
                "summary": f"{role} publishes when {row.after}",
            }
            for row in TABLE
            for role in row.publishers
        },
        "components": {
            "messages": {_key(row): _message(row) for row in TABLE},
            "schemas": _schemas(),
            "parameters": {
                "node": {"description": f"Kubernetes node the event is about; `{NO_NODE}` while none is known."},
                "namespace": {"description": "Namespace of the VMI (of the pod, for an ordinary pod)."},
                "vmi": {"description": f"Name of the VMI; `{NO_VMI}` for an ordinary pod."},
            },
        },
    }


def _key(row: StageRow) -> str:
    """Name of a stage's channel, message and payload."""
    return "".join(part.capitalize() for part in row.stage.split("-"))


def _channel(row: StageRow) -> dict[str, Any]:
    following = ", ".join(f"{stage} ({kind})" for kind, stage in row.next.items())
    return {
        "address": f"{SUBJECT_ROOT}.{row.stage}.{{node}}.{{namespace}}.{{vmi}}",
        "description": (
            f"Published after: {row.after}. Followed by: {following or 'nothing'}. "
            "In every token each byte outside of [A-Za-z0-9_-] is written as %XX."
        ),
        "messages": {_key(row): {"$ref": f"#/components/messages/{_key(row)}"}},
        "parameters": _parameters(),
    }


def _dead_letters() -> dict[str, Any]:
    return {
        "address": f"{DEAD_ROOT}.{{stage}}.{{node}}.{{namespace}}.{{vmi}}",
        "description": "Messages that no consumer could use, as they came, with the reason in `Hotnic-Dead-*` headers.",
        "parameters": {"stage": {"description": "The stage token of the original subject."}, **_parameters()},
    }


def _parameters() -> dict[str, Any]:
    return {name: {"$ref": f"#/components/parameters/{name}"} for name in ("node", "namespace", "vmi")}


def _message(row: StageRow) -> dict[str, Any]:
    return {
        "name": cloudevents.event_type(row.stage),
        "title": f"{row.stage}: {row.after}",
        "contentType": cloudevents.CONTENT_TYPE,
        "headers": _headers(row),
        "payload": {"$ref": f"#/components/schemas/{_key(row)}"},
    }


def _headers(row: StageRow) -> dict[str, Any]:
    sample = cloudevents.headers(event_id="", stage=row.stage, role="", node="", time="")
    meaning: dict[str, dict[str, Any]] = {
        "ce-specversion": {"const": sample["ce-specversion"]},
        "ce-id": {"description": "The same as Nats-Msg-Id."},
        "ce-type": {"const": sample["ce-type"]},
        "ce-source": {
            "pattern": f"^/hotnic/({'|'.join(row.publishers)})/.+$",
            "description": "/hotnic/<role>/<node>",
        },
        "ce-time": {"format": "date-time"},
        "content-type": {"const": sample["content-type"]},
        "traceparent": {"description": "W3C trace context of the publisher's span."},
        "Nats-Msg-Id": {"description": "Absorbs retries of one publish; nothing else may depend on it."},
    }
    return {
        "type": "object",
        "properties": {name: {"type": "string", **rest} for name, rest in meaning.items()},
        "required": ["ce-specversion", "ce-id", "ce-type", "ce-source"],
    }


def _schemas() -> dict[str, Any]:
    _, components = msgspec.json.schema_components([Event], ref_template="#/components/schemas/{name}")
    describe(components, Event)
    return components
