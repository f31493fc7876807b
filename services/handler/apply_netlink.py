"""Takes the steps that change a pod's links: netlink, and nothing decided. Every step may be repeated.

Next: :mod:`services.handler.apply`, which has the steps taken.
"""

import errno
from typing import Any

import msgspec
from opentelemetry.trace import Span

from services.common.netlink.errors import LinkMissing, NetlinkFailure
from services.common.netlink.netns import Netns
from services.handler.netlink_operations import (
    AddAddress,
    AddLink,
    AddRoute,
    ChangeLink,
    DeleteAddress,
    DeleteLink,
    DeleteLinks,
    SetLearning,
    SetSysctl,
    Step,
)

_NOT_TAKEN = {
    errno.EACCES,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
    errno.EHOSTUNREACH,
    errno.EINVAL,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EOPNOTSUPP,
    errno.EPERM,
}
"""How the kernel says that it will not have an address or a route, now or later."""


async def walk(netns: Netns, steps: list[Step], span: Span, *, restoring: bool = False) -> None:
    """Take the steps in order; each is an event of the span.

    :param restoring: an address or route that the kernel does not take is noted in the span and left out: the way back
        must not end at a next hop that is not there any more.
    :raises NetlinkFailure: a step failed; those before it stand.
    """
    made: dict[str, int] = {}
    for step in steps:
        attributes = _attributes(step)
        try:
            await _take(netns, step, made)
        except NetlinkFailure as failure:
            if not (restoring and isinstance(step, AddAddress | AddRoute) and failure.code in _NOT_TAKEN):
                raise
            attributes["error.message"] = failure.message
        span.add_event(type(step).__name__, attributes)


async def _take(netns: Netns, step: Step, made: dict[str, int]) -> None:
    match step:
        case AddLink(wish):
            if wish.kind == "bridge":
                link = await netns.add_bridge(wish.name, mac=wish.mac, up=bool(wish.up))
            elif wish.kind == "tap":
                link = await netns.add_tap(wish.name, owner=wish.owner, queues=wish.queues, label=wish.label)
            else:
                link = await netns.add_dummy(wish.name, mac=wish.mac, mtu=wish.mtu)
            made[wish.name] = link.index
        case ChangeLink(link=target, name=name, up=up, mac=mac, mtu=mtu, master=master):
            bridge = None if master is None else await _index(netns, master, made)
            index = await _index(netns, target, made)
            await netns.set(index, name=name, up=up, mac=mac, mtu=mtu, master=bridge)
        case SetLearning(link=target, learning=learning):
            await netns.set_learning(await _index(netns, target, made), learning)
        case AddAddress(link=target, cidr=cidr):
            await netns.add_address(await _index(netns, target, made), cidr)
        case DeleteAddress(link=target, cidr=cidr):
            await netns.delete_address(target, cidr)
        case AddRoute(link=target, dst=dst, gw=gw, priority=priority):
            await netns.add_route(target, dst, gw=gw, priority=priority)
        case DeleteLink(link=target):
            await netns.delete(target)
        case DeleteLinks(links=targets):
            await netns.delete_together(targets)
        case SetSysctl(key=key, value=value):
            await netns.set_sysctl(key, value)


async def _index(netns: Netns, link: int | str, made: dict[str, int]) -> int:
    if isinstance(link, int):
        return link
    if link not in made:
        found = await netns.link(link)
        if found is None:
            raise LinkMissing(errno.ENODEV, f"link {link} is gone from {netns.path}")
        made[link] = found.index
    return made[link]


def _attributes(step: Step) -> dict[str, str | int | bool | list[str]]:
    document: dict[str, Any] = msgspec.to_builtins(step)
    flat = document | document.get("wish", {})
    return {
        key: value
        for key, value in flat.items()
        if key != "type" and (isinstance(value, str | int | bool) or (key == "names" and value))
    }
