"""What the kernel is asked, as rtnetlink messages: one for each operation on links, addresses and routes.

Pure, the counterpart of :mod:`services.common.netlink.answers`. pyroute2's message classes are only filled in here:
one message can do what its ``link()`` needs several for. Layouts: linux/if_link.h, if_addr.h, rtnetlink.h.
Next: :mod:`services.common.netlink.netns`, which asks.
"""

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from services.common.netlink.answers import IFF_UP
from services.common.netlink.connection import Attributes
from services.common.netlink.links import Route, is_ipv4

DO = NLM_F_REQUEST | NLM_F_ACK
CREATE = DO | NLM_F_CREATE | NLM_F_EXCL
DUMP = NLM_F_REQUEST | NLM_F_DUMP
FAMILIES = (2, 10)
"""AF_INET, AF_INET6."""

_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS: half of a link's answer that nobody reads
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_ANY = 0, 253, 255
_TABLE_MAIN, _PROTO_STATIC, _UNICAST = 254, 4, 1
_IFA_F_NODAD = 0x02


def look(which: str | int | None = None) -> ifinfmsg:
    """One link, by name or index, or all."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_EXT_MASK", _SKIP_STATISTICS)]
    if isinstance(which, int):
        message["index"] = which
    elif which is not None:
        message["attrs"].append(("IFLA_IFNAME", which))
    return message


def make(name: str, kind: str, *, mac: str | None = None, mtu: int | None = None, up: bool = False) -> ifinfmsg:
    """A new link."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]})]
    if mac is not None:
        message["attrs"].append(("IFLA_ADDRESS", mac))
    if mtu is not None:
        message["attrs"].append(("IFLA_MTU", mtu))
    if up:
        message["flags"] = message["change"] = IFF_UP
    return message


def change(which: str | int, attributes: Attributes, up: bool | None = None) -> ifinfmsg:
    """Changes of one link, by name or index, which the kernel does in an order of its own."""
    message = ifinfmsg()
    message["attrs"] = list(attributes)
    if isinstance(which, int):
        message["index"] = which
    else:
        message["attrs"].append(("IFLA_IFNAME", which))
    if up is not None:
        message["flags"], message["change"] = (IFF_UP if up else 0), IFF_UP
    return message


def learning(on: bool) -> Attributes:
    """Whether a bridge port learns source addresses."""
    port = {"attrs": [("IFLA_BRPORT_LEARNING", int(on))]}
    return [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", port)]})]


def remove(index: int) -> ifinfmsg:
    """One link, to be removed."""
    message = ifinfmsg()
    message["index"] = index
    return message


def remove_group(group: int) -> ifinfmsg:
    """All links of a group, to be removed."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_GROUP", group)]
    return message


def addresses() -> ifaddrmsg:
    """All addresses."""
    return ifaddrmsg()


def address(index: int, cidr: str) -> ifaddrmsg:
    """One address of a link, without duplicate detection."""
    bare, _, length = cidr.partition("/")
    message = ifaddrmsg()
    message["index"], message["family"], message["prefixlen"] = index, _family(cidr), int(length)
    message["attrs"] = [("IFA_LOCAL", bare), ("IFA_ADDRESS", bare)]
    if not is_ipv4(cidr):
        message["attrs"].append(("IFA_FLAGS", _IFA_F_NODAD))
    return message


def routes(family: int) -> rtmsg:
    """All routes of a family."""
    message = rtmsg()
    message["family"] = family
    return message


def new_route(route: Route) -> rtmsg:
    """A route to be added to the main table."""
    message = _route(route)
    message["proto"], message["type"] = _PROTO_STATIC, _UNICAST
    message["scope"] = _SCOPE_UNIVERSE if route.gw else _SCOPE_LINK
    return message


def old_route(route: Route) -> rtmsg:
    """A route of the main table, whoever made it."""
    message = _route(route)
    message["scope"] = _SCOPE_ANY
    return message


def _route(route: Route) -> rtmsg:
    network, _, length = route.dst.partition("/")
    message = rtmsg()
    message["family"], message["dst_len"], message["table"] = _family(route.dst), int(length), _TABLE_MAIN
    message["attrs"] = [("RTA_OIF", route.index)]
    if int(length):
        message["attrs"].append(("RTA_DST", network))
    if route.gw is not None:
        message["attrs"].append(("RTA_GATEWAY", route.gw))
    if route.priority is not None:
        message["attrs"].append(("RTA_PRIORITY", route.priority))
    return message


def _family(cidr: str) -> int:
    return FAMILIES[0] if is_ipv4(cidr) else FAMILIES[1]
