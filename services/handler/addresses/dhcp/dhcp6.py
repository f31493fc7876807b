"""Decode and encode DHCPv6 messages (RFC 8415). Pure.

Next: :mod:`services.handler.addresses.dhcp.dhcp6_replies`, which builds the replies.
"""

import struct
from enum import IntEnum
from ipaddress import IPv6Address

import msgspec

from services.handler.addresses.packets.frames import MalformedPacket

SERVER_PORT = 547
CLIENT_PORT = 546
"""UDP ports (RFC 8415 section 7.2)."""
MAX_OPTIONS = 64
"""Limit of options in one message; no real client sends more."""

_HEADER = struct.Struct("!HH")
_IA = struct.Struct("!4sII")
_ADDRESS = struct.Struct("!16sII")


class Dhcp6MessageType(IntEnum):
    """The message types of DHCPv6."""

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


class Dhcp6Option(IntEnum):
    """The DHCPv6 options that the handler reads or sends."""

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


class Dhcp6Status(IntEnum):
    """The status codes that the handler sends."""

    SUCCESS = 0
    NO_ADDRESSES = 2
    NOT_ON_LINK = 4
    NO_PREFIXES = 6


Dhcp6Options = tuple[tuple[int, bytes], ...]
"""Code and value of each option, in the order of the message."""


class Dhcp6Message(msgspec.Struct, frozen=True):
    """A DHCPv6 message between a client and a server.

    :ivar message_type: a :class:`Dhcp6MessageType`, or any other number.
    :ivar transaction: transaction id, three bytes.
    :ivar options: in their order; an option may occur several times.
    """

    message_type: int
    transaction: bytes
    options: Dhcp6Options = ()

    def first(self, option: Dhcp6Option) -> bytes | None:
        """Return the value of the first option with this code; ``None`` if there is none."""
        return next((value for code, value in self.options if code == option), None)


class IdentityAssociation(msgspec.Struct, frozen=True):
    """An IA_NA of a client.

    :ivar id: identifier (IAID), four bytes.
    :ivar addresses: that the client has or requests.
    """

    id: bytes
    addresses: tuple[IPv6Address, ...] = ()


def decode(data: bytes) -> Dhcp6Message:
    """Decode a message.

    :raises MalformedPacket: The message is cut off or has too many options.
    """
    if len(data) < 4:
        raise MalformedPacket(f"a DHCPv6 message of {len(data)} bytes is too short")
    return Dhcp6Message(data[0], data[1:4], decode_options(data[4:]))


def decode_options(data: bytes) -> Dhcp6Options:
    """Decode the options of a message, or those inside another option.

    :raises MalformedPacket: An option is cut off, or there are too many.
    """
    options: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if at + _HEADER.size > len(data) or len(options) == MAX_OPTIONS:
            raise MalformedPacket("the DHCPv6 options are cut off or too many")
        code, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if at + length > len(data):
            raise MalformedPacket(f"DHCPv6 option {code} is cut off")
        options.append((code, data[at : at + length]))
        at += length
    return tuple(options)


def encode(message: Dhcp6Message) -> bytes:
    """Encode a message."""
    return bytes([message.message_type]) + message.transaction + encode_options(message.options)


def encode_options(options: Dhcp6Options) -> bytes:
    """Encode options."""
    return b"".join(_HEADER.pack(code, len(value)) + value for code, value in options)


def decode_association(value: bytes) -> IdentityAssociation:
    """Decode the value of an IA_NA option.

    :raises MalformedPacket: The IA_NA or one of its addresses is cut off.
    """
    if len(value) < _IA.size:
        raise MalformedPacket("an IA_NA is cut off")
    addresses = []
    for code, inner in decode_options(value[_IA.size :]):
        if code == Dhcp6Option.IA_ADDRESS:
            if len(inner) < _ADDRESS.size:
                raise MalformedPacket("an address of an IA_NA is cut off")
            addresses.append(IPv6Address(inner[:16]))
    return IdentityAssociation(value[:4], tuple(addresses))


def encode_association(identifier: bytes, t1: int, t2: int, options: Dhcp6Options) -> bytes:
    """Encode the value of an IA_NA option.

    :param identifier: the IAID, four bytes.
    :param t1: seconds until the client renews.
    :param t2: seconds until the client rebinds.
    """
    return _IA.pack(identifier, t1, t2) + encode_options(options)


def address_option(ip: IPv6Address, lifetime: int) -> tuple[int, bytes]:
    """Return the IA Address option of an address.

    :param lifetime: preferred and valid lifetime, in seconds.
    """
    return Dhcp6Option.IA_ADDRESS, _ADDRESS.pack(ip.packed, lifetime, lifetime)


def status_option(code: Dhcp6Status, text: str) -> tuple[int, bytes]:
    """Return a Status Code option."""
    return Dhcp6Option.STATUS, code.to_bytes(2) + text.encode()
