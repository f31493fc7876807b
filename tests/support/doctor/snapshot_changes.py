"""Changes of one part of a consistent snapshot, each of which makes it inconsistent.

Consistent snapshots are `tests.support.doctor.snapshots`. Changes of the stored hot-plug status are
`tests.support.doctor.hotplug_status_changes`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
    parse_network_status,
    parse_networks,
)
from schemas.kubernetes.operations import (
    NIC_SLOTS,
    NicSlots,
    Operation,
    PodNic,
    encode_annotation,
    operation_key,
    pod_nic_key,
)
from schemas.names import interface_hash, pod_interface
from schemas.stages import OperationKind
from services.cli.doctor.snapshot import (
    AttachmentRecord,
    GuestDevice,
    IpamLease,
    NetnsPath,
    NotVisible,
    ObservedLink,
    PodOnNode,
    SandboxRecords,
    Snapshot,
    VmSnapshot,
)
from tests.support.doctor import hotplug_status_changes
from tests.support.doctor.hotplug_status_changes import SnapshotChange
from tests.support.doctor.snapshots import NAD, Names, mac, with_derived_status


def all_changes(names: Names) -> Iterator[tuple[str, SnapshotChange]]:
    """Yield a description and a function for every change that the checks must find.

    :param names: the interfaces of the snapshot that will be changed.
    """
    for number, interfaces in enumerate(names):
        yield from _vm_changes(number)
        for interface in interfaces:
            yield from _nic_changes(number, interface)
    yield from _node_changes()


def _nic_changes(m: int, interface: str) -> Iterator[tuple[str, SnapshotChange]]:
    h = interface_hash(interface)
    link, tap, bridge, nic = f"pod{h}", f"tap{h}", f"k6t-{h}", f"{h}-nic"
    where = f"vm{m}/{interface}"

    def named(description: str, change: SnapshotChange) -> tuple[str, SnapshotChange]:
        return f"{where}: {description}", change

    yield named("element removed", change_elements(m, lambda e: [x for x in e if x.interface != link]))
    yield named("element on another network", change_elements(m, _with_fields(link, name="other")))
    yield named("status removed", change_statuses(m, lambda s: [x for x in s if x.interface != link]))
    yield named("status on another network", change_statuses(m, _with_fields(link, name="default/other")))
    yield named("status with another address", change_statuses(m, _with_fields(link, ips=["192.0.2.1"])))
    yield named("status with another MAC", change_statuses(m, _with_fields(link, mac="02:ff:00:00:00:01")))
    yield named("record of the pod NIC removed", annotate_pod(m, pod_nic_key(interface), None))
    yield named("record of the pod NIC damaged", annotate_pod(m, pod_nic_key(interface), "{"))
    yield named(
        "record of the pod NIC of another pod",
        annotate_pod(
            m, pod_nic_key(interface), encode_annotation(PodNic("other", f"sandbox-of-vm{m}", link, mac(9), 1500))
        ),
    )
    yield named(
        "record of the pod NIC of another sandbox",
        annotate_pod(
            m, pod_nic_key(interface), encode_annotation(PodNic(f"pod-uid-vm{m}", "other", link, mac(9), 1500))
        ),
    )
    yield named(
        "another operation on the pod",
        annotate_pod(m, operation_key(interface), encode_annotation(Operation("other", OperationKind.PLUG, interface))),
    )
    yield named(
        "status.interfaces without multus-status", change_status_entry(m, interface, infoSource="domain, guest-agent")
    )
    yield named("status.interfaces with another link", change_status_entry(m, interface, podInterfaceName="net1"))
    yield named("status.interfaces with another MAC", change_status_entry(m, interface, mac="02:ff:00:00:00:01"))
    yield named("status.interfaces with its link set down", change_status_entry(m, interface, linkState="down"))
    yield named("removed from the spec of the VMI", remove_from_spec(m, interface))
    for name in (link, tap, bridge, nic):
        yield named(f"link {name} gone", change_links(m, _without_link(name)))
    for name in (tap, bridge, nic):
        yield named(f"link {name} down", change_links(m, _with_link_fields(name, up=False)))
    for name in (tap, nic):
        yield named(f"link {name} off its bridge", change_links(m, _with_link_fields(name, master=None)))
    yield named("tap is something else", change_links(m, _with_link_fields(tap, kind="veth")))
    yield named("dummy interface with another MAC", change_links(m, _with_link_fields(link, mac="02:ff:00:00:00:01")))
    yield named("dummy interface without addresses", change_links(m, _with_link_fields(link, addresses=())))
    yield named("veth with another peer", change_links(m, _with_link_fields(nic, peer=9999)))
    yield named("tap not held", change_taps(m, lambda held: held - {tap}))
    yield named("guest device gone", change_guest_devices(m, lambda cs: [c for c in cs if c.interface != interface]))
    yield named(
        "guest device with another MAC", change_guest_devices(m, _with_fields(interface, mac="02:ff:00:00:00:01"))
    )
    yield named("recorded attachment gone", change_attached(m, lambda a: [x for x in a if x.link != link]))
    yield named("recorded attachment unfinished", change_attached(m, _with_fields(link, key="link", finished=False)))
    yield named(
        "recorded attachment with another address",
        change_attached(m, _with_fields(link, key="link", ips=("192.0.2.1",))),
    )
    yield from (named(*change) for change in hotplug_status_changes.nic_changes(m, interface))
    mine = (f"sandbox-of-vm{m}", link)
    yield named("lease gone", change_node("leases", lambda ls: [x for x in ls if (x.container, x.link) != mine]))
    yield named("node's end of the veth down", _change_host_veth(m, link, up=False))
    yield named("node's end of the veth off its bridge", _change_host_veth(m, link, master=None))
    yield named("node's end of the veth gone", _change_host_veth(m, link, gone=True))


def _vm_changes(m: int) -> Iterator[tuple[str, SnapshotChange]]:
    other, tap, where = pod_interface("unknown"), f"tap{interface_hash('unknown')}", f"vm{m}"
    sandbox = f"sandbox-of-{where}"
    element = NetworkSelectionElement(name=NAD, namespace="default", interface=other)
    status = NetworkStatus(name=f"default/{NAD}", interface=other)
    operation = encode_annotation(Operation("x", OperationKind.PLUG, "unknown"))
    yield f"{where}: element left over", change_elements(m, lambda e: [*e, element])
    yield f"{where}: status left over", change_statuses(m, lambda s: [*s, status])
    yield f"{where}: cluster network's status gone", change_statuses(m, lambda s: s[1:])
    yield f"{where}: networks annotation malformed", annotate_pod(m, NETWORKS, "[{")
    yield f"{where}: network status malformed", annotate_pod(m, NETWORK_STATUS, "[{")
    yield f"{where}: record of a pod NIC left over", annotate_pod(m, pod_nic_key("unknown"), "{}")
    yield f"{where}: operation left over on the pod", annotate_pod(m, operation_key("unknown"), operation)
    yield f"{where}: operation left over on the VMI", annotate_vmi(m, operation_key("unknown"), operation)
    yield f"{where}: operation left over on the VM", annotate_vm(m, operation_key("unknown"), operation)
    yield f"{where}: slots of another pod", annotate_vmi(m, NIC_SLOTS, encode_annotation(NicSlots(1, 1, "other")))
    yield (
        f"{where}: slots of too many NICs",
        annotate_vmi(m, NIC_SLOTS, encode_annotation(NicSlots(1, 77, f"pod-uid-{where}"))),
    )
    yield f"{where}: status.interfaces of an unknown interface", change_status_entry(m, "unknown", infoSource="domain")
    yield f"{where}: no acting pod", change_vm(m, lambda x: msgspec.structs.replace(x, pods=()))
    yield f"{where}: no sandbox", change_pod_on_node(m, lambda i: PodOnNode(None))
    yield f"{where}: link left over", change_links(m, lambda ls: [*ls, ObservedLink(99, tap, "tun")])
    yield f"{where}: pod's own link gone", change_links(m, lambda ls: [x for x in ls if x.name != "eth0"])
    yield f"{where}: tap of an unknown interface held", change_taps(m, lambda held: held | {tap})
    yield (
        f"{where}: guest device of an unknown interface",
        change_guest_devices(m, lambda cs: [*cs, GuestDevice("unknown", mac(9))]),
    )
    yield f"{where}: record gone", change_node("records", lambda rs: [x for x in rs if x.sandbox != sandbox])
    yield f"{where}: record of another pod", _change_record(sandbox, pod_uid="other")
    yield f"{where}: record with another namespace", _change_record(sandbox, netns="/var/run/netns/cni-other")
    yield f"{where}: deletion of the sandbox requested", _change_record(sandbox, deletion_requested=True)
    yield (
        f"{where}: recorded attachment left over",
        change_attached(m, lambda a: [*a, AttachmentRecord("net9", "other")]),
    )
    yield f"{where}: stored entry left over", hotplug_status_changes.add_leftover_entry(m)
    yield (
        f"{where}: lease left over",
        change_node("leases", lambda ls: [*ls, IpamLease(NAD, "10.9.9.9", sandbox, "net9")]),
    )


def _node_changes() -> Iterator[tuple[str, SnapshotChange]]:
    yield (
        "record orphaned",
        change_node("records", lambda rs: [*rs, SandboxRecords("gone", "/run/netns/cni-gone", "x/y", "u")]),
    )
    yield "lease orphaned", change_node("leases", lambda ls: [*ls, IpamLease(NAD, "10.9.9.9", "gone", "net1")])
    yield "namespace orphaned", change_node("namespaces", lambda ns: [*ns, NetnsPath("/run/netns/cni-gone", None, ())])
    veth = ObservedLink(index=9000, name="veth0badcafe", kind="veth", up=True, master=2, peer=2)
    yield "veth orphaned", change_node("links", lambda ls: [*ls, veth])


# -- functions that change one part of a snapshot ----------------------------------------------------------------


def _with_fields(link: object, *, key: str = "interface", **fields: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda items: [
        msgspec.structs.replace(item, **fields) if getattr(item, key) == link else item for item in items
    ]


def _without_link(name: str) -> Callable[[list[ObservedLink]], list[ObservedLink]]:
    return lambda items: [item for item in items if item.name != name]


def _with_link_fields(name: str, **fields: Any) -> Callable[[list[ObservedLink]], list[ObservedLink]]:
    return _with_fields(name, key="name", **fields)


def change_vm(m: int, change: Callable[[VmSnapshot], VmSnapshot]) -> SnapshotChange:
    """Change one VM; its stored hot-plug status is derived from the changed objects."""
    return hotplug_status_changes.change_vm_only(m, lambda x: with_derived_status(change(x)))


def change_pod_on_node(m: int, change: Callable[[Any], PodOnNode]) -> SnapshotChange:
    """Change the state of a VM's pod on its node."""
    return change_vm(
        m,
        lambda x: msgspec.structs.replace(x, pods_on_node={uid: change(seen) for uid, seen in x.pods_on_node.items()}),
    )


def change_links(m: int, change: Callable[[list[ObservedLink]], list[ObservedLink]]) -> SnapshotChange:
    """Change the links in a VM's pod."""
    return change_pod_on_node(m, lambda i: msgspec.structs.replace(i, links=tuple(change(list(i.links)))))


def change_taps(m: int, change: Callable[[frozenset[str]], frozenset[str]]) -> SnapshotChange:
    """Change the taps that a VM's guest holds open."""
    return change_pod_on_node(m, lambda i: msgspec.structs.replace(i, taps=change(i.taps)))


def change_guest_devices(m: int, change: Callable[[list[GuestDevice]], list[GuestDevice]]) -> SnapshotChange:
    """Change the devices of a VM's domain."""
    return change_pod_on_node(
        m, lambda i: msgspec.structs.replace(i, guest_devices=tuple(change(list(i.guest_devices))))
    )


def annotate_pod(m: int, key: str, text: str | None) -> SnapshotChange:
    """Change an annotation of a VM's pod."""
    return change_vm(m, lambda x: msgspec.structs.replace(x, pods=tuple(_annotated(pod, key, text) for pod in x.pods)))


def annotate_vmi(m: int, key: str, text: str | None) -> SnapshotChange:
    """Change an annotation of a VM's VMI."""
    return change_vm(m, lambda x: msgspec.structs.replace(x, vmi=_annotated(x.vmi, key, text)))


def annotate_vm(m: int, key: str, text: str | None) -> SnapshotChange:
    """Change an annotation of a VM."""
    return change_vm(m, lambda x: msgspec.structs.replace(x, vm=_annotated(x.vm, key, text)))


def change_elements(
    m: int, change: Callable[[list[NetworkSelectionElement]], list[NetworkSelectionElement]]
) -> SnapshotChange:
    """Change the networks annotation of a VM's pod."""

    def apply(w: Snapshot) -> Snapshot:
        before = parse_networks(w.vms[m].pods[0].metadata.annotations.get(NETWORKS))
        return annotate_pod(m, NETWORKS, encode_networks(change(before)))(w)

    return apply


def change_statuses(m: int, change: Callable[[list[NetworkStatus]], list[NetworkStatus]]) -> SnapshotChange:
    """Change the network status of a VM's pod."""

    def apply(w: Snapshot) -> Snapshot:
        before = parse_network_status(w.vms[m].pods[0].metadata.annotations.get(NETWORK_STATUS))
        return annotate_pod(m, NETWORK_STATUS, encode_network_status(change(before)))(w)

    return apply


def change_status_entry(m: int, interface: str, **fields: Any) -> SnapshotChange:
    """Change or add an entry of the VMI's ``status.interfaces``."""

    def apply(x: VmSnapshot) -> VmSnapshot:
        assert x.vmi is not None
        before = x.vmi.status.interfaces or []
        after = [{**e, **fields} if e["name"] == interface else e for e in before]
        if all(e["name"] != interface for e in before):
            after.append({"name": interface, **fields})
        status = msgspec.structs.replace(x.vmi.status, interfaces=after)
        return msgspec.structs.replace(x, vmi=msgspec.structs.replace(x.vmi, status=status))

    return change_vm(m, apply)


def remove_from_spec(m: int, interface: str) -> SnapshotChange:
    """Remove an interface from the VMI's spec only."""

    def apply(x: VmSnapshot) -> VmSnapshot:
        assert x.vmi is not None
        spec = x.vmi.spec
        left = [i for i in spec.domain.devices.interfaces or () if i["name"] != interface]
        devices = msgspec.structs.replace(spec.domain.devices, interfaces=left)
        spec = msgspec.structs.replace(
            spec,
            domain=msgspec.structs.replace(spec.domain, devices=devices),
            networks=[n for n in spec.networks or () if n["name"] != interface],
        )
        return msgspec.structs.replace(x, vmi=msgspec.structs.replace(x.vmi, spec=spec))

    return change_vm(m, apply)


def change_node(part: str, change: Callable[[list[Any]], list[Any]]) -> SnapshotChange:
    """Change a part of the node."""
    return lambda w: msgspec.structs.replace(
        w, node=msgspec.structs.replace(w.node, **{part: tuple(change(list(getattr(w.node, part))))})
    )


def change_attached(m: int, change: Callable[[list[AttachmentRecord]], list[AttachmentRecord]]) -> SnapshotChange:
    """Change the attachments in the record of a VM's sandbox."""
    sandbox = f"sandbox-of-vm{m}"
    return change_node(
        "records",
        lambda rs: [
            msgspec.structs.replace(r, attached=tuple(change(list(r.attached)))) if r.sandbox == sandbox else r
            for r in rs
        ],
    )


def _change_record(sandbox: str, **fields: Any) -> SnapshotChange:
    return change_node("records", _with_fields(sandbox, key="sandbox", **fields))


def _change_host_veth(m: int, link: str, *, gone: bool = False, **fields: Any) -> SnapshotChange:
    def apply(w: Snapshot) -> Snapshot:
        (seen,) = w.vms[m].pods_on_node.values()
        assert isinstance(seen, PodOnNode)
        assert not isinstance(seen.links, NotVisible)
        peer = next(x.peer for x in seen.links if x.name in {link, f"{link[3:]}-nic"} and x.kind == "veth")
        if gone:
            return change_node("links", lambda ls: [x for x in ls if x.index != peer])(w)
        return change_node("links", _with_fields(peer, key="index", **fields))(w)

    return apply


def _annotated(resource: Any, key: str, text: str | None) -> Any:
    annotations = {k: v for k, v in resource.metadata.annotations.items() if k != key}
    if text is not None:
        annotations[key] = text
    return msgspec.structs.replace(
        resource, metadata=msgspec.structs.replace(resource.metadata, annotations=annotations)
    )
