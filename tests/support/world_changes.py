"""Every single way in which one witness of a consistent world can say something else, and how to bring it about.

The world itself is `tests.support.worlds`, the kept ladder's part `tests.support.hotplug_status_changes`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from schemas.names import interface_hash, pod_interface
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
    parse_network_status,
    parse_networks,
)
from schemas.operations import NIC_SLOTS, NicSlots, Operation, PodNic, encode, operation_key, pod_nic_key
from schemas.stages import OperationKind
from services.common.domain.invariants.world import (
    AttachmentRecord,
    GuestDevice,
    IpamLease,
    NetnsPath,
    NotVisible,
    PodOnNode,
    SandboxRecords,
    SeenLink,
    Snapshot,
    VmSnapshot,
)
from tests.support import hotplug_status_changes
from tests.support.hotplug_status_changes import Change
from tests.support.worlds import NAD, Names, mac, projected


def changes(names: Names) -> Iterator[tuple[str, Change]]:
    """Every single change of the world of these names that is a disagreement, by what it does."""
    for number, interfaces in enumerate(names):
        yield from _of_machine(number)
        for interface in interfaces:
            yield from _of_nic(number, interface)
    yield from _of_node()


def _of_nic(m: int, interface: str) -> Iterator[tuple[str, Change]]:
    h = interface_hash(interface)
    link, tap, bridge, nic = f"pod{h}", f"tap{h}", f"k6t-{h}", f"{h}-nic"
    where = f"vm{m}/{interface}"

    def told(what: str, change: Change) -> tuple[str, Change]:
        return f"{where}: {what}", change

    yield told("element taken out", elements(m, lambda e: [x for x in e if x.interface != link]))
    yield told("element on another network", elements(m, _on(link, name="other")))
    yield told("status taken out", statuses(m, lambda s: [x for x in s if x.interface != link]))
    yield told("status on another network", statuses(m, _on(link, name="default/other")))
    yield told("status with another address", statuses(m, _on(link, ips=["192.0.2.1"])))
    yield told("status with another MAC", statuses(m, _on(link, mac="02:ff:00:00:00:01")))
    yield told("record of the pod NIC taken out", pod_note(m, pod_nic_key(interface), None))
    yield told("record of the pod NIC damaged", pod_note(m, pod_nic_key(interface), "{"))
    yield told(
        "record of the pod NIC of another pod",
        pod_note(m, pod_nic_key(interface), encode(PodNic("other", f"sandbox-of-vm{m}", link, mac(9), 1500))),
    )
    yield told(
        "record of the pod NIC of another sandbox",
        pod_note(m, pod_nic_key(interface), encode(PodNic(f"pod-uid-vm{m}", "other", link, mac(9), 1500))),
    )
    yield told(
        "another operation on the pod",
        pod_note(m, operation_key(interface), encode(Operation("other", OperationKind.PLUG, interface))),
    )
    yield told("status.interfaces without multus-status", entry(m, interface, infoSource="domain, guest-agent"))
    yield told("status.interfaces with another link", entry(m, interface, podInterfaceName="net1"))
    yield told("status.interfaces with another MAC", entry(m, interface, mac="02:ff:00:00:00:01"))
    yield told("status.interfaces with its cable pulled", entry(m, interface, linkState="down"))
    yield told("taken out of the spec of the VMI", out_of_spec(m, interface))
    for name in (link, tap, bridge, nic):
        yield told(f"link {name} gone", links(m, _without(name)))
    for name in (tap, bridge, nic):
        yield told(f"link {name} down", links(m, _link(name, up=False)))
    for name in (tap, nic):
        yield told(f"link {name} off its bridge", links(m, _link(name, master=None)))
    yield told("tap is something else", links(m, _link(tap, kind="veth")))
    yield told("stand-in with another MAC", links(m, _link(link, mac="02:ff:00:00:00:01")))
    yield told("stand-in without addresses", links(m, _link(link, addresses=())))
    yield told("veth with another peer", links(m, _link(nic, peer=9999)))
    yield told("tap not held", taps(m, lambda held: held - {tap}))
    yield told("card gone", cards(m, lambda cs: [c for c in cs if c.interface != interface]))
    yield told("card with another MAC", cards(m, _on(interface, mac="02:ff:00:00:00:01")))
    yield told("recorded attachment gone", attached(m, lambda a: [x for x in a if x.link != link]))
    yield told("recorded attachment unfinished", attached(m, _on(link, key="link", finished=False)))
    yield told("recorded attachment with another address", attached(m, _on(link, key="link", ips=("192.0.2.1",))))
    yield from (told(*change) for change in hotplug_status_changes.of_nic(m, interface))
    mine = (f"sandbox-of-vm{m}", link)
    yield told("lease gone", node_part("leases", lambda ls: [x for x in ls if (x.container, x.link) != mine]))
    yield told("node's end of the veth down", _host_end(m, link, up=False))
    yield told("node's end of the veth off its bridge", _host_end(m, link, master=None))
    yield told("node's end of the veth gone", _host_end(m, link, gone=True))


def _of_machine(m: int) -> Iterator[tuple[str, Change]]:
    other, tap, where = pod_interface("stranger"), f"tap{interface_hash('stranger')}", f"vm{m}"
    sandbox = f"sandbox-of-{where}"
    element = NetworkSelectionElement(name=NAD, namespace="default", interface=other)
    status = NetworkStatus(name=f"default/{NAD}", interface=other)
    operation = encode(Operation("x", OperationKind.PLUG, "stranger"))
    yield f"{where}: element left over", elements(m, lambda e: [*e, element])
    yield f"{where}: status left over", statuses(m, lambda s: [*s, status])
    yield f"{where}: cluster network's status gone", statuses(m, lambda s: s[1:])
    yield f"{where}: networks annotation malformed", pod_note(m, NETWORKS, "[{")
    yield f"{where}: network status malformed", pod_note(m, NETWORK_STATUS, "[{")
    yield f"{where}: record of a pod NIC left over", pod_note(m, pod_nic_key("stranger"), "{}")
    yield f"{where}: operation left over on the pod", pod_note(m, operation_key("stranger"), operation)
    yield f"{where}: operation left over on the VMI", vmi_note(m, operation_key("stranger"), operation)
    yield f"{where}: operation left over on the VM", vm_note(m, operation_key("stranger"), operation)
    yield f"{where}: slots of another pod", vmi_note(m, NIC_SLOTS, encode(NicSlots(1, 1, "other")))
    yield f"{where}: slots of too many NICs", vmi_note(m, NIC_SLOTS, encode(NicSlots(1, 77, f"pod-uid-{where}")))
    yield f"{where}: status.interfaces of a stranger", entry(m, "stranger", infoSource="domain")
    yield f"{where}: no acting pod", machine(m, lambda x: msgspec.structs.replace(x, pods=()))
    yield f"{where}: no sandbox", inside(m, lambda i: PodOnNode(None))
    yield f"{where}: link left over", links(m, lambda ls: [*ls, SeenLink(99, tap, "tun")])
    yield f"{where}: pod's own link gone", links(m, lambda ls: [x for x in ls if x.name != "eth0"])
    yield f"{where}: tap of a stranger held", taps(m, lambda held: held | {tap})
    yield f"{where}: card of a stranger", cards(m, lambda cs: [*cs, GuestDevice("stranger", mac(9))])
    yield f"{where}: record gone", node_part("records", lambda rs: [x for x in rs if x.sandbox != sandbox])
    yield f"{where}: record of another pod", _record(sandbox, pod_uid="other")
    yield f"{where}: record with another namespace", _record(sandbox, netns="/var/run/netns/cni-other")
    yield f"{where}: record released", _record(sandbox, released=True)
    yield f"{where}: recorded attachment left over", attached(m, lambda a: [*a, AttachmentRecord("net9", "other")])
    yield f"{where}: kept rung left over", hotplug_status_changes.left_over(m)
    yield (
        f"{where}: lease left over",
        node_part("leases", lambda ls: [*ls, IpamLease(NAD, "10.9.9.9", sandbox, "net9")]),
    )


def _of_node() -> Iterator[tuple[str, Change]]:
    yield (
        "record orphaned",
        node_part("records", lambda rs: [*rs, SandboxRecords("gone", "/run/netns/cni-gone", "x/y", "u")]),
    )
    yield "lease orphaned", node_part("leases", lambda ls: [*ls, IpamLease(NAD, "10.9.9.9", "gone", "net1")])
    yield "namespace orphaned", node_part("namespaces", lambda ns: [*ns, NetnsPath("/run/netns/cni-gone", None, ())])
    veth = SeenLink(index=9000, name="veth0badcafe", kind="veth", up=True, master=2, peer=2)
    yield "veth orphaned", node_part("links", lambda ls: [*ls, veth])


# -- the parts of a world, changed -------------------------------------------------------------------------------


def _on(link: object, *, key: str = "interface", **fields: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda items: [
        msgspec.structs.replace(item, **fields) if getattr(item, key) == link else item for item in items
    ]


def _without(name: str) -> Callable[[list[SeenLink]], list[SeenLink]]:
    return lambda items: [item for item in items if item.name != name]


def _link(name: str, **fields: Any) -> Callable[[list[SeenLink]], list[SeenLink]]:
    return _on(name, key="name", **fields)


def machine(m: int, change: Callable[[VmSnapshot], VmSnapshot]) -> Change:
    """A world with one machine changed; the controller keeps the ladder in step, whatever its objects come to."""
    return hotplug_status_changes.machine_alone(m, lambda x: projected(change(x)))


def inside(m: int, change: Callable[[Any], PodOnNode]) -> Change:
    """… with the inside of its pod changed."""
    return machine(
        m, lambda x: msgspec.structs.replace(x, inside={uid: change(seen) for uid, seen in x.inside.items()})
    )


def links(m: int, change: Callable[[list[SeenLink]], list[SeenLink]]) -> Change:
    """… with the links in its pod changed."""
    return inside(m, lambda i: msgspec.structs.replace(i, links=tuple(change(list(i.links)))))


def taps(m: int, change: Callable[[frozenset[str]], frozenset[str]]) -> Change:
    """… with the taps changed that its guest holds."""
    return inside(m, lambda i: msgspec.structs.replace(i, taps=change(i.taps)))


def cards(m: int, change: Callable[[list[GuestDevice]], list[GuestDevice]]) -> Change:
    """… with the cards of its domain changed."""
    return inside(m, lambda i: msgspec.structs.replace(i, cards=tuple(change(list(i.cards)))))


def pod_note(m: int, key: str, text: str | None) -> Change:
    """… with an annotation of its pod changed."""
    return machine(m, lambda x: msgspec.structs.replace(x, pods=tuple(_noted(pod, key, text) for pod in x.pods)))


def vmi_note(m: int, key: str, text: str | None) -> Change:
    """… with an annotation of its VMI changed."""
    return machine(m, lambda x: msgspec.structs.replace(x, vmi=_noted(x.vmi, key, text)))


def vm_note(m: int, key: str, text: str | None) -> Change:
    """… with an annotation of its VM changed."""
    return machine(m, lambda x: msgspec.structs.replace(x, vm=_noted(x.vm, key, text)))


def elements(m: int, change: Callable[[list[NetworkSelectionElement]], list[NetworkSelectionElement]]) -> Change:
    """… with the networks annotation of its pod changed."""

    def on(w: Snapshot) -> Snapshot:
        before = parse_networks(w.machines[m].pods[0].metadata.annotations.get(NETWORKS))
        return pod_note(m, NETWORKS, encode_networks(change(before)))(w)

    return on


def statuses(m: int, change: Callable[[list[NetworkStatus]], list[NetworkStatus]]) -> Change:
    """… with the network status of its pod changed."""

    def on(w: Snapshot) -> Snapshot:
        before = parse_network_status(w.machines[m].pods[0].metadata.annotations.get(NETWORK_STATUS))
        return pod_note(m, NETWORK_STATUS, encode_network_status(change(before)))(w)

    return on


def entry(m: int, interface: str, **fields: Any) -> Change:
    """… with an entry of the VMI's ``status.interfaces`` changed, or added."""

    def on(x: VmSnapshot) -> VmSnapshot:
        assert x.vmi is not None
        before = x.vmi.status.interfaces or []
        after = [{**e, **fields} if e["name"] == interface else e for e in before]
        if all(e["name"] != interface for e in before):
            after.append({"name": interface, **fields})
        status = msgspec.structs.replace(x.vmi.status, interfaces=after)
        return msgspec.structs.replace(x, vmi=msgspec.structs.replace(x.vmi, status=status))

    return machine(m, on)


def out_of_spec(m: int, interface: str) -> Change:
    """… with an interface taken out of the VMI's spec behind everybody's back."""

    def on(x: VmSnapshot) -> VmSnapshot:
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

    return machine(m, on)


def node_part(part: str, change: Callable[[list[Any]], list[Any]]) -> Change:
    """A world with a part of its node changed."""
    return lambda w: msgspec.structs.replace(
        w, node=msgspec.structs.replace(w.node, **{part: tuple(change(list(getattr(w.node, part))))})
    )


def attached(m: int, change: Callable[[list[AttachmentRecord]], list[AttachmentRecord]]) -> Change:
    """A world with the recorded attachments of one machine's sandbox changed."""
    sandbox = f"sandbox-of-vm{m}"
    return node_part(
        "records",
        lambda rs: [
            msgspec.structs.replace(r, attached=tuple(change(list(r.attached)))) if r.sandbox == sandbox else r
            for r in rs
        ],
    )


def _record(sandbox: str, **fields: Any) -> Change:
    return node_part("records", _on(sandbox, key="sandbox", **fields))


def _host_end(m: int, link: str, *, gone: bool = False, **fields: Any) -> Change:
    def on(w: Snapshot) -> Snapshot:
        (seen,) = w.machines[m].inside.values()
        assert isinstance(seen, PodOnNode)
        assert not isinstance(seen.links, NotVisible)
        peer = next(x.peer for x in seen.links if x.name in {link, f"{link[3:]}-nic"} and x.kind == "veth")
        if gone:
            return node_part("links", lambda ls: [x for x in ls if x.index != peer])(w)
        return node_part("links", _on(peer, key="index", **fields))(w)

    return on


def _noted(thing: Any, key: str, text: str | None) -> Any:
    notes = {k: v for k, v in thing.metadata.annotations.items() if k != key}
    if text is not None:
        notes[key] = text
    return msgspec.structs.replace(thing, metadata=msgspec.structs.replace(thing.metadata, annotations=notes))
