"""How names are put into NATS subjects, key-value keys and consumer names.

NATS gives ``.``, ``*``, ``>`` and white space a meaning in subjects and refuses ``%`` in key-value keys, so every
byte outside ``[A-Za-z0-9_-]`` of a token is written as ``%XX`` in a subject and as ``=XX`` in a key.
Next: :mod:`schemas.stages`, the first token of every subject.
"""

import hashlib
import re
from typing import NamedTuple

SUBJECT_ROOT = "hotplug"
STREAM = "HOTPLUG"
"""The stream that keeps the events."""
DEAD_ROOT = "hotplug-dead"
"""First token of a dead letter's subject, in place of the original's."""
DEAD_STREAM = "HOTPLUG_DEAD"
"""The stream that keeps messages no consumer could use."""
NO_NODE = "_"
"""Node token of an event that no node is known for (yet)."""
NO_VMI = "_"
"""VMI token of an event about an ordinary pod."""

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_-]+")
_SUBJECT_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|%[0-9A-F]{2})+")
_KEY_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")


def _escape(text: str, mark: str) -> str:
    if not text:
        raise ValueError("an empty name cannot be a token")
    if _PLAIN_TEXT.fullmatch(text):
        return text
    return "".join(chr(b) if b in _PLAIN else f"{mark}{b:02X}" for b in text.encode())


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
    """The parts of one subject ``hotplug.<stage>.<node>.<namespace>.<vmi>``, decoded."""

    stage: str
    node: str
    namespace: str
    vmi: str

    def __str__(self) -> str:
        tokens = (_escape(part, "%") for part in self)
        return ".".join((SUBJECT_ROOT, *tokens))


def parse_subject(subject: str) -> Subject:
    """Decode a subject.

    :raises ValueError: it is not one of hotnic's subjects.
    """
    root, *tokens = subject.split(".")
    if root != SUBJECT_ROOT or len(tokens) != 4:
        raise ValueError(f"not a hotplug subject: {subject!r}")
    return Subject(*(_unescape(token, "%", _SUBJECT_TOKEN) for token in tokens))


def node_filter(node: str) -> str:
    """The one filter of a node role's consumer: everything that concerns its node."""
    return f"{SUBJECT_ROOT}.*.{_escape(node, '%')}.>"


def stage_filter(stage: str) -> str:
    """Everything of one stage, of all nodes."""
    return f"{SUBJECT_ROOT}.{_escape(stage, '%')}.>"


def vmi_filter(namespace: str, vmi: str) -> str:
    """Everything about one VMI, of whatever stage and node."""
    return f"{SUBJECT_ROOT}.*.*.{_escape(namespace, '%')}.{_escape(vmi, '%')}"


def node_consumer(role: str, node: str) -> str:
    """The name of a node role's consumer: ``<role>_<16 hex of SHA-256(node)>`` (no dots: nats-py refuses them)."""
    return f"{role}_{hashlib.sha256(node.encode()).hexdigest()[:16]}"


class StatusKey(NamedTuple):
    """The parts of one key ``<namespace>.<vmi>.<h>`` of the bucket ``hotplug-status``, decoded."""

    namespace: str
    vmi: str
    interface_hash: str

    def __str__(self) -> str:
        return ".".join(_escape(part, "=") for part in self)


def parse_status_key(key: str) -> StatusKey:
    """Decode a key of the ladder's bucket.

    :raises ValueError: it is not one of hotnic's keys.
    """
    tokens = key.split(".")
    if len(tokens) != 3:
        raise ValueError(f"not an operation key: {key!r}")
    return StatusKey(*(_unescape(token, "=", _KEY_TOKEN) for token in tokens))
