"""Links, addresses and routes of a network namespace as frozen values. No I/O.

Next: :mod:`services.common.netlink.rtnetlink.replies`, which parses them from the kernel's replies.
"""

import ipaddress

import msgspec


class Link(msgspec.Struct, frozen=True):
    """A network link.

    :ivar kind: driver kind (``veth``, ``bridge``, ``tun``, …); ``None`` for hardware and loopback.
    :ivar mac: lower case; empty if the link has none.
    :ivar mtu: bytes.
    :ivar master: index of the bridge or bond that this link is a port of.
    :ivar link: index of the peer (veth) or parent (macvlan, vlan), which may be in another namespace.
    :ivar mode: mode of a macvlan or macvtap by name, if known.
    :ivar learning: whether a bridge port learns source addresses; ``None`` if this is no bridge port.
    :ivar multi_queue: whether a tap was created for several queues; ``None`` for other kinds.
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
    """An address of a link.

    :ivar index: index of the link.
    :ivar cidr: address and prefix length.
    :ivar link_local: whether its scope is ``link``. The kernel adds such IPv6 addresses by itself.
    """

    index: int
    cidr: str
    link_local: bool = False


class Route(msgspec.Struct, frozen=True):
    """A unicast route of the main table.

    :ivar index: index of the outgoing link.
    :ivar dst: destination in CIDR form; ``0.0.0.0/0`` or ``::/0`` for a default route.
    :ivar gw: gateway; ``None`` if the destination is on-link.
    """

    index: int
    dst: str
    gw: str | None = None
    priority: int | None = None


def is_ipv4(cidr: str) -> bool:
    """Return whether an address or network in CIDR form is IPv4."""
    return ipaddress.ip_interface(cidr).version == 4
