"""Who carries a pod's default routes when its networks annotation says so (``default-route``).

Pure. Each address family is decided for itself: an IPv4 gateway on one network leaves every IPv6 default route where it
is. An empty list keeps the network's own gateway and takes nothing from the others.
Source: multi-network specification 1.x. Not here: the routes themselves, see :mod:`services.multus.apply`.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from schemas import cni
from services.multus.errors import CniError

DEFAULTS: Final = {4: "0.0.0.0/0", 6: "::/0"}
"""The destination of a default route, by address family."""


@dataclass(frozen=True)
class Steer:
    """What becomes of one attachment's default routes.

    :ivar drop: families whose default routes over this link go. :ivar gateways: next hops of new ones, by family.
    """

    ifname: str
    drop: frozenset[int]
    gateways: tuple[tuple[int, str], ...] = ()


def parsed(gateways: Sequence[str]) -> tuple[tuple[int, str], ...]:
    """The families and addresses of a ``default-route`` list.

    :raises CniError: code 7, one is no address, or two are of one family.
    """
    found: dict[int, str] = {}
    for text in gateways:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as error:
            raise CniError(cni.Code.INVALID_CONFIG, f"default-route: {error}") from error
        if address.version in found:
            raise _too_many()
        found[address.version] = str(address)
    return tuple(found.items())


def steering(asked: Sequence[tuple[str, Sequence[str] | None]]) -> list[Steer]:
    """What is to be done for all attachments of a sandbox, each with its ``default-route`` (``None``: not given).

    :raises CniError: code 7, as :func:`parsed`, or two networks ask for the same family.
    """
    chosen = [(ifname, None if given is None else parsed(given)) for ifname, given in asked]
    families = [family for _, gateways in chosen for family, _ in gateways or ()]
    if len(families) != len(set(families)):
        raise _too_many()
    steps = []
    for ifname, gateways in chosen:
        keeps_its_own = gateways == ()
        if families and not keeps_its_own:
            steps.append(Steer(ifname, frozenset(families), gateways or ()))
    return steps


def steered(result: cni.CniResult, step: Steer) -> cni.CniResult:
    """The result of an attachment after its default routes have been changed."""
    gone = {DEFAULTS[family] for family in step.drop}
    routes = [route for route in result.routes if route.dst not in gone]
    routes += [cni.CniRoute(dst=DEFAULTS[family], gw=gateway) for family, gateway in step.gateways]
    return msgspec.structs.replace(result, routes=routes)


def _too_many() -> CniError:
    return CniError(
        cni.Code.INVALID_CONFIG, "default-route: at most one gateway of each address family (no ECMP) for one pod"
    )
