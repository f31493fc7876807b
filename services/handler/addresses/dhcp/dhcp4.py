"""Decode and encode DHCPv4 messages (RFC 2131). Pure.

Options longer than 255 bytes are split and joined (RFC 3396). Options that a client puts into the fields ``sname`` and
``file`` (option overload) are not read.
Next: :mod:`services.handler.addresses.dhcp.dhcp4_replies`, which builds the replies.
"""

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network

import msgspec

from services.handler.addresses.packets.frames import MalformedPacket

SERVER_PORT = 67
CLIENT_PORT = 68
"""UDP ports (RFC 2131 section 4.1)."""
BROADCAST_FLAG = 0x8000
"""Set by a client that receives no unicast before it has an address (RFC 2131 section 4.1)."""
MIN_PACKET_SIZE = 576
"""Size in bytes of the IP packet that every client must accept (RFC 2131 section 2)."""

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s192x")
_COOKIE = b"\x63\x82\x53\x63"
_HEADERS_SIZE = 28  # IPv4 and UDP
# The size of a BOOTP message (RFC 951). Some clients drop anything shorter.
_MIN_MESSAGE_SIZE = 300
_PAD, _END = 0, 255
_ETHERNET = 1


class Dhcp4MessageType(IntEnum):
    """The message types of DHCPv4 (option 53)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


_MESSAGE_TYPES = {bytes([message_type]): message_type for message_type in Dhcp4MessageType}


class Dhcp4Option(IntEnum):
    """The DHCPv4 options that the handler reads or sends."""

    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    HOSTNAME = 12
    DOMAIN = 15
    MTU = 26
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    MESSAGE = 56
    MAX_MESSAGE_SIZE = 57
    CLIENT_ID = 61
    SEARCH = 119
    CLASSLESS_ROUTES = 121


class Dhcp4Message(msgspec.Struct, frozen=True):
    """A DHCPv4 message.

    :ivar op: 1 in a message of a client, 2 in one of a server.
    :ivar xid: transaction id.
    :ivar chaddr: MAC of the client, six bytes.
    :ivar ciaddr: address that the client already has.
    :ivar yiaddr: address that the server assigns.
    :ivar giaddr: address of a relay agent.
    :ivar options: by code; the parts of a split option are joined.
    """

    op: int
    xid: int
    chaddr: bytes
    flags: int = 0
    ciaddr: IPv4Address = IPv4Address(0)
    yiaddr: IPv4Address = IPv4Address(0)
    giaddr: IPv4Address = IPv4Address(0)
    options: Mapping[int, bytes] = {}

    @property
    def message_type(self) -> Dhcp4MessageType | None:
        """The message type; ``None`` for BOOTP and for unknown types."""
        raw = self.options.get(Dhcp4Option.MESSAGE_TYPE, b"")
        return _MESSAGE_TYPES.get(raw)

    def address(self, option: Dhcp4Option) -> IPv4Address | None:
        """Return the address that an option holds; ``None`` if the option is missing.

        :raises MalformedPacket: The option does not hold exactly one address.
        """
        raw = self.options.get(option)
        if raw is None:
            return None
        if len(raw) != 4:
            raise MalformedPacket(f"DHCPv4 option {option.value} has {len(raw)} bytes, expected an IPv4 address")
        return IPv4Address(raw)

    def max_size(self) -> int:
        """Return the size in bytes of the largest message that the client accepts (option 57)."""
        raw = self.options.get(Dhcp4Option.MAX_MESSAGE_SIZE, b"")
        size = int.from_bytes(raw) if len(raw) == 2 else 0
        # At most one Ethernet frame, whatever the client accepts.
        return min(max(size, MIN_PACKET_SIZE), 1500) - _HEADERS_SIZE


def decode(data: bytes) -> Dhcp4Message:
    """Decode a message.

    :raises MalformedPacket: The data is no DHCPv4 message of a client or server on Ethernet.
    """
    if len(data) < _FIXED.size + len(_COOKIE):
        raise MalformedPacket(f"a DHCPv4 message of {len(data)} bytes is too short")
    op, hardware, length, _, xid, _, flags, ciaddr, yiaddr, _, giaddr, chaddr = _FIXED.unpack_from(data)
    if op not in (1, 2) or hardware != _ETHERNET or length != 6:
        raise MalformedPacket(
            f"unsupported DHCPv4 message: operation {op}, hardware type {hardware}, hardware address length {length}"
        )
    if data[_FIXED.size : _FIXED.size + len(_COOKIE)] != _COOKIE:
        raise MalformedPacket("a BOOTP message without the DHCP magic cookie")
    return Dhcp4Message(
        op,
        xid,
        chaddr[:6],
        flags,
        IPv4Address(ciaddr),
        IPv4Address(yiaddr),
        IPv4Address(giaddr),
        _decode_options(data[_FIXED.size + len(_COOKIE) :]),
    )


def encode(message: Dhcp4Message, max_size: int = MIN_PACKET_SIZE - _HEADERS_SIZE) -> bytes:
    """Encode a message; an option that does not fit after those before it is left out.

    :param max_size: of the message, in bytes.
    """
    fixed = _FIXED.pack(
        message.op, _ETHERNET, 6, 0, message.xid, 0, message.flags,
        message.ciaddr.packed, message.yiaddr.packed, bytes(4), message.giaddr.packed, message.chaddr,
    )  # fmt: skip
    data = fixed + _COOKIE
    for code, value in message.options.items():
        option = _encode_option(code, value)
        if len(data) + len(option) + 1 <= max_size:
            data += option
    data += bytes([_END])
    return data.ljust(_MIN_MESSAGE_SIZE, b"\0")


def classless_routes(routes: Iterable[tuple[IPv4Network, IPv4Address]]) -> bytes:
    """Return the value of option 121 (RFC 3442) for networks and their next hops; next hop 0.0.0.0 means on link."""
    # RFC 3442: only the significant octets of the destination are sent.
    return b"".join(
        bytes([network.prefixlen]) + network.network_address.packed[: (network.prefixlen + 7) // 8] + hop.packed
        for network, hop in routes
    )


def _decode_options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise MalformedPacket(f"DHCPv4 option {data[at]} is cut off")
        code, length = data[at], data[at + 1]
        # RFC 3396: an option that occurs several times is one value in several parts.
        options[code] = options.get(code, b"") + data[at + 2 : at + 2 + length]
        at += 2 + length
    return options


def _encode_option(code: int, value: bytes) -> bytes:
    parts = [value[start : start + 255] for start in range(0, len(value), 255)] or [b""]
    return b"".join(bytes([code, len(part)]) + part for part in parts)
