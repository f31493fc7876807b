"""DHCPv4 messages (RFC 2131), read and built. Pure.

Options that are longer than 255 bytes are split and joined (RFC 3396). What a client might put into the fields
``sname`` and ``file`` is not read. Next: :mod:`services.handler.addresses.dhcp4_replies`, which answers them.
"""

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network

import msgspec

from services.handler.addresses.frames import Malformed

SERVER_PORT = 67
CLIENT_PORT = 68
BROADCAST_FLAG = 0x8000
MIN_LIMIT = 576
"""Bytes of IP packet that every client takes."""

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s192x")
_COOKIE = b"\x63\x82\x53\x63"
_HEADERS = 28  # of IPv4 and UDP
_SHORTEST = 300  # what BOOTP had; some clients take nothing shorter
_PAD, _END = 0, 255
_ETHERNET = 1


class Kind(IntEnum):
    """What a message is (option 53)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


_KINDS = {bytes([kind]): kind for kind in Kind}


class Option(IntEnum):
    """The options used here."""

    MASK = 1
    ROUTER = 3
    DNS = 6
    HOSTNAME = 12
    DOMAIN = 15
    MTU = 26
    REQUESTED = 50
    LEASE_TIME = 51
    KIND = 53
    SERVER = 54
    MESSAGE = 56
    MAX_SIZE = 57
    CLIENT_ID = 61
    SEARCH = 119
    CLASSLESS_ROUTES = 121


class Message(msgspec.Struct, frozen=True):
    """A message of a client (``op`` 1) or a server (2).

    :ivar ciaddr: what the client has already. :ivar yiaddr: what it is given. :ivar giaddr: a relay's address.
    :ivar chaddr: the client's MAC. :ivar options: by code, parts joined.
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
    def kind(self) -> Kind | None:
        """What it is; ``None`` for BOOTP and unknown ones."""
        raw = self.options.get(Option.KIND, b"")
        return _KINDS.get(raw)

    def address(self, option: Option) -> IPv4Address | None:
        """The one address in an option; ``None`` without it.

        :raises Malformed: it holds something else.
        """
        raw = self.options.get(option)
        if raw is None:
            return None
        if len(raw) != 4:
            raise Malformed(f"option {option.value} of {len(raw)} bytes should be an address")
        return IPv4Address(raw)

    def limit(self) -> int:
        """Bytes of message that the client takes."""
        raw = self.options.get(Option.MAX_SIZE, b"")
        size = int.from_bytes(raw) if len(raw) == 2 else 0
        return min(max(size, MIN_LIMIT), 1500) - _HEADERS


def decode(data: bytes) -> Message:
    """Read a message.

    :raises Malformed: it is none, or not of a client or server on Ethernet.
    """
    if len(data) < _FIXED.size + len(_COOKIE):
        raise Malformed(f"{len(data)} bytes are no DHCP message")
    op, hardware, length, _, xid, _, flags, ciaddr, yiaddr, _, giaddr, chaddr = _FIXED.unpack_from(data)
    if op not in (1, 2) or hardware != _ETHERNET or length != 6:
        raise Malformed(f"operation {op} on hardware {hardware} with addresses of {length} bytes")
    if data[_FIXED.size : _FIXED.size + len(_COOKIE)] != _COOKIE:
        raise Malformed("BOOTP without DHCP")
    return Message(
        op,
        xid,
        chaddr[:6],
        flags,
        IPv4Address(ciaddr),
        IPv4Address(yiaddr),
        IPv4Address(giaddr),
        _options(data[_FIXED.size + len(_COOKIE) :]),
    )


def encode(message: Message, limit: int = MIN_LIMIT - _HEADERS) -> bytes:
    """Build a message; an option that does not fit into ``limit`` bytes after those before it is left out."""
    fixed = _FIXED.pack(
        message.op, _ETHERNET, 6, 0, message.xid, 0, message.flags,
        message.ciaddr.packed, message.yiaddr.packed, bytes(4), message.giaddr.packed, message.chaddr,
    )  # fmt: skip
    data = fixed + _COOKIE
    for code, value in message.options.items():
        option = _encoded(code, value)
        if len(data) + len(option) + 1 <= limit:
            data += option
    data += bytes([_END])
    return data.ljust(_SHORTEST, b"\0")


def classless_routes(routes: Iterable[tuple[IPv4Network, IPv4Address]]) -> bytes:
    """The value of option 121 (RFC 3442); the next hop 0.0.0.0 is the link itself."""
    return b"".join(
        bytes([network.prefixlen]) + network.network_address.packed[: (network.prefixlen + 7) // 8] + hop.packed
        for network, hop in routes
    )


def _options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise Malformed(f"option {data[at]} is cut off")
        code, length = data[at], data[at + 1]
        options[code] = options.get(code, b"") + data[at + 2 : at + 2 + length]
        at += 2 + length
    return options


def _encoded(code: int, value: bytes) -> bytes:
    parts = [value[start : start + 255] for start in range(0, len(value), 255)] or [b""]
    return b"".join(bytes([code, len(part)]) + part for part in parts)
