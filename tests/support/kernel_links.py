"""A model of the kernel's links, addresses and routes, as far as a pod's wiring can tell the difference."""

import ipaddress

import msgspec

from services.common.netlink.links import Address, Link, Route
from services.handler.netlink_operations import (
    AddAddress,
    AddLink,
    AddRoute,
    ChangeLink,
    DeleteAddress,
    DeleteLink,
    DeleteLinks,
    Seen,
    SetLearning,
    SetSysctl,
    Step,
)


class Kernel:
    """Links as the kernel keeps them, as far as the wiring can tell."""

    def __init__(self, seen: Seen) -> None:
        self.links = {link.index: link for link in seen.links}
        self.addresses = list(seen.addresses)
        self.routes = list(seen.routes)
        self.sysctls = dict(seen.sysctls)

    def seen(self) -> Seen:
        """What a look shows."""
        return Seen(tuple(self.links.values()), tuple(self.addresses), tuple(self.routes), dict(self.sysctls))

    def take(self, step: Step) -> None:
        """Do a step; what the kernel would refuse is a failed assertion."""
        match step:
            case AddLink(wish):
                assert self.named(wish.name) is None, f"{wish.name} exists"
                index = max(self.links) + 1
                kind = "tun" if wish.kind == "tap" else wish.kind
                self.links[index] = Link(
                    index=index,
                    name=wish.name,
                    kind=kind,
                    mac=wish.mac or f"0a:00:00:00:00:{index:02x}",
                    mtu=1500 if kind == "tun" else wish.mtu or 1500,
                    up=wish.kind == "bridge" and bool(wish.up),
                    multi_queue=wish.queues > 1 if kind == "tun" else None,
                )
            case ChangeLink(link=target, name=name, up=up, mac=mac, mtu=mtu, master=master):
                link = self.at(target)
                if name is not None:
                    assert not link.up, "an old kernel renames no link that is up"
                    assert self.named(name) is None, f"{name} exists"
                    link = msgspec.structs.replace(link, name=name)
                if master is not None:
                    bridge = self.named(master)
                    assert bridge is not None
                    link = msgspec.structs.replace(link, master=bridge.index, learning=True)
                if up is False:
                    self.addresses = [a for a in self.addresses if a.index != link.index or ":" not in a.cidr]
                    self.routes = [r for r in self.routes if r.index != link.index]
                self.links[link.index] = msgspec.structs.replace(
                    link,
                    mac=mac or link.mac,
                    mtu=mtu or link.mtu,
                    up=link.up if up is None else up,
                )
            case SetLearning(link=target, learning=learning):
                link = self.at(target)
                assert link.master is not None, "not a bridge port"
                self.links[link.index] = msgspec.structs.replace(link, learning=learning)
            case AddAddress(link=target, cidr=cidr):
                self.addresses.append(Address(self.at(target).index, cidr))
            case DeleteAddress(link=target, cidr=cidr):
                self.addresses = [a for a in self.addresses if (a.index, a.cidr) != (target, cidr)]
                self.routes = [r for r in self.routes if r.index != target or self._reachable(target, r.gw)]
            case AddRoute(link=target, dst=dst, gw=gw, priority=priority):
                assert self.at(target).up, "a route over a link that is down"
                assert self._reachable(target, gw), f"network is unreachable: {gw}"
                self.routes.append(Route(target, dst, gw, priority))
            case DeleteLinks(links=targets):
                for one in targets:
                    self.take(DeleteLink(one, self.links[one].name))
            case DeleteLink(link=target):
                del self.links[target]
                self.addresses = [a for a in self.addresses if a.index != target]
                self.routes = [r for r in self.routes if r.index != target]
                for index, port in list(self.links.items()):
                    if port.master == target:
                        self.links[index] = msgspec.structs.replace(port, master=None, learning=None)
            case SetSysctl(key=key, value=value):
                self.sysctls[key] = value

    def _reachable(self, index: int, gw: str | None) -> bool:
        if gw is None:
            return True
        hop = ipaddress.ip_address(gw)
        networks = [ipaddress.ip_interface(a.cidr).network for a in self.addresses if a.index == index]
        networks += [ipaddress.ip_network(r.dst) for r in self.routes if r.index == index and r.gw is None]
        return any(hop in network for network in networks)

    def named(self, name: str) -> Link | None:
        """The link of this name."""
        return next((link for link in self.links.values() if link.name == name), None)

    def at(self, target: int | str) -> Link:
        """The link, which has to be there."""
        link = self.named(target) if isinstance(target, str) else self.links.get(target)
        assert link is not None, f"no link {target}"
        return link
