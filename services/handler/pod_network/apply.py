"""Apply netlink operations to a pod's network namespace. Nothing is decided here, and every operation may be repeated.

Next: :mod:`services.handler.apply`, which passes the operations.
"""

import errno
from typing import Any

import msgspec
from opentelemetry.trace import Span

from services.common.netlink.errors import LinkMissing, NetlinkFailure
from services.common.netlink.netns import Netns
from services.handler.pod_network.operations import (
    AddAddress,
    AddLink,
    AddRoute,
    ChangeLink,
    DeleteAddress,
    DeleteLink,
    DeleteLinks,
    NetlinkOperation,
    SetLearning,
    SetSysctl,
)

_NOT_ACCEPTED = {
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
"""The kernel's error codes for an address or a route that it does not accept, and would not accept later either."""


async def apply_operations(
    netns: Netns, operations: list[NetlinkOperation], span: Span, *, restoring: bool = False
) -> None:
    """Apply operations in order, and add an event to the span for each.

    :param netns: the pod's network namespace.
    :param span: the span that gets the events.
    :param restoring: skip an address or a route that the kernel does not accept, and record the error in the span. A
        teardown must not fail because a next hop no longer exists.
    :raises NetlinkFailure: an operation failed; the earlier ones are not undone.
    """
    created: dict[str, int] = {}
    for operation in operations:
        attributes = _attributes(operation)
        try:
            await _apply(netns, operation, created)
        except NetlinkFailure as failure:
            if not (restoring and isinstance(operation, AddAddress | AddRoute) and failure.code in _NOT_ACCEPTED):
                raise
            attributes["error.message"] = failure.message
        span.add_event(type(operation).__name__, attributes)


async def _apply(netns: Netns, operation: NetlinkOperation, created: dict[str, int]) -> None:
    match operation:
        case AddLink(desired):
            if desired.kind == "bridge":
                link = await netns.add_bridge(desired.name, mac=desired.mac, up=bool(desired.up))
            elif desired.kind == "tap":
                link = await netns.add_tap(
                    desired.name, owner=desired.owner, queues=desired.queues, label=desired.label
                )
            else:
                link = await netns.add_dummy(desired.name, mac=desired.mac, mtu=desired.mtu)
            # Later operations name the new link. Its index saves each of them a request.
            created[desired.name] = link.index
        case ChangeLink(link=target, name=name, up=up, mac=mac, mtu=mtu, master=master):
            bridge = None if master is None else await _index(netns, master, created)
            index = await _index(netns, target, created)
            await netns.set(index, name=name, up=up, mac=mac, mtu=mtu, master=bridge)
        case SetLearning(link=target, learning=learning):
            await netns.set_learning(await _index(netns, target, created), learning)
        case AddAddress(link=target, cidr=cidr):
            await netns.add_address(await _index(netns, target, created), cidr)
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


async def _index(netns: Netns, link: int | str, created: dict[str, int]) -> int:
    if isinstance(link, int):
        return link
    if link not in created:
        found = await netns.link(link)
        if found is None:
            raise LinkMissing(errno.ENODEV, f"link {link} is gone from {netns.path}")
        created[link] = found.index
    return created[link]


def _attributes(operation: NetlinkOperation) -> dict[str, str | int | bool | list[str]]:
    """Return the operation's fields as attributes of a span event."""
    document: dict[str, Any] = msgspec.to_builtins(operation)
    flat = document | document.get("desired", {})
    return {
        key: value
        for key, value in flat.items()
        if key != "type" and (isinstance(value, str | int | bool) or (key == "names" and value))
    }
