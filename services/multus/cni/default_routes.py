"""The choice of the networks that carry a pod's default routes (``default-route`` of the networks annotation).

Pure. Each address family is decided separately: an IPv4 gateway on one network leaves every IPv6 default route in
place. An empty list keeps the network's own gateway and changes no other network.
Source: multi-network specification 1.x. The routes themselves are changed by :mod:`services.multus.apply`.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from schemas import cni
from schemas.kubernetes.networks import without_zone
from services.multus.cni.errors import CniError

DEFAULT_DESTINATIONS: Final = {4: "0.0.0.0/0", 6: "::/0"}
"""The destination of a default route, by address family."""


@dataclass(frozen=True)
class DefaultRouteChange:
    """The change of one attachment's default routes.

    :ivar ifname: the attachment's link name.
    :ivar drop: the address families whose default routes over this link are deleted.
    :ivar gateways: the next hops of new default routes, with their address families.
    """

    ifname: str
    drop: frozenset[int]
    gateways: tuple[tuple[int, str], ...] = ()


def parse_gateways(gateways: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """Return the address families and addresses of a ``default-route`` list.

    :param gateways: the list.
    :raises CniError: code 7, an entry is not an address, or two entries have the same family.
    """
    found: dict[int, str] = {}
    for text in gateways:
        try:
            address = ipaddress.ip_address(without_zone(text))
        except ValueError as error:
            raise CniError(cni.CniErrorCode.INVALID_CONFIG, f"default-route: {error}") from error
        if address.version in found:
            raise _too_many()
        found[address.version] = str(address)
    return tuple(found.items())


def plan_default_routes(requested: Sequence[tuple[str, Sequence[str] | None]]) -> list[DefaultRouteChange]:
    """Return the changes for all attachments of a sandbox.

    :param requested: every attachment's link name and ``default-route`` (``None``: not set).
    :raises CniError: code 7, an entry is not an address, or two networks request the same address family.
    """
    chosen = [(ifname, None if given is None else parse_gateways(given)) for ifname, given in requested]
    families = [family for _, gateways in chosen for family, _ in gateways or ()]
    if len(families) != len(set(families)):
        raise _too_many()
    changes = []
    for ifname, gateways in chosen:
        # Upstream removes the gateway of a network with an empty list too (multus-cni#1011).
        keeps_its_own = gateways == ()
        if families and not keeps_its_own:
            changes.append(DefaultRouteChange(ifname, frozenset(families), gateways or ()))
    return changes


def result_with_default_routes(result: cni.CniResult, change: DefaultRouteChange) -> cni.CniResult:
    """Return an attachment's result as it is after the change of its default routes."""
    dropped = {DEFAULT_DESTINATIONS[family] for family in change.drop}
    routes = [route for route in result.routes if route.dst not in dropped]
    routes += [cni.CniRoute(dst=DEFAULT_DESTINATIONS[family], gw=gateway) for family, gateway in change.gateways]
    return msgspec.structs.replace(result, routes=routes)


def _too_many() -> CniError:
    return CniError(
        cni.CniErrorCode.INVALID_CONFIG,
        "default-route: at most one gateway of each address family (no ECMP) for one pod",
    )
