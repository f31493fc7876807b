"""Operations on one network namespace: list and change its links, addresses, routes and sysctls.

A role's ``plan.py`` decides what to change. Access to the namespace is :mod:`services.common.netlink.access`, the
messages are :mod:`services.common.netlink.rtnetlink.requests`.
Next: :mod:`services.common.netlink.pool`, which opens namespaces by path.
"""

import errno
import secrets
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

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

from services.common.netlink import netns_thread
from services.common.netlink.access import NetnsAccess
from services.common.netlink.errors import LinkExists, LinkMissing, NetlinkFailure
from services.common.netlink.links import Address, Link, Route
from services.common.netlink.packets import Instruction, packet_socket
from services.common.netlink.rtnetlink import requests
from services.common.netlink.rtnetlink.connection import Attributes
from services.common.netlink.rtnetlink.replies import parse_address, parse_link, parse_routes
from services.common.netlink.rtnetlink.requests import CREATE, DUMP, REQUEST
from services.common.netlink.taps import SelinuxLabels, make_tap

_FIRST_GROUP = 1 << 30
"""Groups from this number on are for :meth:`Netns.delete_together`."""


class NodeNetns:
    """State that the namespaces of one node share.

    :ivar sysctls: the node's ``/proc/sys``. A container's own is read-only.
    :ivar labels: SELinux labels of the node's processes.
    :ivar has_dummy: whether the kernel supports dummy interfaces; ``True`` until it refuses one.
    """

    def __init__(self, sysctls: Path, labels: SelinuxLabels) -> None:
        self.sysctls = sysctls
        self.labels = labels
        self.has_dummy = True


class Netns:
    """One network namespace. Every operation has a deadline and raises :class:`NetlinkFailure` if it fails."""

    def __init__(self, access: NetnsAccess, node: NodeNetns) -> None:
        self._access = access
        self._node = node

    @property
    def path(self) -> str:
        """The path by which the namespace was opened."""
        return self._access.path

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode. A namespace created again at the same path has another identity."""
        return self._access.identity

    # -- reading ------------------------------------------------------------------------------------------------

    async def links(self) -> list[Link]:
        """Return all links, by one dump."""
        return await self._access.request(requests.get_link(), RTM_GETLINK, DUMP, "list links", parse_link)

    async def link(self, name_or_index: str | int) -> Link | None:
        """Return one link, or ``None`` if there is none."""
        message = requests.get_link(name_or_index)
        try:
            replies = await self._access.request(
                message, RTM_GETLINK, REQUEST, f"read link {name_or_index}", parse_link
            )
        except LinkMissing:
            return None
        return replies[0] if replies else None

    async def addresses(self, index: int | None = None) -> list[Address]:
        """Return the addresses of one link, or of all links."""
        message = requests.get_addresses()
        found = await self._access.request(message, RTM_GETADDR, DUMP, "list addresses", parse_address)
        return [address for address in found if index in {None, address.index}]

    async def routes(self, index: int | None = None) -> list[Route]:
        """Return the unicast routes of the main table over one link, or over all links."""
        found: list[Route] = []
        for family in requests.FAMILIES:
            message = requests.get_routes(family)
            for routes in await self._access.request(message, RTM_GETROUTE, DUMP, "list routes", parse_routes):
                found += routes
        return [route for route in found if index in {None, route.index}]

    async def open_packet_socket(self, link: str, program: Sequence[Instruction]) -> socket.socket:
        """Open a packet socket on a link; see :func:`services.common.netlink.packets.packet_socket`.

        The caller closes it. An open socket keeps the namespace alive.

        :raises LinkMissing: there is no such link.
        """
        return await self._access.run_in_netns(lambda: packet_socket(link, program), f"open a packet socket on {link}")

    # -- links --------------------------------------------------------------------------------------------------

    async def add_bridge(self, name: str, *, mac: str | None = None, up: bool = False) -> Link:
        """Create a bridge.

        :param mac: fixed MAC. Without one the bridge takes the lowest MAC of its ports, and changes it with them.
        :raises LinkExists: the name is taken.
        """
        return await self._add(name, "bridge", mac=mac, up=up)

    async def add_dummy(self, name: str, *, mac: str | None = None, mtu: int | None = None) -> Link:
        """Create a dummy interface, or a bridge without ports if the kernel has no ``dummy`` driver.

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
        """Create a persistent tap, down and without a master.

        :param owner: user id whose processes may attach to the tap.
        :param mtu: bytes; ``None`` leaves the kernel's default, 1500.
        :param queues: more than one creates a multi-queue tap.
        :param label: SELinux label of the tap; ``None`` for that of this process.
        :raises LinkExists: the name is taken.
        """
        action = f"create tap {name}"
        make = partial(self._node.labels.make_tap, label) if label is not None else make_tap
        await self._access.run_in_netns(lambda: make(name, owner=owner, multi_queue=queues > 1), action)
        if mtu is not None:
            await self._change(name, [("IFLA_MTU", mtu)], f"set the MTU of {name}")
        return await self._read_created(name)

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
        """Change a link in one message. The kernel applies MAC, MTU, name, master and flags in this order.

        :param master: index of the bridge that the link becomes a port of; 0 removes it from its bridge.
        :raises LinkMissing: there is no such link.
        :raises LinkExists: the new name is taken.
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
        await self._change(index, attributes, f"change link {name or index}", up)

    async def delete(self, index: int) -> None:
        """Delete a link.

        :raises LinkMissing: there is no such link.
        """
        await self._access.request(requests.delete_link(index), RTM_DELLINK, REQUEST, f"delete link {index}")

    async def delete_together(self, indices: Sequence[int]) -> None:
        """Delete several links in one request.

        The kernel then waits once for their last users, not once per link (about 20 ms).

        :raises LinkMissing: one of them does not exist; none is deleted then.
        """
        # The request deletes every link of the group, so the group number is random and not used for anything else.
        group = _FIRST_GROUP | secrets.randbits(30)
        for index in indices:
            await self._change(index, [("IFLA_GROUP", group)], f"set the group of link {index}")
        message = requests.delete_link_group(group)
        try:
            await self._access.request(message, RTM_DELLINK, REQUEST, f"delete links {list(indices)}")
        except NetlinkFailure as exc:
            if exc.code != errno.EOPNOTSUPP:
                raise
            # This kernel does not delete links by group.
            for index in indices:
                await self.delete(index)

    async def set_learning(self, index: int, learning: bool) -> None:
        """Set whether a bridge port learns source addresses."""
        await self._change(index, requests.port_learning(learning), f"set port learning of link {index}")

    # -- addresses, routes, sysctls -----------------------------------------------------------------------------

    async def add_address(self, index: int, cidr: str) -> None:
        """Add an address to a link, without duplicate address detection. An address it has already is no failure."""
        message = requests.address_message(index, cidr)
        try:
            await self._access.request(message, RTM_NEWADDR, CREATE, f"add {cidr} to link {index}")
        except LinkExists:
            return

    async def delete_address(self, index: int, cidr: str) -> None:
        """Delete an address from a link. An address it does not have is no failure."""
        message = requests.address_message(index, cidr)
        try:
            await self._access.request(message, RTM_DELADDR, REQUEST, f"delete {cidr} from link {index}")
        except NetlinkFailure as exc:
            if exc.code != errno.EADDRNOTAVAIL:
                raise

    async def flush_addresses(self, index: int) -> None:
        """Delete every address of a link except link-local ones."""
        for address in await self.addresses(index):
            if not address.link_local:
                await self.delete_address(index, address.cidr)

    async def add_route(self, index: int, dst: str, *, gw: str | None = None, priority: int | None = None) -> None:
        """Add a route to the main table. The link must be up. A route that exists already is no failure."""
        message = requests.new_route(Route(index, dst, gw, priority))
        try:
            await self._access.request(message, RTM_NEWROUTE, CREATE, f"add route {dst} over link {index}")
        except LinkExists:
            return

    async def delete_route(self, route: Route) -> None:
        """Delete a route of the main table. A route that does not exist is no failure."""
        message = requests.delete_route(route)
        try:
            action = f"delete route {route.dst} over link {route.index}"
            await self._access.request(message, RTM_DELROUTE, REQUEST, action)
        except NetlinkFailure as exc:
            if exc.code != errno.ESRCH:
                raise

    async def sysctl(self, key: str) -> str:
        """Return a ``net/…`` sysctl of this namespace.

        :param key: as a path, such as ``net/ipv4/conf/all/arp_ignore``.
        """
        path = self._node.sysctls / key
        return await self._access.run_in_netns(lambda: netns_thread.read_sysctl(path), f"read sysctl {key}")

    async def set_sysctl(self, key: str, value: str) -> None:
        """Set a ``net/…`` sysctl of this namespace."""
        path = self._node.sysctls / key
        await self._access.run_in_netns(lambda: netns_thread.write_sysctl(path, value), f"set sysctl {key}")

    # -- helpers ------------------------------------------------------------------------------------------------

    async def _add(
        self, name: str, kind: str, *, mac: str | None = None, mtu: int | None = None, up: bool = False
    ) -> Link:
        message = requests.new_link(name, kind, mac=mac, mtu=mtu, up=up)
        await self._access.request(message, RTM_NEWLINK, CREATE, f"create {kind} {name}")
        return await self._read_created(name)

    async def _read_created(self, name: str) -> Link:
        link = await self.link(name)
        if link is None:
            raise LinkMissing(errno.ENODEV, f"link {name} disappeared while it was created")
        return link

    async def _change(
        self, name_or_index: str | int, attributes: Attributes, action: str, up: bool | None = None
    ) -> None:
        await self._access.request(requests.set_link(name_or_index, attributes, up), RTM_NEWLINK, REQUEST, action)
