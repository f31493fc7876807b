"""The links between a pod NIC and the guest's card: what they should be, and the steps from what is seen to that.

Pure. The wish is data (:class:`Wiring`), the way there a difference that may start from any half-way state, so a
crash between two steps costs nothing. Next: :mod:`services.handler.teardown`, the way back.

The four links follow KubeVirt's bridge binding (network/setup/netpod.go since 1.1): the bridge ``k6t-<h>``, the pod NIC
renamed ``<h>-nic`` with the bridge's MAC (its own is the guest's now), ``tap<h>``, and ``pod<h>``, a link without
traffic that keeps the pod's addresses and the NIC's MAC.
"""

import hashlib

import msgspec

from schemas.names import is_ordinal
from schemas.operations import PodNic
from services.common.netlink.links import Link, is_ipv4
from services.handler.netlink_operations import (
    AddAddress,
    AddLink,
    ChangeLink,
    DeleteAddress,
    DeleteLink,
    LinkWish,
    Seen,
    SetLearning,
    SetSysctl,
    Step,
)

ARP_IGNORE = "net/ipv4/conf/all/arp_ignore"
"""1: answer ARP only for addresses of the link asked on, so that the pod does not answer for the guest."""

_BRIDGED_NOT = {"ipvlan", "ipvtap"}
_KINDS = {"bridge": {"bridge"}, "tap": {"tun"}, "dummy": {"dummy", "bridge"}}
_OF_BRIDGES = "k6t-"


class PodNetworkConflict(Exception):
    """Something foreign stands under a name that the wiring needs."""


class LinkNames(msgspec.Struct, frozen=True):
    """The names of one NIC's links in the pod."""

    nic: str
    bridged: str
    bridge: str
    tap: str


def link_names(pod_interface: str) -> LinkNames:
    """The names that go with a pod interface, hashed (``pod<h>``) or ordinal (``net<i>``, old KubeVirt's)."""
    if is_ordinal(pod_interface):
        return LinkNames(pod_interface, f"{pod_interface}-nic", f"k6t-{pod_interface}", f"tap{pod_interface[3:]}")
    suffix = pod_interface.removeprefix("pod")
    return LinkNames(pod_interface, f"{suffix}-nic", f"k6t-{suffix}", f"tap{suffix}")


def expected(seen: Seen, name: str, kind: str) -> Link | None:
    """The link of the wiring that has this name, if it stands.

    :raises PodNetworkConflict: something of another kind has the name.
    """
    found = seen.named(name)
    if found is not None and found.kind not in _KINDS[kind]:
        raise _misplaced(found, kind)
    return found


def is_stand_in(link: Link) -> bool:
    """Whether a link can be the one that keeps a bridged NIC's name and addresses."""
    return link.kind in _KINDS["dummy"]


def other_ipv4_bridges(seen: Seen, names: LinkNames) -> bool:
    """Whether another NIC of the pod is wired to the guest with IPv4 addresses."""
    return any(
        link.kind == "bridge"
        and link.name.startswith(_OF_BRIDGES)
        and link.name != names.bridge
        and any(is_ipv4(cidr) for cidr in seen.addresses_of(link.index))
        for link in seen.links
    )


class Wiring(msgspec.Struct, frozen=True):
    """A wish for the links of one NIC, in the order in which they are brought about."""

    links: tuple[LinkWish, ...]
    sysctls: dict[str, str] = {}


def pod_nic_link(seen: Seen, names: LinkNames) -> Link | None:
    """The pod's real NIC, renamed already or not; ``None`` when it is not there.

    :raises PodNetworkConflict: two links could be it, so an earlier wiring was not undone.
    """
    bridged, named = seen.named(names.bridged), seen.named(names.nic)
    if bridged is None:
        return named
    if named is not None and not is_stand_in(named):
        raise PodNetworkConflict(
            f"{names.bridged} is left over from an earlier attachment beside the new {named.kind} {names.nic}"
        )
    return bridged


def cannot_be_bridged(link: Link) -> bool:
    """Whether a second MAC behind this link gets no traffic: ipvlan, and macvlan in any mode but passthru."""
    return link.kind in _BRIDGED_NOT or (link.kind in {"macvlan", "macvtap"} and link.mode != "passthru")


def bridge_mac(pod_uid: str, pod_interface: str) -> str:
    """The MAC of the in-pod bridge and of the bridged NIC: locally administered, the same at every computation."""
    digest = hashlib.sha256(f"{pod_uid}/{pod_interface}".encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


def bridge_address(position: int) -> str:
    """The bridge's own address, for the DHCP server of later: 169.254.75.1<position>, as KubeVirt numbers them.

    :param position: of the interface in the spec, from 0. Beyond 99 the last one is shared.
    """
    return f"169.254.75.1{min(position, 99)}/32"


def bridge_binding(
    record: PodNic, names: LinkNames, nic: Link, *, position: int, owner: int, queues: int = 1, label: str | None = None
) -> Wiring:
    """The wiring of one NIC that is bridged to the guest.

    :param record: what the NIC was before. :param nic: its link. :param position: of the interface in the spec.
    :param owner: user id of the guest's process. :param queues: of the tap; more than one for multi-queue.
    :param label: SELinux', of the guest's process; ``None`` where none is enforced.
    """
    mac = bridge_mac(record.pod_uid, names.nic)
    ipv4 = any(is_ipv4(cidr) for cidr in record.ips)
    bridge = LinkWish(
        name=names.bridge, kind="bridge", up=True, mac=mac, addresses=(bridge_address(position),) if ipv4 else ()
    )
    port = LinkWish(
        name=names.bridged,
        index=nic.index,
        up=True,
        mac=mac,
        mtu=record.mtu,
        master=names.bridge,
        addresses=(),
        learning=False,
    )
    tap = LinkWish(
        name=names.tap,
        kind="tap",
        up=True,
        mtu=record.mtu,
        master=names.bridge,
        owner=owner,
        queues=queues,
        label=label,
    )
    keeper = LinkWish(
        name=names.nic, kind="dummy", up=False, mac=record.mac.lower(), mtu=record.mtu, addresses=record.ips
    )
    return Wiring((bridge, port, tap, keeper), {ARP_IGNORE: "1"} if ipv4 else {})


def steps(seen: Seen, wiring: Wiring) -> list[Step]:
    """The steps from what is seen to the wish; none when nothing is missing.

    :raises PodNetworkConflict: a name is taken by a link of another kind.
    """
    taken = {wish.index for wish in wiring.links if wish.index is not None}
    result: list[Step] = []
    for wish in wiring.links:
        result += _link_steps(seen, wish, taken)
    result += [SetSysctl(key, value) for key, value in wiring.sysctls.items() if seen.sysctls.get(key) != value]
    return result


def _link_steps(seen: Seen, wish: LinkWish, taken: set[int]) -> list[Step]:
    result: list[Step] = []
    link = _find(seen, wish, taken)
    if link is not None and wish.kind == "tap" and bool(link.multi_queue) != (wish.queues > 1):
        # How many queues a tap takes is fixed when it is made.
        result.append(DeleteLink(link.index, link.name))
        link = None
    if link is None:
        result.append(AddLink(wish))
        link = _made(wish)
        handle: int | str = wish.name
        has: list[str] = []
    else:
        handle = link.index
        has = seen.addresses_of(link.index)
    wanted = wish.addresses
    if wanted is not None:
        result += [DeleteAddress(link.index, cidr) for cidr in has if cidr not in wanted]
    result += _changes(seen, wish, link, handle)
    if wanted is not None:
        result += [AddAddress(handle, cidr) for cidr in wanted if cidr not in has]
    return result


def _made(wish: LinkWish) -> Link:
    """A link as making it leaves it: one message brings a bridge up with its MAC, a tap takes a second one."""
    if wish.kind == "tap":
        return Link(index=0, name=wish.name, kind="tun")
    return Link(
        index=0,
        name=wish.name,
        kind=wish.kind,
        mac=wish.mac or "",
        mtu=wish.mtu or 0,
        up=wish.kind == "bridge" and bool(wish.up),
    )


def _find(seen: Seen, wish: LinkWish, taken: set[int]) -> Link | None:
    if wish.kind is None:
        found = next((link for link in seen.links if link.index == wish.index), None)
        if found is None:
            raise PodNetworkConflict(f"the pod NIC to become {wish.name} is gone")
        return found
    # The real NIC may still bear the name that its stand-in gets: it will have been renamed by then.
    found = next((link for link in seen.links if link.name == wish.name and link.index not in taken), None)
    if found is not None and found.kind not in _KINDS[wish.kind]:
        raise _misplaced(found, wish.kind)
    return found


def _misplaced(found: Link, kind: str) -> PodNetworkConflict:
    return PodNetworkConflict(f"{found.name} should be a {kind}, but a {found.kind or 'device'} has that name")


def _changes(seen: Seen, wish: LinkWish, link: Link, handle: int | str) -> list[Step]:
    result: list[Step] = []
    name = wish.name if link.name != wish.name else None
    mac = wish.mac if wish.mac is not None and link.mac != wish.mac else None
    mtu = wish.mtu if wish.mtu is not None and link.mtu != wish.mtu else None
    master = seen.named(wish.master) if wish.master else None
    joins = wish.master is not None and (master is None or link.master != master.index)
    up = link.up
    if up and wish.kind is None and (name or mac):
        # Kernels before 6.2 rename no link that is up, and no driver need change the MAC of one.
        result.append(ChangeLink(handle, up=False))
        up = False
    flags = wish.up if wish.up is not None and wish.up != up else None
    if name or mac or mtu or joins or flags is not None:
        result.append(ChangeLink(handle, name, flags, mac, mtu, wish.master if joins else None))
    if wish.learning is not None and (joins or link.learning != wish.learning):
        result.append(SetLearning(handle, wish.learning))
    return result
