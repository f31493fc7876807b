"""Network namespaces by path: look at their links and change them, cheaply and from outside.

What should be changed is decided elsewhere (a role's ``plan.py``); how a namespace is reached stands in
:mod:`services.common.netlink.access`.
"""

import errno
import secrets
import socket
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST
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
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from services.common.netlink import inside
from services.common.netlink.access import Access, under
from services.common.netlink.answers import IFF_UP, address_of, link_of, routes_of
from services.common.netlink.errors import LinkExists, LinkMissing, NetlinkFailure, NetnsGone
from services.common.netlink.links import Address, Link, Route, is_ipv4
from services.common.netlink.packets import Instruction, packet_socket
from services.common.netlink.taps import Labels, make_tap
from services.common.netlink.wire import Attributes

_DO = NLM_F_REQUEST | NLM_F_ACK
_CREATE = _DO | NLM_F_CREATE | NLM_F_EXCL
_DUMP = NLM_F_REQUEST | NLM_F_DUMP
_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS: half of a link's answer that nobody reads
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_ANY = 0, 253, 255
_TABLE_MAIN, _PROTO_STATIC, _UNICAST = 254, 4, 1
_FAMILIES = (2, 10)  # AF_INET, AF_INET6
_IFA_F_NODAD = 0x02
_OUR_GROUPS = 1 << 30


class Netns:
    """One network namespace. Every operation has a deadline and fails with a :class:`NetlinkFailure`."""

    def __init__(self, access: Access, pool: "NetnsPool") -> None:
        self._access = access
        self._pool = pool

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
        message = ifinfmsg()
        message["attrs"] = [("IFLA_EXT_MASK", _SKIP_STATISTICS)]
        return await self._access.ask(message, RTM_GETLINK, _DUMP, "listing links", link_of)

    async def link(self, name_or_index: str | int) -> Link | None:
        """One link, or ``None``."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_EXT_MASK", _SKIP_STATISTICS)]
        if isinstance(name_or_index, int):
            message["index"] = name_or_index
        else:
            message["attrs"].append(("IFLA_IFNAME", name_or_index))
        try:
            answers = await self._access.ask(message, RTM_GETLINK, _DO, f"looking at link {name_or_index}", link_of)
        except LinkMissing:
            return None
        return answers[0] if answers else None

    async def addresses(self, index: int | None = None) -> list[Address]:
        """The addresses of one link, or of all."""
        answers = await self._access.ask(ifaddrmsg(), RTM_GETADDR, _DUMP, "listing addresses", address_of)
        return [address for address in answers if index in {None, address.index}]

    async def routes(self, index: int | None = None) -> list[Route]:
        """The unicast routes of the main table over one link, or over all."""
        found: list[Route] = []
        for family in _FAMILIES:
            message = rtmsg()
            message["family"] = family
            for answer in await self._access.ask(message, RTM_GETROUTE, _DUMP, "listing routes", routes_of):
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
        if self._pool.kernel_has_dummy:
            try:
                return await self._add(name, "dummy", mac=mac, mtu=mtu)
            except NetlinkFailure as exc:
                if exc.code != errno.EOPNOTSUPP:
                    raise
                self._pool.kernel_has_dummy = False
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
        make = partial(self._pool.labels.make_tap, label) if label is not None else make_tap
        await self._access.inside(lambda: make(name, owner=owner, multi_queue=queues > 1), doing)
        if mtu is not None:
            await self._set_by({"name": name}, [("IFLA_MTU", mtu)], None, f"setting the MTU of {name}")
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
        await self._set_by({"index": index}, attributes, up, f"changing link {name or index}")

    async def delete(self, index: int) -> None:
        """Remove a link.

        :raises LinkMissing: it is gone already.
        """
        message = ifinfmsg()
        message["index"] = index
        await self._access.ask(message, RTM_DELLINK, _DO, f"removing link {index}")

    async def delete_together(self, indices: Sequence[int]) -> None:
        """Remove several links at once: the kernel waits for their last users once, not once for each (some 20 ms).

        :raises LinkMissing: one is gone already; none is removed then.
        """
        # A group of their own, which nobody else can be in: whatever is in it goes.
        group = _OUR_GROUPS | secrets.randbits(30)
        for index in indices:
            await self._set_by({"index": index}, [("IFLA_GROUP", group)], None, f"grouping link {index}")
        message = ifinfmsg()
        message["attrs"] = [("IFLA_GROUP", group)]
        try:
            await self._access.ask(message, RTM_DELLINK, _DO, f"removing links {list(indices)}")
        except NetlinkFailure as exc:
            if exc.code != errno.EOPNOTSUPP:
                raise
            for index in indices:
                await self.delete(index)

    async def set_learning(self, index: int, learning: bool) -> None:
        """Whether a bridge port learns source addresses."""
        port = {"attrs": [("IFLA_BRPORT_LEARNING", int(learning))]}
        info = {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", port)]}
        doing = f"setting port learning of link {index}"
        await self._set_by({"index": index}, [("IFLA_LINKINFO", info)], None, doing)

    # -- addresses, routes, sysctls -----------------------------------------------------------------------------

    async def add_address(self, index: int, cidr: str) -> None:
        """Give a link an address, without duplicate detection; one that it has already is no failure."""
        message = self._address(index, cidr)
        try:
            await self._access.ask(message, RTM_NEWADDR, _CREATE, f"adding {cidr} to link {index}")
        except LinkExists:
            return

    async def delete_address(self, index: int, cidr: str) -> None:
        """Take an address from a link; one that it does not have is no failure."""
        message = self._address(index, cidr)
        try:
            await self._access.ask(message, RTM_DELADDR, _DO, f"removing {cidr} from link {index}")
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
        network, _, length = dst.partition("/")
        message = rtmsg()
        message["family"] = _family(dst)
        message["dst_len"] = int(length)
        message["table"], message["proto"], message["type"] = _TABLE_MAIN, _PROTO_STATIC, _UNICAST
        message["scope"] = _SCOPE_UNIVERSE if gw else _SCOPE_LINK
        message["attrs"] = [("RTA_OIF", index)]
        if int(length):
            message["attrs"].append(("RTA_DST", network))
        if gw is not None:
            message["attrs"].append(("RTA_GATEWAY", gw))
        if priority is not None:
            message["attrs"].append(("RTA_PRIORITY", priority))
        try:
            await self._access.ask(message, RTM_NEWROUTE, _CREATE, f"adding route {dst} over link {index}")
        except LinkExists:
            return

    async def delete_route(self, route: Route) -> None:
        """Remove a route of the main table; one that is gone already is no failure."""
        network, _, length = route.dst.partition("/")
        message = rtmsg()
        message["family"], message["dst_len"] = _family(route.dst), int(length)
        message["table"], message["scope"] = _TABLE_MAIN, _SCOPE_ANY
        message["attrs"] = [("RTA_OIF", route.index)]
        if int(length):
            message["attrs"].append(("RTA_DST", network))
        if route.gw is not None:
            message["attrs"].append(("RTA_GATEWAY", route.gw))
        if route.priority is not None:
            message["attrs"].append(("RTA_PRIORITY", route.priority))
        try:
            doing = f"removing route {route.dst} over link {route.index}"
            await self._access.ask(message, RTM_DELROUTE, _DO, doing)
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
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]})]
        if mac is not None:
            message["attrs"].append(("IFLA_ADDRESS", mac))
        if mtu is not None:
            message["attrs"].append(("IFLA_MTU", mtu))
        if up:
            message["flags"] = message["change"] = IFF_UP
        await self._access.ask(message, RTM_NEWLINK, _CREATE, f"making {kind} {name}")
        return await self._present(name)

    async def _present(self, name: str) -> Link:
        link = await self.link(name)
        if link is None:
            raise LinkMissing(errno.ENODEV, f"link {name} vanished while it was being made")
        return link

    async def _set_by(self, which: dict[str, str | int], attributes: Attributes, up: bool | None, doing: str) -> None:
        message = ifinfmsg()
        message["attrs"] = list(attributes)
        if "index" in which:
            message["index"] = which["index"]
        else:
            message["attrs"].append(("IFLA_IFNAME", which["name"]))
        if up is not None:
            message["flags"], message["change"] = (IFF_UP if up else 0), IFF_UP
        await self._access.ask(message, RTM_NEWLINK, _DO, doing)

    @staticmethod
    def _address(index: int, cidr: str) -> ifaddrmsg:
        address, _, length = cidr.partition("/")
        message = ifaddrmsg()
        message["index"], message["family"], message["prefixlen"] = index, _family(cidr), int(length)
        message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
        if not is_ipv4(cidr):
            message["attrs"].append(("IFA_FLAGS", _IFA_F_NODAD))
        return message


class NetnsPool:
    """The open namespaces of a node.

    :param host_root: where the node's file system is seen from here. :param timeout: seconds for one operation.
    :param idle: seconds after which an unused conversation is closed. :param labels: SELinux' of the node.
    """

    def __init__(
        self, host_root: str = "/", *, timeout: float = 2.0, idle: float = 30.0, labels: Labels | None = None
    ) -> None:
        self.root = Path(host_root)
        self._timeout = timeout
        self._idle = idle
        self.kernel_has_dummy = True
        self.labels = labels or Labels(self.root)
        self._open: dict[tuple[int, int], tuple[Access, Netns]] = {}

    async def open(self, path: str) -> Netns:
        """The namespace at a path, ready to be asked.

        :raises NetnsGone: nothing, or no network namespace, is there.
        """
        real, identity = self._find(path)
        access, netns = self._open.get(identity, (None, None))
        if access is None or netns is None or access.path != path:
            self.drop(path)
            self._forget(identity)
            access = Access(
                path, real, identity, timeout=self._timeout, idle=self._idle, on_idle=partial(self._forget, identity)
            )
            netns = Netns(access, self)
            self._open[identity] = (access, netns)
        try:
            await access.connected()
        except NetnsGone:
            self.drop(path)
            raise
        return netns

    def identity(self, path: str) -> tuple[int, int]:
        """Which namespace stands at a path now; nothing is opened for that.

        :raises NetnsGone: nothing, or no network namespace, is there.
        """
        return self._find(path)[1]

    def _find(self, path: str) -> tuple[Path, tuple[int, int]]:
        real = under(self.root, path)
        try:
            found = real.stat()
        except OSError as exc:
            self.drop(path)
            raise NetnsGone(exc.errno or errno.ENOENT, f"no network namespace at {path}: {exc.strerror}") from exc
        if not stat.S_ISREG(found.st_mode):
            raise NetnsGone(errno.EINVAL, f"{path} is no network namespace")
        return real, (found.st_dev, found.st_ino)

    def drop(self, path: str) -> None:
        """Forget the namespace that was opened by this path."""
        for identity, (access, _) in list(self._open.items()):
            if access.path == path:
                self._forget(identity)

    def close(self) -> None:
        """Forget all."""
        for identity in list(self._open):
            self._forget(identity)

    def _forget(self, identity: tuple[int, int]) -> None:
        access, _ = self._open.pop(identity, (None, None))
        if access is not None:
            access.close()


def _family(cidr: str) -> int:
    return _FAMILIES[0] if is_ipv4(cidr) else _FAMILIES[1]
