"""Builders of the rtnetlink requests for links, addresses and routes. Pure.

The counterpart of :mod:`services.common.netlink.rtnetlink.replies`. Messages are filled in by hand, because one message
can change what pyroute2's ``link()`` needs several for. Layouts: linux/if_link.h, if_addr.h, rtnetlink.h.
Next: :mod:`services.common.netlink.netns`, which sends them.
"""

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from services.common.netlink.links import Route, is_ipv4
from services.common.netlink.rtnetlink.connection import Attributes
from services.common.netlink.rtnetlink.replies import IFF_UP

REQUEST = NLM_F_REQUEST | NLM_F_ACK
CREATE = REQUEST | NLM_F_CREATE | NLM_F_EXCL
DUMP = NLM_F_REQUEST | NLM_F_DUMP
FAMILIES = (2, 10)
"""AF_INET, AF_INET6."""

_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS: half of a link's reply, and hotnic does not use it
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_ANY = 0, 253, 255
_TABLE_MAIN, _PROTO_STATIC, _UNICAST = 254, 4, 1
_IFA_F_NODAD = 0x02


def get_link(name_or_index: str | int | None = None) -> ifinfmsg:
    """Build a request for one link by name or index, or for all links."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_EXT_MASK", _SKIP_STATISTICS)]
    if isinstance(name_or_index, int):
        message["index"] = name_or_index
    elif name_or_index is not None:
        message["attrs"].append(("IFLA_IFNAME", name_or_index))
    return message


def new_link(name: str, kind: str, *, mac: str | None = None, mtu: int | None = None, up: bool = False) -> ifinfmsg:
    """Build a request that creates a link."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]})]
    if mac is not None:
        message["attrs"].append(("IFLA_ADDRESS", mac))
    if mtu is not None:
        message["attrs"].append(("IFLA_MTU", mtu))
    if up:
        message["flags"] = message["change"] = IFF_UP
    return message


def set_link(name_or_index: str | int, attributes: Attributes, up: bool | None = None) -> ifinfmsg:
    """Build a request that changes one link. The kernel applies the attributes in an order of its own."""
    message = ifinfmsg()
    message["attrs"] = list(attributes)
    if isinstance(name_or_index, int):
        message["index"] = name_or_index
    else:
        message["attrs"].append(("IFLA_IFNAME", name_or_index))
    if up is not None:
        message["flags"], message["change"] = (IFF_UP if up else 0), IFF_UP
    return message


def port_learning(on: bool) -> Attributes:
    """Build the attributes that make a bridge port learn source addresses, or not."""
    port = {"attrs": [("IFLA_BRPORT_LEARNING", int(on))]}
    return [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", port)]})]


def delete_link(index: int) -> ifinfmsg:
    """Build a request that deletes one link."""
    message = ifinfmsg()
    message["index"] = index
    return message


def delete_link_group(group: int) -> ifinfmsg:
    """Build a request that deletes all links of a group."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_GROUP", group)]
    return message


def get_addresses() -> ifaddrmsg:
    """Build a request for all addresses."""
    return ifaddrmsg()


def address_message(index: int, cidr: str) -> ifaddrmsg:
    """Build a message that names one address of a link, to add or delete it. IPv6 skips duplicate address detection."""
    bare, _, length = cidr.partition("/")
    message = ifaddrmsg()
    message["index"], message["family"], message["prefixlen"] = index, _family(cidr), int(length)
    # No IFA_LABEL: a label must begin with the name of the link, and the link is renamed (kubevirt#15942).
    message["attrs"] = [("IFA_LOCAL", bare), ("IFA_ADDRESS", bare)]
    if not is_ipv4(cidr):
        message["attrs"].append(("IFA_FLAGS", _IFA_F_NODAD))
    return message


def get_routes(family: int) -> rtmsg:
    """Build a request for all routes of an address family."""
    message = rtmsg()
    message["family"] = family
    return message


def new_route(route: Route) -> rtmsg:
    """Build a request that adds a route to the main table."""
    message = _route_message(route)
    message["proto"], message["type"] = _PROTO_STATIC, _UNICAST
    # As `ip route add` does: a route without a gateway has the scope of the link.
    message["scope"] = _SCOPE_UNIVERSE if route.gw else _SCOPE_LINK
    return message


def delete_route(route: Route) -> rtmsg:
    """Build a request that deletes a route of the main table, whatever its protocol."""
    message = _route_message(route)
    # In a deletion, 255 (RT_SCOPE_NOWHERE) matches routes of every scope.
    message["scope"] = _SCOPE_ANY
    return message


def _route_message(route: Route) -> rtmsg:
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
