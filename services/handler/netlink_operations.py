"""What a look into a pod's network namespace shows, and the steps that change it. Values, no decisions, no I/O.

Steps name a link by index, or by name where an earlier step makes it. Which steps lead where is computed in
:mod:`services.handler.pod_network` and :mod:`services.handler.teardown`;
:mod:`services.handler.apply_netlink` takes them.
"""

import msgspec

from services.common.netlink.links import Address, Link, Route


class Seen(msgspec.Struct, frozen=True):
    """What one look into the pod's network namespace showed."""

    links: tuple[Link, ...]
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: dict[str, str] = {}

    def named(self, name: str) -> Link | None:
        """The link of this name."""
        return next((link for link in self.links if link.name == name), None)

    def addresses_of(self, index: int) -> list[str]:
        """The addresses of a link in CIDR form, without those the kernel gives by itself."""
        return [a.cidr for a in self.addresses if a.index == index and not a.link_local]


class LinkWish(msgspec.Struct, frozen=True, kw_only=True):
    """What one link should be; ``None`` leaves a property as it is.

    :ivar kind: ``bridge``, ``tap`` or ``dummy``: made when missing. ``None``: the link with this ``index``.
    :ivar mtu: bytes. :ivar master: name of the bridge it is a port of.
    :ivar addresses: exactly these, in CIDR form, besides link-local ones.
    :ivar owner: user id that may attach to the tap. :ivar queues: of the tap. :ivar label: SELinux', of the tap.
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
    """Make a link of the wish's kind."""

    wish: LinkWish


class DeleteLink(msgspec.Struct, frozen=True, tag=True):
    """Remove a link."""

    link: int
    name: str


class DeleteLinks(msgspec.Struct, frozen=True, tag=True):
    """Remove links, all at once."""

    links: tuple[int, ...]
    names: tuple[str, ...]


class ChangeLink(msgspec.Struct, frozen=True, tag=True):
    """Change a link, given by index, or by name when an earlier step makes it."""

    link: int | str
    name: str | None = None
    up: bool | None = None
    mac: str | None = None
    mtu: int | None = None
    master: str | None = None


class SetLearning(msgspec.Struct, frozen=True, tag=True):
    """Switch a bridge port's learning of source addresses."""

    link: int | str
    learning: bool


class AddAddress(msgspec.Struct, frozen=True, tag=True):
    """Give a link an address."""

    link: int | str
    cidr: str


class DeleteAddress(msgspec.Struct, frozen=True, tag=True):
    """Take an address from a link."""

    link: int
    cidr: str


class AddRoute(msgspec.Struct, frozen=True, tag=True):
    """Give a link, which is up then, a route."""

    link: int
    dst: str
    gw: str | None = None
    priority: int | None = None


class SetSysctl(msgspec.Struct, frozen=True, tag=True):
    """Set a sysctl of the namespace."""

    key: str
    value: str


Step = AddLink | DeleteLink | DeleteLinks | ChangeLink | SetLearning | AddAddress | DeleteAddress | AddRoute | SetSysctl
