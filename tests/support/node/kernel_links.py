"""A model of the kernel's links, addresses and routes, as far as the pod network depends on them."""

import ipaddress

import msgspec

from services.common.netlink.links import Address, Link, Route
from services.handler.pod_network.operations import (
    AddAddress,
    AddLink,
    AddRoute,
    ChangeLink,
    DeleteAddress,
    DeleteLink,
    DeleteLinks,
    NetlinkOperation,
    ObservedLinks,
    SetLearning,
    SetSysctl,
)


class Kernel:
    """Links with the kernel's rules that the pod network depends on."""

    def __init__(self, observed: ObservedLinks) -> None:
        self.links = {link.index: link for link in observed.links}
        self.addresses = list(observed.addresses)
        self.routes = list(observed.routes)
        self.sysctls = dict(observed.sysctls)

    def observe(self) -> ObservedLinks:
        """Return the present state."""
        return ObservedLinks(tuple(self.links.values()), tuple(self.addresses), tuple(self.routes), dict(self.sysctls))

    def apply(self, operation: NetlinkOperation) -> None:
        """Apply an operation; one that the kernel would refuse is a failed assertion."""
        match operation:
            case AddLink(desired):
                assert self.named(desired.name) is None, f"{desired.name} exists"
                index = max(self.links) + 1
                kind = "tun" if desired.kind == "tap" else desired.kind
                self.links[index] = Link(
                    index=index,
                    name=desired.name,
                    kind=kind,
                    mac=desired.mac or f"0a:00:00:00:00:{index:02x}",
                    mtu=1500 if kind == "tun" else desired.mtu or 1500,
                    up=desired.kind == "bridge" and bool(desired.up),
                    multi_queue=desired.queues > 1 if kind == "tun" else None,
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
                    self.apply(DeleteLink(one, self.links[one].name))
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
        """Return the link of a name; ``None`` when there is none."""
        return next((link for link in self.links.values() if link.name == name), None)

    def at(self, target: int | str) -> Link:
        """Return a link, which must exist."""
        link = self.named(target) if isinstance(target, str) else self.links.get(target)
        assert link is not None, f"no link {target}"
        return link
