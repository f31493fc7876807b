"""What a namespace holds, as frozen values: links, addresses, routes. No I/O.

Next: :mod:`services.common.netlink.answers`, which reads them from the kernel's answers.
"""

import ipaddress

import msgspec


class Link(msgspec.Struct, frozen=True):
    """A link.

    :ivar kind: the driver kind (``veth``, ``bridge``, ``tun``, …); ``None`` for hardware and loopback.
    :ivar mac: lower case; empty where the link has none. :ivar mtu: bytes.
    :ivar master: index of the bridge (or bond) it is a port of.
    :ivar link: index of the peer (veth) or parent (macvlan, vlan), possibly in another namespace.
    :ivar mode: macvlan's or ipvlan's mode by name, where known.
    :ivar learning: a bridge port learns source addresses; ``None`` when it is no bridge port.
    :ivar multi_queue: a tap made for several queues; ``None`` for other kinds.
    """

    index: int
    name: str
    kind: str | None = None
    mac: str = ""
    mtu: int = 0
    up: bool = False
    master: int | None = None
    link: int | None = None
    mode: str | None = None
    learning: bool | None = None
    multi_queue: bool | None = None


class Address(msgspec.Struct, frozen=True):
    """An address of a link in CIDR form. ``link_local``: scope link, which the kernel gives IPv6 links by itself."""

    index: int
    cidr: str
    link_local: bool = False


class Route(msgspec.Struct, frozen=True):
    """A unicast route of the main table: destination in CIDR form (a default route is ``0.0.0.0/0`` or ``::/0``)."""

    index: int
    dst: str
    gw: str | None = None
    priority: int | None = None


def is_ipv4(cidr: str) -> bool:
    """Whether an address or network in CIDR form is IPv4."""
    return ipaddress.ip_interface(cidr).version == 4
