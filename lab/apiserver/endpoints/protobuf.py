"""Decode request bodies in Kubernetes' protobuf encoding, as far as kubectl sends them.

kubectl's typed commands (`create namespace|configmap|secret|serviceaccount|service`, `auth can-i`) send protobuf and do
not fall back to JSON. A body is the magic `k8s\\0` and a `runtime.Unknown` envelope. The tables below describe the
messages (field numbers: `generated.proto` of k8s.io/api and k8s.io/apimachinery). A kind without a table is rejected
with 415. Responses are always JSON, which every client accepts too.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

from lab.apiserver.errors import Object, bad_request, unsupported_media_type

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"

_Reader = Callable[[Any], Any]
_Message = dict[int, tuple[str, str]]
"""JSON name and type by field number. A type is `string`, `int`, `bool`, `time`, `intstr`, `map`, `bytemap`, or a
message of the table. The prefix `[]` marks a list; the suffix `?` keeps zero and false (pointers in Go)."""

_MESSAGES: dict[str, _Message] = {
    "TypeMeta": {1: ("apiVersion", "string"), 2: ("kind", "string")},
    "Unknown": {1: ("typeMeta", "TypeMeta"), 2: ("raw", "raw"), 3: ("contentEncoding", "string")},
    "ObjectMeta": {
        1: ("name", "string"),
        2: ("generateName", "string"),
        3: ("namespace", "string"),
        5: ("uid", "string"),
        6: ("resourceVersion", "string"),
        7: ("generation", "int"),
        8: ("creationTimestamp", "time"),
        9: ("deletionTimestamp", "time"),
        10: ("deletionGracePeriodSeconds", "int?"),
        11: ("labels", "map"),
        12: ("annotations", "map"),
        13: ("ownerReferences", "[]OwnerReference"),
        14: ("finalizers", "[]string"),
    },
    "OwnerReference": {
        1: ("kind", "string"),
        3: ("name", "string"),
        4: ("uid", "string"),
        5: ("apiVersion", "string"),
        6: ("controller", "bool?"),
        7: ("blockOwnerDeletion", "bool?"),
    },
    "DeleteOptions": {
        1: ("gracePeriodSeconds", "int?"),
        2: ("preconditions", "Preconditions"),
        3: ("orphanDependents", "bool?"),
        4: ("propagationPolicy", "string"),
        5: ("dryRun", "[]string"),
    },
    "Preconditions": {1: ("uid", "string"), 2: ("resourceVersion", "string")},
    "Namespace": {1: ("metadata", "ObjectMeta"), 2: ("spec", "NamespaceSpec"), 3: ("status", "NamespaceStatus")},
    "NamespaceSpec": {1: ("finalizers", "[]string")},
    "NamespaceStatus": {1: ("phase", "string")},
    "ConfigMap": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "map"),
        3: ("binaryData", "bytemap"),
        4: ("immutable", "bool?"),
    },
    "Secret": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "bytemap"),
        3: ("type", "string"),
        4: ("stringData", "map"),
        5: ("immutable", "bool?"),
    },
    "ServiceAccount": {
        1: ("metadata", "ObjectMeta"),
        3: ("imagePullSecrets", "[]LocalObjectReference"),
        4: ("automountServiceAccountToken", "bool?"),
    },
    "LocalObjectReference": {1: ("name", "string")},
    "Service": {1: ("metadata", "ObjectMeta"), 2: ("spec", "ServiceSpec"), 3: ("status", "ServiceStatus")},
    "ServiceSpec": {
        1: ("ports", "[]ServicePort"),
        2: ("selector", "map"),
        3: ("clusterIP", "string"),
        4: ("type", "string"),
        5: ("externalIPs", "[]string"),
        7: ("sessionAffinity", "string"),
        8: ("loadBalancerIP", "string"),
        9: ("loadBalancerSourceRanges", "[]string"),
        10: ("externalName", "string"),
        11: ("externalTrafficPolicy", "string"),
        12: ("healthCheckNodePort", "int"),
        13: ("publishNotReadyAddresses", "bool"),
        17: ("ipFamilyPolicy", "string"),
        18: ("clusterIPs", "[]string"),
        19: ("ipFamilies", "[]string"),
        22: ("internalTrafficPolicy", "string"),
    },
    "ServicePort": {
        1: ("name", "string"),
        2: ("protocol", "string"),
        3: ("port", "int"),
        4: ("targetPort", "intstr"),
        5: ("nodePort", "int"),
        6: ("appProtocol", "string"),
    },
    "ServiceStatus": {},
    "SelfSubjectReview": {1: ("metadata", "ObjectMeta")},
    "SelfSubjectAccessReview": {1: ("metadata", "ObjectMeta"), 2: ("spec", "AccessSpec")},
    "AccessSpec": {
        1: ("resourceAttributes", "ResourceAttributes"),
        2: ("nonResourceAttributes", "NonResourceAttributes"),
    },
    "ResourceAttributes": {
        1: ("namespace", "string"),
        2: ("verb", "string"),
        3: ("group", "string"),
        4: ("version", "string"),
        5: ("resource", "string"),
        6: ("subresource", "string"),
        7: ("name", "string"),
    },
    "NonResourceAttributes": {1: ("path", "string"), 2: ("verb", "string")},
}
_KINDS = frozenset(name for name, fields in _MESSAGES.items() if fields.get(1) == ("metadata", "ObjectMeta"))


def decode_protobuf(body: bytes) -> Object:
    """Return the object in a protobuf body.

    :raises ApiError: 400 for an invalid encoding, 415 for a kind without a table.
    """
    if not body.startswith(_MAGIC):
        raise bad_request("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        envelope = _read("Unknown", body[len(_MAGIC) :])
        type_meta: Object = envelope.get("typeMeta") or {}
        kind = type_meta.get("kind", "")
        if kind not in _KINDS and kind != "DeleteOptions":
            raise unsupported_media_type(["application/json", "application/yaml"])
        obj = _read(kind, envelope.get("raw", b""))
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise bad_request(f"error decoding protobuf: {error}") from None
    return {"apiVersion": type_meta.get("apiVersion", ""), "kind": kind, **obj}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and raw value of every field; the value is an int, or the bytes of a string or message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif wire_type == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("unexpected end")
            yield tag >> 3, data[at : at + size]
            at += size
        elif wire_type in (1, 5):
            width = 8 if wire_type == 1 else 4
            yield tag >> 3, data[at : at + width]
            at += width
        else:
            raise ValueError(f"wire type {wire_type}")


def _read(message: str, data: bytes) -> Object:
    """Decode one message; drop empty values, which Go's encoder writes, as JSON's `omitempty` does."""
    known = _MESSAGES[message]
    found: Object = {}
    for number, raw in _fields(data):
        if number not in known:
            continue
        name, kind = known[number]
        if kind.startswith("[]"):
            found.setdefault(name, []).append(_value(kind[2:], raw))
        elif kind in ("map", "bytemap"):
            key, value = _map_entry(raw, kind)
            found.setdefault(name, {})[key] = value
        else:
            value = _value(kind, raw)
            if kind.endswith("?") or value not in ("", None, 0):
                found[name] = value
    return found


def _map_entry(raw: bytes, kind: str) -> tuple[str, str]:
    entry = dict(_fields(raw))
    value: bytes = entry.get(2, b"")
    text = base64.b64encode(value).decode() if kind == "bytemap" else value.decode()
    return entry.get(1, b"").decode(), text


def _value(kind: str, raw: Any) -> Any:
    reader = _READERS.get(kind.rstrip("?"))
    return reader(raw) if reader is not None else _read(kind, raw)


def _signed(raw: int) -> int:
    # A negative number is encoded in two's complement, in 64 bits.
    return raw - (1 << 64) if raw >= 1 << 63 else raw


def _time(raw: bytes) -> str | None:
    seconds = dict(_fields(raw)).get(1, 0)
    if seconds <= 0 or seconds >= 1 << 40:  # Go's zero time is before 1970 and encoded as a huge number
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _int_or_string(raw: bytes) -> int | str:
    fields = dict(_fields(raw))
    if fields.get(1, 0) == 1:
        text: bytes = fields.get(3, b"")
        return text.decode()
    return _signed(fields.get(2, 0))


_READERS: dict[str, _Reader] = {
    "string": lambda raw: raw.decode(),
    "raw": lambda raw: raw,
    "int": _signed,
    "bool": bool,
    "time": _time,
    "intstr": _int_or_string,
}
