"""The observed links of a pod's network namespace, and the netlink operations that change them. Values only, no I/O.

An operation names a link by index, or by name when an earlier operation creates it. Operations are computed in
:mod:`services.handler.pod_network.setup` and :mod:`services.handler.pod_network.teardown`.
Next: :mod:`services.handler.pod_network.apply`, which applies them.
"""

import msgspec

from services.common.netlink.links import Address, Link, Route


class ObservedLinks(msgspec.Struct, frozen=True):
    """The observed state of a pod's network namespace.

    :ivar links: all links.
    :ivar addresses: the addresses of all links.
    :ivar routes: the routes of all links; empty when nothing needs them.
    :ivar sysctls: values by key, as far as they were read.
    """

    links: tuple[Link, ...]
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: dict[str, str] = {}

    def named(self, name: str) -> Link | None:
        """Return the link of a name; ``None`` when there is none."""
        return next((link for link in self.links if link.name == name), None)

    def addresses_of(self, index: int) -> list[str]:
        """Return the addresses of a link in CIDR form, without the link-local ones that the kernel assigns."""
        return [a.cidr for a in self.addresses if a.index == index and not a.link_local]


class DesiredLink(msgspec.Struct, frozen=True, kw_only=True):
    """The desired state of one link. A property that is ``None`` is not changed.

    :ivar name: the link's name.
    :ivar kind: ``bridge``, ``tap`` or ``dummy``, created when missing; ``None`` for the existing link of ``index``.
    :ivar index: the index of the existing link.
    :ivar up: whether the link is up.
    :ivar mac: the MAC address, lower case.
    :ivar mtu: bytes.
    :ivar master: the name of the bridge that the link is a port of.
    :ivar addresses: the exact addresses in CIDR form, besides link-local ones.
    :ivar learning: whether the bridge port learns source addresses.
    :ivar owner: the user id that may open the tap.
    :ivar queues: the number of queues of the tap.
    :ivar label: the SELinux label of the tap.
    """

    name: str
    kind: str | None = None
    index: int | None = None
    up: bool | None = None
    mac: str | None = None
    mtu: int | None = None
    master: str | None = None
    addresses: tuple[str, ...] | None = None
    learning: bool | None = None
    owner: int = 0
    queues: int = 1
    label: str | None = None


class AddLink(msgspec.Struct, frozen=True, tag=True):
    """Create a link of the desired kind."""

    desired: DesiredLink


class DeleteLink(msgspec.Struct, frozen=True, tag=True):
    """Delete a link."""

    link: int
    name: str


class DeleteLinks(msgspec.Struct, frozen=True, tag=True):
    """Delete links, all in one request."""

    links: tuple[int, ...]
    names: tuple[str, ...]


class ChangeLink(msgspec.Struct, frozen=True, tag=True):
    """Change properties of a link.

    :ivar link: the index, or the name when an earlier operation creates the link.
    """

    link: int | str
    name: str | None = None
    up: bool | None = None
    mac: str | None = None
    mtu: int | None = None
    master: str | None = None


class SetLearning(msgspec.Struct, frozen=True, tag=True):
    """Set whether a bridge port learns source addresses."""

    link: int | str
    learning: bool


class AddAddress(msgspec.Struct, frozen=True, tag=True):
    """Add an address to a link."""

    link: int | str
    cidr: str


class DeleteAddress(msgspec.Struct, frozen=True, tag=True):
    """Delete an address of a link."""

    link: int
    cidr: str


class AddRoute(msgspec.Struct, frozen=True, tag=True):
    """Add a route over a link that is up."""

    link: int
    dst: str
    gw: str | None = None
    priority: int | None = None


class SetSysctl(msgspec.Struct, frozen=True, tag=True):
    """Set a sysctl of the network namespace."""

    key: str
    value: str


NetlinkOperation = (
    AddLink | DeleteLink | DeleteLinks | ChangeLink | SetLearning | AddAddress | DeleteAddress | AddRoute | SetSysctl
)
