"""The kernel's answers, read from their bytes: only what is used of them.

A bridge's link carries some eighty attributes; decoding them all, as pyroute2 does, costs milliseconds for each link
and each look. Pure. Layouts: linux/if_link.h, if_addr.h, rtnetlink.h.
Next: :mod:`services.common.netlink.connection`, which gets the bytes.
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


def attributes(data: bytes) -> Attributes:
    """The attributes in a stretch of bytes, undecoded; what is cut off or malformed ends them."""
    return dict(_attributes(data))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            return
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def link_of(message: bytes) -> Link:
    """Read an ``RTM_NEWLINK`` message.

    :raises ValueError: it is too short.
    """
    _, _, index, flags, _ = _fixed(_IFINFO, message)
    found = attributes(message[HEADER + _IFINFO.size :])
    info = attributes(found.get(18, b""))  # IFLA_LINKINFO
    kind = _text(info.get(1))  # IFLA_INFO_KIND
    data = attributes(info.get(2, b""))  # IFLA_INFO_DATA
    learning = multi_queue = mode = None
    if _text(info.get(4)) == "bridge":  # IFLA_INFO_SLAVE_KIND
        port = attributes(info.get(5, b""))  # IFLA_INFO_SLAVE_DATA
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


def address_of(message: bytes) -> Address:
    """Read an ``RTM_NEWADDR`` message.

    :raises ValueError: it is too short, or holds no address.
    """
    _, length, _, scope, index = _fixed(_IFADDR, message)
    found = attributes(message[HEADER + _IFADDR.size :])
    raw = found.get(2) or found.get(1)  # IFA_LOCAL, IFA_ADDRESS
    if raw is None:
        raise ValueError("an address message without an address")
    return Address(index, f"{ipaddress.ip_address(raw)}/{length}", scope == _SCOPE_LINK)


def routes_of(message: bytes) -> list[Route]:
    """Read an ``RTM_NEWROUTE`` message: the unicast routes of the main table in it, one for each next hop.

    :raises ValueError: it is too short, or an address in it malformed.
    """
    family, length, _, _, table, _, _, kind, _ = _fixed(_RTMSG, message)
    found = attributes(message[HEADER + _RTMSG.size :])
    if (_number(found.get(15)) or table) != _TABLE_MAIN or kind != _UNICAST:  # RTA_TABLE
        return []
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
    """The links and gateways of ``struct rtnexthop``s."""
    offset = 0
    while offset + _NEXT_HOP.size <= len(data):
        length, index = _NEXT_HOP.unpack_from(data, offset)
        if length < _NEXT_HOP.size or offset + length > len(data):
            return
        yield index, attributes(data[offset + _NEXT_HOP.size : offset + length]).get(5)
        offset += (length + 3) & ~3


def _fixed(layout: struct.Struct, message: bytes) -> tuple[int, ...]:
    try:
        return layout.unpack_from(message, HEADER)
    except struct.error as error:
        raise ValueError(str(error)) from error


def _number(raw: bytes | None) -> int | None:
    return int(_U32.unpack(raw)[0]) if raw is not None and len(raw) == _U32.size else None


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.rstrip(b"\0").decode(errors="replace")
