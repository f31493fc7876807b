"""Encoding of names into NATS subjects, key-value keys and consumer names.

NATS gives ``.``, ``*``, ``>`` and white space a meaning in subjects and rejects ``%`` in key-value keys.
So every byte of a token outside ``[A-Za-z0-9_-]`` is encoded as ``%XX`` in a subject and as ``=XX`` in a key.
Next: :mod:`schemas.stages`, the first token after ``hotplug`` in every subject.
"""

import hashlib
import re
from typing import NamedTuple

SUBJECT_ROOT = "hotplug"
STREAM = "HOTPLUG"
"""The stream that stores the events."""
# Not below `hotplug`: NATS refuses two streams whose subjects overlap.
DEAD_ROOT = "hotplug-dead"
"""First token of a dead letter's subject; it replaces ``hotplug``."""
DEAD_STREAM = "HOTPLUG_DEAD"
"""The stream that stores the dead letters."""
BUCKET_STREAM_PREFIX = "KV_"
"""What NATS puts before the name of a bucket, for the name of its stream."""
NO_NODE = "_"
"""Node token of an event while its node is unknown."""
NO_VMI = "_"
"""VMI token of an event about an ordinary pod."""
CONTROLLER_CONSUMER = "controller"
"""The consumer by which the leading controller reconciles."""
PROJECTOR_CONSUMER = "projector"
"""The consumer by which it projects the hot-plug status; it gets every event."""
CONSUMER_ROOT = "hotnic.consumers"
"""First tokens of a request for the consumer of a role of a node; role and node follow (docs/adr/0043)."""
STORED_ROOT = "hotnic.stored"
"""First tokens of a notice that a stream has stored a message; the subject of the message follows."""

_PLAIN_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_-]+")
_SUBJECT_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|%[0-9A-F]{2})+")
_KEY_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")


def _escape(text: str, mark: str) -> str:
    # NATS has no empty tokens.
    if not text:
        raise ValueError("an empty name cannot be a token")
    if _PLAIN_TEXT.fullmatch(text):
        return text
    return "".join(chr(b) if b in _PLAIN_BYTES else f"{mark}{b:02X}" for b in text.encode())


def _unescape(token: str, mark: str, form: re.Pattern[str]) -> str:
    if not form.fullmatch(token):
        raise ValueError(f"not an encoded token: {token!r}")
    raw, i = bytearray(), 0
    while i < len(token):
        if token[i] == mark:
            raw.append(int(token[i + 1 : i + 3], 16))
            i += 3
        else:
            raw.append(ord(token[i]))
            i += 1
    return raw.decode()


class Subject(NamedTuple):
    """The decoded tokens of a subject ``hotplug.<stage>.<node>.<namespace>.<vmi>``."""

    stage: str
    node: str
    namespace: str
    vmi: str

    def __str__(self) -> str:
        tokens = (_escape(part, "%") for part in self)
        return ".".join((SUBJECT_ROOT, *tokens))


def parse_subject(subject: str) -> Subject:
    """Decode a subject.

    :raises ValueError: it is not a subject of hotnic.
    """
    root, *tokens = subject.split(".")
    if root != SUBJECT_ROOT or len(tokens) != 4:
        raise ValueError(f"not a hotplug subject: {subject!r}")
    return Subject(*(_unescape(token, "%", _SUBJECT_TOKEN) for token in tokens))


def node_token(node: str) -> str:
    """Return a node's name as the token of a subject.

    :raises ValueError: the name is empty.
    """
    return _escape(node, "%")


def node_filter(node: str) -> str:
    """Return the subject filter of a node role's consumer: all events of its node."""
    return f"{SUBJECT_ROOT}.*.{node_token(node)}.>"


def stage_filter(stage: str) -> str:
    """Return the subject filter for all events of one stage, on any node."""
    return f"{SUBJECT_ROOT}.{_escape(stage, '%')}.>"


def vmi_filter(namespace: str, vmi: str) -> str:
    """Return the subject filter for all events of one VMI, of any stage and node."""
    return f"{SUBJECT_ROOT}.*.*.{_escape(namespace, '%')}.{_escape(vmi, '%')}"


def node_consumer(role: str, node: str) -> str:
    """Return the name of a node role's consumer: ``<role>_<16 hex digits of SHA-256(node)>``.

    The node name is hashed because nats-py rejects dots in consumer names.
    """
    return f"{role}_{hashlib.sha256(node.encode()).hexdigest()[:16]}"


def consumer_request(role: str, node: str) -> str:
    """Return the subject on which a role of a node requests its consumer."""
    return f"{CONSUMER_ROOT}.{role}.{node_token(node)}"


def parse_consumer_request(subject: str) -> tuple[str, str]:
    """Return role and node of a request for a consumer.

    :raises ValueError: it is no subject of such a request.
    """
    prefix = f"{CONSUMER_ROOT}."
    role, dot, token = subject.removeprefix(prefix).partition(".")
    if not subject.startswith(prefix) or not dot:
        raise ValueError(f"not a request for a consumer: {subject!r}")
    return _unescape(role, "%", _SUBJECT_TOKEN), _unescape(token, "%", _SUBJECT_TOKEN)


def stored_notice(subject: str) -> str:
    """Return the subject of the notice that a stream has stored a message, for its subject or a filter."""
    return f"{STORED_ROOT}.{subject}"


class StatusKey(NamedTuple):
    """The decoded tokens of a key ``<namespace>.<vmi>.<h>`` of the bucket ``hotplug-status``."""

    namespace: str
    vmi: str
    interface_hash: str

    def __str__(self) -> str:
        return ".".join(_escape(part, "=") for part in self)


def parse_status_key(key: str) -> StatusKey:
    """Decode a key of the hot-plug status bucket.

    :raises ValueError: it is not a key of hotnic.
    """
    tokens = key.split(".")
    if len(tokens) != 3:
        raise ValueError(f"not a hot-plug status key: {key!r}")
    return StatusKey(*(_unescape(token, "=", _KEY_TOKEN) for token in tokens))
