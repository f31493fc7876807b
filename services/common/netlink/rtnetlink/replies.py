"""Parsers of rtnetlink replies that decode only the attributes hotnic uses. Pure.

A bridge link carries about eighty attributes. pyroute2 decodes all of them, which costs milliseconds per link and
request. Layouts: linux/if_link.h, if_addr.h, rtnetlink.h.
Next: :mod:`services.common.netlink.rtnetlink.connection`, which receives the replies.
"""

import ipaddress
import socket
import struct
from collections.abc import Iterator

from services.common.netlink.links import Address, Link, Route

HEADER = 16
"""Bytes of ``struct nlmsghdr``."""
IFF_UP = 1

_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HxxI")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_SCOPE_LINK = 253
_TABLE_MAIN = 254
_UNICAST = 1
_MACVLAN_MODES = {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"}

Attributes = dict[int, bytes]


def parse_attributes(data: bytes) -> Attributes:
    """Return the attributes in a byte string, undecoded. Parsing stops at a truncated or malformed attribute."""
    return dict(_iter_attributes(data))


def _iter_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            return
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def parse_link(message: bytes) -> Link:
    """Parse an ``RTM_NEWLINK`` message.

    :raises ValueError: the message is too short.
    """
    _, _, index, flags, _ = _unpack_header(_IFINFO, message)
    found = parse_attributes(message[HEADER + _IFINFO.size :])
    info = parse_attributes(found.get(18, b""))  # IFLA_LINKINFO
    kind = _text(info.get(1))  # IFLA_INFO_KIND
    data = parse_attributes(info.get(2, b""))  # IFLA_INFO_DATA
    learning = multi_queue = mode = None
    if _text(info.get(4)) == "bridge":  # IFLA_INFO_SLAVE_KIND
        port = parse_attributes(info.get(5, b""))  # IFLA_INFO_SLAVE_DATA
        learning = port[8] != b"\0" if 8 in port else None  # IFLA_BRPORT_LEARNING
    if kind == "tun" and 7 in data:  # IFLA_TUN_MULTI_QUEUE
        multi_queue = data[7] != b"\0"
    elif kind in {"macvlan", "macvtap"}:
        number = _number(data.get(1))  # IFLA_MACVLAN_MODE
        mode = _MACVLAN_MODES.get(number) if number is not None else None
    return Link(
        index=index,
        name=_text(found.get(3)) or "",  # IFLA_IFNAME
        kind=kind,
        mac=found.get(1, b"").hex(":"),  # IFLA_ADDRESS
        mtu=_number(found.get(4)) or 0,  # IFLA_MTU
        up=bool(flags & IFF_UP),
        master=_number(found.get(10)),  # IFLA_MASTER
        link=_number(found.get(5)),  # IFLA_LINK
        mode=mode,
        learning=learning,
        multi_queue=multi_queue,
    )


def parse_address(message: bytes) -> Address:
    """Parse an ``RTM_NEWADDR`` message.

    :raises ValueError: the message is too short or holds no address.
    """
    _, length, _, scope, index = _unpack_header(_IFADDR, message)
    found = parse_attributes(message[HEADER + _IFADDR.size :])
    # IFA_ADDRESS is the peer's address on a point-to-point link, so IFA_LOCAL comes first.
    raw = found.get(2) or found.get(1)  # IFA_LOCAL, IFA_ADDRESS
    if raw is None:
        raise ValueError("RTM_NEWADDR without an address")
    return Address(index, f"{ipaddress.ip_address(raw)}/{length}", scope == _SCOPE_LINK)


def parse_routes(message: bytes) -> list[Route]:
    """Parse an ``RTM_NEWROUTE`` message into one route per next hop.

    Routes of other tables and types than unicast are left out.

    :raises ValueError: the message is too short, or an address in it is malformed.
    """
    family, length, _, _, table, _, _, kind, _ = _unpack_header(_RTMSG, message)
    found = parse_attributes(message[HEADER + _RTMSG.size :])
    if (_number(found.get(15)) or table) != _TABLE_MAIN or kind != _UNICAST:  # RTA_TABLE
        return []
    # A default route has no RTA_DST.
    everything = bytes(4) if family == socket.AF_INET else bytes(16)
    dst = f"{ipaddress.ip_address(found.get(1, everything))}/{length}"  # RTA_DST
    priority = _number(found.get(6))  # RTA_PRIORITY
    hops = list(_next_hops(found.get(9, b"")))  # RTA_MULTIPATH
    index = _number(found.get(4))  # RTA_OIF
    if index is not None:
        hops.append((index, found.get(5)))  # RTA_GATEWAY
    return [
        Route(link, dst, str(ipaddress.ip_address(gateway)) if gateway else None, priority) for link, gateway in hops
    ]


def _next_hops(data: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Yield link index and gateway of each ``struct rtnexthop``."""
    offset = 0
    while offset + _NEXT_HOP.size <= len(data):
        length, index = _NEXT_HOP.unpack_from(data, offset)
        if length < _NEXT_HOP.size or offset + length > len(data):
            return
        yield index, parse_attributes(data[offset + _NEXT_HOP.size : offset + length]).get(5)
        offset += (length + 3) & ~3


def _unpack_header(layout: struct.Struct, message: bytes) -> tuple[int, ...]:
    try:
        return layout.unpack_from(message, HEADER)
    except struct.error as error:
        raise ValueError(str(error)) from error


def _number(raw: bytes | None) -> int | None:
    return int(_U32.unpack(raw)[0]) if raw is not None and len(raw) == _U32.size else None


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.rstrip(b"\0").decode(errors="replace")
