"""One network namespace: look at its links, addresses, routes and sysctls and change them, cheaply and from outside.

What should be changed is decided elsewhere (a role's ``plan.py``); how a namespace is reached stands in
:mod:`services.common.netlink.access`, what is said to the kernel in :mod:`services.common.netlink.requests`.
Next: :mod:`services.common.netlink.pool`, which opens namespaces by path.
"""

import errno
import secrets
import socket
from collections.abc import Sequence
from functools import partial

import msgspec
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
)

from services.common.netlink import inside, requests
from services.common.netlink.access import NetnsAccess
from services.common.netlink.answers import address_of, link_of, routes_of
from services.common.netlink.connection import Attributes
from services.common.netlink.errors import LinkExists, LinkMissing, NetlinkFailure
from services.common.netlink.links import Address, Link, Route
from services.common.netlink.packets import Instruction, packet_socket
from services.common.netlink.requests import CREATE, DO, DUMP
from services.common.netlink.taps import Labels, make_tap

_OUR_GROUPS = 1 << 30


class NodeNetns:
    """What the namespaces of one node have in common.

    :ivar labels: SELinux' of its processes. :ivar has_dummy: whether its kernel makes dummies, as far as is known.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.has_dummy = True


class Netns:
    """One network namespace. Every operation has a deadline and fails with a :class:`NetlinkFailure`."""

    def __init__(self, access: NetnsAccess, node: NodeNetns) -> None:
        self._access = access
        self._node = node

    @property
    def path(self) -> str:
        """Where it was opened."""
        return self._access.path

    @property
    def identity(self) -> tuple[int, int]:
        """Which namespace it is: one that is made anew at the same path has another identity."""
        return self._access.identity

    # -- looking ------------------------------------------------------------------------------------------------

    async def links(self) -> list[Link]:
        """All links, by one dump."""
        return await self._access.ask(requests.look(), RTM_GETLINK, DUMP, "listing links", link_of)

    async def link(self, name_or_index: str | int) -> Link | None:
        """One link, or ``None``."""
        message = requests.look(name_or_index)
        try:
            answers = await self._access.ask(message, RTM_GETLINK, DO, f"looking at link {name_or_index}", link_of)
        except LinkMissing:
            return None
        return answers[0] if answers else None

    async def addresses(self, index: int | None = None) -> list[Address]:
        """The addresses of one link, or of all."""
        answers = await self._access.ask(requests.addresses(), RTM_GETADDR, DUMP, "listing addresses", address_of)
        return [address for address in answers if index in {None, address.index}]

    async def routes(self, index: int | None = None) -> list[Route]:
        """The unicast routes of the main table over one link, or over all."""
        found: list[Route] = []
        for family in requests.FAMILIES:
            message = requests.routes(family)
            for answer in await self._access.ask(message, RTM_GETROUTE, DUMP, "listing routes", routes_of):
                found += answer
        return [route for route in found if index in {None, route.index}]

    async def packets(self, link: str, program: Sequence[Instruction]) -> socket.socket:
        """A packet socket on a link (:func:`services.common.netlink.packets.packet_socket`), which the caller closes:
        an open one keeps the namespace alive.

        :raises LinkMissing: there is no such link.
        """
        return await self._access.inside(lambda: packet_socket(link, program), f"listening on {link}")

    # -- links --------------------------------------------------------------------------------------------------

    async def add_bridge(self, name: str, *, mac: str | None = None, up: bool = False) -> Link:
        """Make a bridge. A MAC given here stays (without one it becomes the lowest of its ports' MACs).

        :raises LinkExists: the name is taken.
        """
        return await self._add(name, "bridge", mac=mac, up=up)

    async def add_dummy(self, name: str, *, mac: str | None = None, mtu: int | None = None) -> Link:
        """Make a link that carries addresses and no traffic: a ``dummy``, or a bridge without ports in a kernel
        that has none.

        :raises LinkExists: the name is taken.
        """
        if self._node.has_dummy:
            try:
                return await self._add(name, "dummy", mac=mac, mtu=mtu)
            except NetlinkFailure as exc:
                if exc.code != errno.EOPNOTSUPP:
                    raise
                self._node.has_dummy = False
        link = await self._add(name, "bridge", mac=mac)
        if mtu is not None and mtu != link.mtu:
            await self.set(link.index, mtu=mtu)
            link = msgspec.structs.replace(link, mtu=mtu)
        return link

    async def add_tap(
        self, name: str, *, owner: int, mtu: int | None = None, queues: int = 1, label: str | None = None
    ) -> Link:
        """Make a persistent tap that processes of user ``owner`` may attach to; down, without a master.

        :param mtu: bytes; ``None`` leaves the kernel's 1500. :param queues: more than one makes a multi-queue tap.
        :param label: the SELinux label it is to bear; ``None``: this process'.
        :raises LinkExists: the name is taken.
        """
        doing = f"making tap {name}"
        make = partial(self._node.labels.make_tap, label) if label is not None else make_tap
        await self._access.inside(lambda: make(name, owner=owner, multi_queue=queues > 1), doing)
        if mtu is not None:
            await self._change(name, [("IFLA_MTU", mtu)], f"setting the MTU of {name}")
        return await self._present(name)

    async def set(
        self,
        index: int,
        *,
        name: str | None = None,
        up: bool | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        master: int | None = None,
    ) -> None:
        """Change a link, all in one message; the kernel does MAC, MTU, name, master, flags in this order.

        :param master: index of the bridge to make it a port of; 0 frees it.
        :raises LinkMissing: it is gone. :raises LinkExists: the new name is taken.
        """
        attributes: Attributes = []
        if mac is not None:
            attributes.append(("IFLA_ADDRESS", mac))
        if mtu is not None:
            attributes.append(("IFLA_MTU", mtu))
        if name is not None:
            attributes.append(("IFLA_IFNAME", name))
        if master is not None:
            attributes.append(("IFLA_MASTER", master))
        await self._change(index, attributes, f"changing link {name or index}", up)

    async def delete(self, index: int) -> None:
        """Remove a link.

        :raises LinkMissing: it is gone already.
        """
        await self._access.ask(requests.remove(index), RTM_DELLINK, DO, f"removing link {index}")

    async def delete_together(self, indices: Sequence[int]) -> None:
        """Remove several links at once: the kernel waits for their last users once, not once for each (some 20 ms).

        :raises LinkMissing: one is gone already; none is removed then.
        """
        # A group of their own, which nobody else can be in: whatever is in it goes.
        group = _OUR_GROUPS | secrets.randbits(30)
        for index in indices:
            await self._change(index, [("IFLA_GROUP", group)], f"grouping link {index}")
        message = requests.remove_group(group)
        try:
            await self._access.ask(message, RTM_DELLINK, DO, f"removing links {list(indices)}")
        except NetlinkFailure as exc:
            if exc.code != errno.EOPNOTSUPP:
                raise
            for index in indices:
                await self.delete(index)

    async def set_learning(self, index: int, learning: bool) -> None:
        """Whether a bridge port learns source addresses."""
        await self._change(index, requests.learning(learning), f"setting port learning of link {index}")

    # -- addresses, routes, sysctls -----------------------------------------------------------------------------

    async def add_address(self, index: int, cidr: str) -> None:
        """Give a link an address, without duplicate detection; one that it has already is no failure."""
        message = requests.address(index, cidr)
        try:
            await self._access.ask(message, RTM_NEWADDR, CREATE, f"adding {cidr} to link {index}")
        except LinkExists:
            return

    async def delete_address(self, index: int, cidr: str) -> None:
        """Take an address from a link; one that it does not have is no failure."""
        message = requests.address(index, cidr)
        try:
            await self._access.ask(message, RTM_DELADDR, DO, f"removing {cidr} from link {index}")
        except NetlinkFailure as exc:
            if exc.code != errno.EADDRNOTAVAIL:
                raise

    async def flush_addresses(self, index: int) -> None:
        """Take every address but link-local ones from a link."""
        for address in await self.addresses(index):
            if not address.link_local:
                await self.delete_address(index, address.cidr)

    async def add_route(self, index: int, dst: str, *, gw: str | None = None, priority: int | None = None) -> None:
        """Add a route to the main table; one that is there already is no failure. The link must be up."""
        message = requests.new_route(Route(index, dst, gw, priority))
        try:
            await self._access.ask(message, RTM_NEWROUTE, CREATE, f"adding route {dst} over link {index}")
        except LinkExists:
            return

    async def delete_route(self, route: Route) -> None:
        """Remove a route of the main table; one that is gone already is no failure."""
        message = requests.old_route(route)
        try:
            doing = f"removing route {route.dst} over link {route.index}"
            await self._access.ask(message, RTM_DELROUTE, DO, doing)
        except NetlinkFailure as exc:
            if exc.code != errno.ESRCH:
                raise

    async def sysctl(self, key: str) -> str:
        """A ``net/…`` sysctl of this namespace."""
        return await self._access.inside(lambda: inside.read_sysctl(key), f"reading {key}")

    async def set_sysctl(self, key: str, value: str) -> None:
        """Set a ``net/…`` sysctl of this namespace."""
        await self._access.inside(lambda: inside.write_sysctl(key, value), f"setting {key}")

    # -- plumbing -----------------------------------------------------------------------------------------------

    async def _add(
        self, name: str, kind: str, *, mac: str | None = None, mtu: int | None = None, up: bool = False
    ) -> Link:
        message = requests.make(name, kind, mac=mac, mtu=mtu, up=up)
        await self._access.ask(message, RTM_NEWLINK, CREATE, f"making {kind} {name}")
        return await self._present(name)

    async def _present(self, name: str) -> Link:
        link = await self.link(name)
        if link is None:
            raise LinkMissing(errno.ENODEV, f"link {name} vanished while it was being made")
        return link

    async def _change(self, which: str | int, attributes: Attributes, doing: str, up: bool | None = None) -> None:
        await self._access.ask(requests.change(which, attributes, up), RTM_NEWLINK, DO, doing)
