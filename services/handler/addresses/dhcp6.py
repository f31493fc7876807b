"""DHCPv6 messages (RFC 8415), read and built. Pure. Next: :mod:`services.handler.addresses.dhcp6_replies`."""

import struct
from enum import IntEnum
from ipaddress import IPv6Address

import msgspec

from services.handler.addresses.frames import Malformed

SERVER_PORT = 547
CLIENT_PORT = 546
MAX_OPTIONS = 64
"""In one message: beyond that no client means it."""

_HEADER = struct.Struct("!HH")
_IA = struct.Struct("!4sII")
_ADDRESS = struct.Struct("!16sII")


class Kind(IntEnum):
    """What a message is."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    INFORMATION_REQUEST = 11


class Option(IntEnum):
    """The options used here."""

    CLIENT_ID = 1
    SERVER_ID = 2
    IA_NA = 3
    IA_TA = 4
    IA_ADDRESS = 5
    PREFERENCE = 7
    STATUS = 13
    RAPID_COMMIT = 14
    DNS = 23
    SEARCH = 24
    IA_PD = 25


class Status(IntEnum):
    """How something went."""

    SUCCESS = 0
    NO_ADDRESSES = 2
    NOT_ON_LINK = 4
    NO_PREFIXES = 6


Options = tuple[tuple[int, bytes], ...]


class Message(msgspec.Struct, frozen=True):
    """A message between a client and a server. ``options`` in their order; some come several times."""

    kind: int
    transaction: bytes
    options: Options = ()

    def first(self, option: Option) -> bytes | None:
        """The first option of its kind; ``None`` without one."""
        return next((value for code, value in self.options if code == option), None)


class Association(msgspec.Struct, frozen=True):
    """An IA_NA of a client: an identifier and the addresses that it has or would like."""

    id: bytes
    addresses: tuple[IPv6Address, ...] = ()


def decode(data: bytes) -> Message:
    """Read a message.

    :raises Malformed: it is cut off, or has too many options.
    """
    if len(data) < 4:
        raise Malformed(f"{len(data)} bytes are no DHCPv6 message")
    return Message(data[0], data[1:4], decode_options(data[4:]))


def decode_options(data: bytes) -> Options:
    """Read options, of a message or inside of one.

    :raises Malformed: they are cut off, or too many.
    """
    options: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if at + _HEADER.size > len(data) or len(options) == MAX_OPTIONS:
            raise Malformed("options that are cut off, or too many")
        code, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if at + length > len(data):
            raise Malformed(f"option {code} is cut off")
        options.append((code, data[at : at + length]))
        at += length
    return tuple(options)


def encode(message: Message) -> bytes:
    """Build a message."""
    return bytes([message.kind]) + message.transaction + encode_options(message.options)


def encode_options(options: Options) -> bytes:
    """Build options."""
    return b"".join(_HEADER.pack(code, len(value)) + value for code, value in options)


def decode_association(value: bytes) -> Association:
    """Read an IA_NA.

    :raises Malformed: it is cut off.
    """
    if len(value) < _IA.size:
        raise Malformed("an IA_NA is cut off")
    addresses = []
    for code, inner in decode_options(value[_IA.size :]):
        if code == Option.IA_ADDRESS:
            if len(inner) < _ADDRESS.size:
                raise Malformed("an address of an IA_NA is cut off")
            addresses.append(IPv6Address(inner[:16]))
    return Association(value[:4], tuple(addresses))


def association(identifier: bytes, t1: int, t2: int, options: Options) -> bytes:
    """Build an IA_NA; times in seconds."""
    return _IA.pack(identifier, t1, t2) + encode_options(options)


def address(ip: IPv6Address, lifetime: int) -> tuple[int, bytes]:
    """An address inside an IA_NA, for so many seconds."""
    return Option.IA_ADDRESS, _ADDRESS.pack(ip.packed, lifetime, lifetime)


def status(code: Status, text: str) -> tuple[int, bytes]:
    """How something went, for a program and for people."""
    return Option.STATUS, code.to_bytes(2) + text.encode()
