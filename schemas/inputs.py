"""Decode what comes from outside: the one way in, where every failure is one class of error with a bounded message.

An edge is a place where data enters that hotnic did not write: objects of the API server, configurations, responses of
plugins and guests, messages of the bus. The module decodes JSON, bounds its size and depth, and counts what it rejects.
It does not know what a value means: the edges check that, and count it by :func:`reject` or :func:`rejecting`.
Next: :mod:`services.common.telemetry.metrics`, which reads :data:`REJECTED`.
"""

import itertools
import operator
import re
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, Generic, TypeVar

import msgspec

T = TypeVar("T")

MAX_BYTES: Final = 8 * 1024 * 1024
"""Limit of one document. The Kubernetes API accepts 3 MiB, and serves an object with its system fields."""
MAX_DEPTH: Final = 64
"""Levels of what has no schema, with the list around it. hotnic encodes, compares and copies it recursively."""
MAX_TEXT: Final = 300
"""Characters of an error message, which may quote the input."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TO_BRACKET: Final = re.compile(rb'(?:[^][{}"]++|' + _STRING + rb")*+[][{}]", re.DOTALL)
_TO_SEPARATOR: Final = re.compile(rb'(?:[^][{},"]++|' + _STRING + rb")*+[][{},]", re.DOTALL)
"""Up to the next bracket, or to the next bracket or comma, outside of strings."""
_MEMBER: Final = re.compile(rb"\s*(" + _STRING + rb")\s*:", re.DOTALL)
_OPENING, _COMMA = b"[{", ord(",")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b'[]{}"'))
_NO_VALUES: Final = bytes(set(range(256)) - set(b'[{,"'))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")
"""What a bracket adds to the depth, as a signed byte."""
_encode = msgspec.json.Encoder(enc_hook=repr).encode


class Edge(StrEnum):
    """Where data comes in; a label of the metric."""

    KUBE = "kube"
    API = "api"
    MULTUS = "multus"
    ANNOTATION = "annotation"
    NETWORK = "network"
    CNI = "cni"
    CRI = "cri"
    AGENT = "agent"
    DOMAIN = "domain"
    PACKET = "packet"
    BUS = "bus"
    KV = "kv"
    FILE = "file"


class RejectReason(StrEnum):
    """Why an input was rejected; a label of the metric."""

    TOO_LARGE = "TooLarge"
    TOO_DEEP = "TooDeep"
    TOO_MANY = "TooMany"
    MALFORMED = "Malformed"
    """It is not of the edge's format, such as JSON in UTF-8."""
    INVALID = "Invalid"
    """It is of the format, and a value has the wrong type or is impossible."""


class RejectedInput(ValueError):
    """An input that an edge rejected; ``str()`` is one line of printable text. Created by :func:`reject`."""

    def __init__(self, edge: Edge, reason: RejectReason, text: str) -> None:
        super().__init__(text)
        self.edge = edge
        self.reason = reason


class RejectedInputs:
    """Counts the rejected inputs of this process. Decoders are used in several threads."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[Edge, RejectReason]] = Counter()
        self._lock = threading.Lock()

    def count(self, edge: Edge, reason: RejectReason) -> None:
        """Count one."""
        with self._lock:
            self._counts[edge, reason] += 1

    def counts(self) -> dict[tuple[Edge, RejectReason], int]:
        """Return the numbers so far."""
        with self._lock:
            return dict(self._counts)


REJECTED: Final = RejectedInputs()
"""One for the process: pure decoders have no telemetry."""


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Return text as one line that a log or a terminal can show: other characters escaped, and cut to a length."""
    cut = text if len(text) <= limit else f"{text[: limit - 1]}…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def is_text(value: str) -> bool:
    """Return whether a string can be sent: it has no surrogates, as they stand for bytes that are not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: str) -> str:
    """Return text with a space for each character that a terminal would interpret or that ends a line."""
    return "".join(char if char.isprintable() else " " for char in text)


def reject(edge: Edge, reason: RejectReason, text: str) -> RejectedInput:
    """Count a rejected input, and return the error to raise.

    :param text: what is wrong; it may quote the input.
    """
    REJECTED.count(edge, reason)
    return RejectedInput(edge, reason, printable(text))


def check_count(edge: Edge, count: int, limit: int, text: str) -> None:
    """Refuse an input that has too many of something.

    :param text: what has how many; the error adds the limit.
    :raises RejectedInput: there are more than the limit.
    """
    if count > limit:
        raise reject(edge, RejectReason.TOO_MANY, f"{text}; the limit is {limit}")


@contextmanager
def rejecting(edge: Edge) -> Iterator[None]:
    """Turn any exception of a parser into a :class:`RejectedInput`, for edges that are not decoded here."""
    try:
        yield
    except RejectedInput:
        raise
    except Exception as error:
        raise _rejected(edge, error) from error


class InputDecoder(Generic[T]):
    """Decodes the JSON of one edge into one type. It is used in place of ``msgspec.json.Decoder``.

    :param max_bytes: limit of a document; ``None`` for a collection, whose elements are decoded one by one.
    """

    def __init__(self, edge: Edge, kind: type[T], *, max_bytes: int | None = MAX_BYTES) -> None:
        self._edge = edge
        self._decode: Callable[[Any], T] = msgspec.json.Decoder(kind).decode
        self._max_bytes = max_bytes
        self._kind = kind

    @cached_property
    def _open(self) -> Callable[[Any], object] | None:
        # On first use: it takes as long as some hundred decodes, and a command needs few of its modules' decoders.
        return _open_part(msgspec.inspect.type_info(self._kind))

    def decode(self, data: bytes | str | msgspec.Raw) -> T:
        """Decode a document.

        :raises RejectedInput: anything is wrong with it.
        """
        try:
            return self.decode_shallow(data)
        except RecursionError as error:
            raise reject(self._edge, RejectReason.TOO_DEEP, str(error)) from error

    def decode_shallow(self, data: bytes | str | msgspec.Raw) -> T:
        """Decode a document whose parts can be found by :func:`find_member` if it is nested too deeply.

        :raises RecursionError: it is. This is not counted, because the caller rejects the part that is.
        :raises RejectedInput: anything else is wrong with it.
        """
        if self._max_bytes is not None and len(data) > self._max_bytes:
            text = f"{len(data)} bytes; the limit is {self._max_bytes}"
            raise reject(self._edge, RejectReason.TOO_LARGE, text)
        try:
            value = self._decode(data)
            # What has a schema has its depth. The rest is small: encoding it is cheaper than to scan all of the data.
            deep = self._open is not None and is_deep(_encode(self._open(value)))
        except RecursionError as error:
            raise RecursionError("nested too deeply") from error
        except Exception as error:
            raise _rejected(self._edge, error) from error
        if deep:
            raise RecursionError(f"nested more than {MAX_DEPTH} levels")
        return value


def is_deep(data: bytes) -> bool:
    """Return whether well-formed JSON has more than :data:`MAX_DEPTH` levels."""
    if data.count(b"{") + data.count(b"[") <= MAX_DEPTH:
        return False
    # No loop over the brackets: whoever wrote them chose how many there are.
    steps = array("b", _punctuation(data, _NO_BRACKETS).translate(_STEPS))
    return max(itertools.accumulate(steps), default=0) > MAX_DEPTH


def count_values(data: bytes) -> int:
    """Return how many values well-formed JSON has, inner ones included; an empty list or object may count as two."""
    return len(_punctuation(data, _NO_VALUES))


def _punctuation(data: bytes, others: bytes) -> bytes:
    """Return well-formed JSON without its strings and without other bytes.

    :param others: these bytes; quotes are not among them.
    """
    # First the escapes go, then all quotes between which is nothing of interest, then what is in strings.
    plain = data.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, others).replace(b'""', b"")
    return b"".join(plain.split(b'"')[::2])


def find_member(data: bytes, *path: str) -> bytes | None:
    """Return a member of an object, undecoded and without recursion; ``None`` if there is none.

    A decoder descends into what it skips, and so fails on a document that is nested too deeply anywhere. This looks
    only at what precedes the member, and at its end.

    :param path: names of the member and of the objects around it, outermost first.
    :raises ValueError: the data is no JSON.
    """
    at = 0
    for name in path:
        found = _find(data, at, name)
        if found is None:
            return None
        at = found
    return data[at : _skip(data, at)].strip()


def split_elements(data: bytes) -> list[bytes]:
    """Return the elements of an array, undecoded and without recursion.

    :raises ValueError: the data is no array.
    """
    at = _enter(data, 0, ord("["))
    elements = []
    while True:
        end = _skip(data, at)
        elements.append(data[at:end].strip())
        if data[end] != _COMMA:
            return elements if elements != [b""] else []
        at = end + 1


def _find(data: bytes, at: int, name: str) -> int | None:
    """Return where the value of a member begins, in the object that begins at an index."""
    at = _enter(data, at, ord("{"))
    while (member := _MEMBER.match(data, at)) is not None:
        if msgspec.json.decode(member[1], type=str) == name:
            return member.end()
        end = _skip(data, member.end())
        if data[end] != _COMMA:
            return None
        at = end + 1
    return None


def _enter(data: bytes, at: int, bracket: int) -> int:
    found = _TO_SEPARATOR.match(data, at)
    if found is None or found[0].strip() != bytes([bracket]):
        raise ValueError(f"no {bytes([bracket]).decode()!r} where it was expected")
    return found.end()


def _skip(data: bytes, at: int) -> int:
    """Return where a value ends: the index of the comma or the closing bracket behind it."""
    depth = 0
    while (found := (_TO_BRACKET if depth else _TO_SEPARATOR).match(data, at)) is not None:
        at = found.end()
        mark = data[at - 1]
        if mark in _OPENING:
            depth += 1
        elif depth == 0:
            return at - 1
        else:
            depth -= 1
    raise ValueError("the document is cut off")


def _rejected(edge: Edge, error: Exception) -> RejectedInput:
    if isinstance(error, RecursionError):
        return reject(edge, RejectReason.TOO_DEEP, "nested too deeply")
    if isinstance(error, UnicodeError):
        return reject(edge, RejectReason.MALFORMED, "not UTF-8")
    if type(error) is msgspec.DecodeError:
        return reject(edge, RejectReason.MALFORMED, str(error))
    # An exception without a text says at least what it is.
    return reject(edge, RejectReason.INVALID, str(error) or type(error).__name__)


def _open_part(kind: msgspec.inspect.Type) -> Callable[[Any], object] | None:
    """Return a function that returns the parts of a value that have no schema; ``None`` for a type without such parts.

    It descends into structs only. Any other part that contains one without a schema is returned as a whole.
    """
    found = list(_open_fields(kind, ""))
    if not found:
        return None
    return operator.attrgetter(*found) if found != [""] else lambda value: value


def _open_fields(kind: msgspec.inspect.Type, path: str) -> Iterator[str]:
    if isinstance(kind, msgspec.inspect.StructType) and not kind.array_like:
        for field in kind.fields:
            yield from _open_fields(field.type, f"{path}.{field.name}" if path else field.name)
    elif _is_open(kind):
        yield path


def _is_open(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.AnyType):
        return True
    inner: list[Any] = []
    for name in kind.__struct_fields__:
        part = getattr(kind, name)
        inner += part if isinstance(part, tuple) else [part]
    parts = [part.type if isinstance(part, msgspec.inspect.Field) else part for part in inner]
    return any(_is_open(part) for part in parts if isinstance(part, msgspec.inspect.Type))
