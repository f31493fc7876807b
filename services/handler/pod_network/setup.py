"""The pod network of one NIC: the desired links between the pod interface and the guest's device, and the operations.

Pure. The desired state is data (:class:`PodNetwork`). The operations are the difference to the observed state, whatever
it is, so a crash between two operations needs no special handling.
Next: :mod:`services.handler.pod_network.teardown`, the reverse.

The four links follow KubeVirt's bridge binding (network/setup/netpod.go since 1.1): the bridge ``k6t-<h>``; the pod
interface renamed ``<h>-nic``, with the bridge's MAC because its own MAC is the guest's now; ``tap<h>``; and the dummy
``pod<h>``, which carries no traffic and holds the pod interface's addresses and MAC.
"""

import hashlib

import msgspec

from schemas.kubernetes.operations import PodNic
from services.common.domain.nic import LinkNames
from services.common.netlink.links import Link, is_ipv4
from services.handler.pod_network.operations import (
    AddAddress,
    AddLink,
    ChangeLink,
    DeleteAddress,
    DeleteLink,
    DesiredLink,
    NetlinkOperation,
    ObservedLinks,
    SetLearning,
    SetSysctl,
)

ARP_IGNORE = "net/ipv4/conf/all/arp_ignore"
"""1: answer ARP requests only for addresses of the link they arrive on, so that the pod does not answer for the
guest."""

_NEVER_BRIDGED = {"ipvlan", "ipvtap"}
"""All endpoints share the parent's MAC, so frames to the guest's own MAC never arrive."""
_KINDS = {"bridge": {"bridge"}, "tap": {"tun"}, "dummy": {"dummy", "bridge"}}
"""The kernel's link kinds by desired kind. A bridge without ports is the dummy where the kernel has no dummy driver."""
_BRIDGE_PREFIX = "k6t-"


class PodNetworkConflict(Exception):
    """A link that hotnic did not create has a name that the pod network needs."""


def find_expected(observed: ObservedLinks, name: str, kind: str) -> Link | None:
    """Return the link of a name; ``None`` when there is none.

    :raises PodNetworkConflict: a link of another kind has the name.
    """
    found = observed.named(name)
    if found is not None and found.kind not in _KINDS[kind]:
        raise _conflict(found, kind)
    return found


def is_dummy_interface(link: Link) -> bool:
    """Return whether a link can be the dummy that holds a bridged pod interface's name and addresses."""
    return link.kind in _KINDS["dummy"]


def other_ipv4_bridges(observed: ObservedLinks, names: LinkNames) -> bool:
    """Return whether the pod has an in-pod bridge with an IPv4 address for another NIC."""
    return any(
        link.kind == "bridge"
        and link.name.startswith(_BRIDGE_PREFIX)
        and link.name != names.bridge
        and any(is_ipv4(cidr) for cidr in observed.addresses_of(link.index))
        for link in observed.links
    )


class PodNetwork(msgspec.Struct, frozen=True):
    """The desired pod network of one NIC.

    :ivar links: the desired links, in the order in which they are set up.
    :ivar sysctls: the desired sysctls, by key.
    """

    links: tuple[DesiredLink, ...]
    sysctls: dict[str, str] = {}


def pod_nic_link(observed: ObservedLinks, names: LinkNames) -> Link | None:
    """Return the pod interface that CNI created, whether or not it is renamed; ``None`` when it is missing.

    :raises PodNetworkConflict: two links could be it, because an earlier pod network was not torn down.
    """
    bridged, named = observed.named(names.bridged), observed.named(names.pod_interface)
    if bridged is None:
        return named
    if named is not None and not is_dummy_interface(named):
        # The CNI plugin's DEL found the dummy instead of the bridged link and left it (kubevirt#14074).
        raise PodNetworkConflict(
            f"{names.bridged} is left over from an earlier attachment beside the new {named.kind} {names.pod_interface}"
        )
    return bridged


def cannot_be_bridged(link: Link) -> bool:
    """Return whether a second MAC behind this link gets no traffic: ipvlan, and macvlan in any mode but passthru."""
    return link.kind in _NEVER_BRIDGED or (link.kind in {"macvlan", "macvtap"} and link.mode != "passthru")


def bridge_mac(pod_uid: str, pod_interface: str) -> str:
    """Return the MAC of the in-pod bridge and of the bridged pod interface: locally administered, and reproducible."""
    digest = hashlib.sha256(f"{pod_uid}/{pod_interface}".encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


def bridge_address(position: int) -> str:
    """Return the address of the in-pod bridge, which the DHCP server uses: 169.254.75.1<position>, as KubeVirt's.

    :param position: of the interface in the spec, from 0. Positions beyond 99 share the last address.
    """
    return f"169.254.75.1{min(position, 99)}/32"


def bridge_binding(
    record: PodNic, names: LinkNames, nic: Link, *, position: int, owner: int, queues: int = 1, label: str | None = None
) -> PodNetwork:
    """Return the desired pod network of a NIC with the binding ``bridge``.

    :param record: the properties of the pod interface before it was bridged.
    :param names: the names of the links.
    :param nic: the link of the pod interface.
    :param position: of the interface in the spec, from 0.
    :param owner: the user id of the guest's process.
    :param queues: the number of queues of the tap.
    :param label: the SELinux label of the guest's process; ``None`` where SELinux does not enforce.
    """
    mac = bridge_mac(record.pod_uid, names.pod_interface)
    ipv4 = any(is_ipv4(cidr) for cidr in record.ips)
    # As in KubeVirt, the bridge has an address only where there is an IPv4 address to serve.
    bridge = DesiredLink(
        name=names.bridge, kind="bridge", up=True, mac=mac, addresses=(bridge_address(position),) if ipv4 else ()
    )
    port = DesiredLink(
        name=names.bridged,
        index=nic.index,
        up=True,
        mac=mac,
        mtu=record.mtu,
        master=names.bridge,
        addresses=(),
        # KubeVirt's bridge binding disables learning on the same port (network/setup/netpod.go).
        learning=False,
    )
    tap = DesiredLink(
        name=names.tap,
        kind="tap",
        up=True,
        mtu=record.mtu,
        master=names.bridge,
        owner=owner,
        queues=queues,
        label=label,
    )
    dummy = DesiredLink(
        name=names.pod_interface, kind="dummy", up=False, mac=record.mac.lower(), mtu=record.mtu, addresses=record.ips
    )
    # The dummy comes last: it gets the name that the port gives up when it is renamed.
    return PodNetwork((bridge, port, tap, dummy), {ARP_IGNORE: "1"} if ipv4 else {})


def setup_operations(observed: ObservedLinks, network: PodNetwork) -> list[NetlinkOperation]:
    """Return the operations from the observed links to the desired ones; none when nothing differs.

    :raises PodNetworkConflict: a link of another kind has one of the names.
    """
    existing = {desired.index for desired in network.links if desired.index is not None}
    result: list[NetlinkOperation] = []
    for desired in network.links:
        result += _link_operations(observed, desired, existing)
    result += [SetSysctl(key, value) for key, value in network.sysctls.items() if observed.sysctls.get(key) != value]
    return result


def _link_operations(observed: ObservedLinks, desired: DesiredLink, existing: set[int]) -> list[NetlinkOperation]:
    result: list[NetlinkOperation] = []
    link = _find(observed, desired, existing)
    if link is not None and desired.kind == "tap" and bool(link.multi_queue) != (desired.queues > 1):
        # The kernel fixes the number of queues when it creates the tap.
        result.append(DeleteLink(link.index, link.name))
        link = None
    if link is None:
        result.append(AddLink(desired))
        link = _as_created(desired)
        handle: int | str = desired.name
        has: list[str] = []
    else:
        handle = link.index
        has = observed.addresses_of(link.index)
    wanted = desired.addresses
    if wanted is not None:
        result += [DeleteAddress(link.index, cidr) for cidr in has if cidr not in wanted]
    result += _changes(observed, desired, link, handle)
    if wanted is not None:
        result += [AddAddress(handle, cidr) for cidr in wanted if cidr not in has]
    return result


def _as_created(desired: DesiredLink) -> Link:
    """Return the link that :class:`AddLink` creates.

    The request that creates a bridge also sets its MAC and its link state; a tap needs a second request for these.
    """
    if desired.kind == "tap":
        return Link(index=0, name=desired.name, kind="tun")
    return Link(
        index=0,
        name=desired.name,
        kind=desired.kind,
        mac=desired.mac or "",
        mtu=desired.mtu or 0,
        up=desired.kind == "bridge" and bool(desired.up),
    )


def _find(observed: ObservedLinks, desired: DesiredLink, existing: set[int]) -> Link | None:
    if desired.kind is None:
        found = next((link for link in observed.links if link.index == desired.index), None)
        if found is None:
            raise PodNetworkConflict(f"the pod interface that becomes {desired.name} is gone")
        return found
    # The pod interface may still have the name of the dummy. An earlier operation renames it.
    found = next((link for link in observed.links if link.name == desired.name and link.index not in existing), None)
    if found is not None and found.kind not in _KINDS[desired.kind]:
        raise _conflict(found, desired.kind)
    return found


def _conflict(found: Link, kind: str) -> PodNetworkConflict:
    return PodNetworkConflict(f"{found.name} should be a {kind}, but a {found.kind or 'device'} has that name")


def _changes(observed: ObservedLinks, desired: DesiredLink, link: Link, handle: int | str) -> list[NetlinkOperation]:
    result: list[NetlinkOperation] = []
    name = desired.name if link.name != desired.name else None
    mac = desired.mac if desired.mac is not None and link.mac != desired.mac else None
    mtu = desired.mtu if desired.mtu is not None and link.mtu != desired.mtu else None
    master = observed.named(desired.master) if desired.master else None
    joins = desired.master is not None and (master is None or link.master != master.index)
    up = link.up
    if up and desired.kind is None and (name or mac):
        # Kernels before 6.2 do not rename a link that is up, and some drivers do not change the MAC of one.
        result.append(ChangeLink(handle, up=False))
        up = False
    flags = desired.up if desired.up is not None and desired.up != up else None
    if name or mac or mtu or joins or flags is not None:
        result.append(ChangeLink(handle, name, flags, mac, mtu, desired.master if joins else None))
    if desired.learning is not None and (joins or link.learning != desired.learning):
        result.append(SetLearning(handle, desired.learning))
    return result
