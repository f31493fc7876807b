"""Checks of one pod against its node: the sandbox, multus' record, links, the node's end of veths, leases, the domain.

A part that is unknown is passed over here; :func:`services.common.domain.invariants.examine` says so.
Next: :mod:`services.common.domain.invariants.leftovers`, what belongs to no pod at all.
"""

from collections.abc import Iterator

from services.common.domain.invariants.nics import CheckedNic, CheckedVmi, hash_of, listed
from services.common.domain.invariants.objects import NETWORKS_ROLE, replug
from services.common.domain.invariants.world import AttachmentRecord, Finding, NotVisible, SandboxRecords, SeenLink

MULTUS = "the multus daemon forgets it with the sandbox; until then its DEL may leave something behind"
BY_HAND = "nothing of hotnic uses it; remove it by hand"
_BRIDGE, _TAP, _STAND_IN = frozenset({"bridge"}), frozenset({"tun"}), frozenset({"dummy", "bridge"})


def sandbox(case: CheckedVmi) -> Iterator[Finding]:
    """The runtime has a ready sandbox for the pod."""
    if not isinstance(case.inside, NotVisible) and case.inside.sandbox is None:
        what = f"pod {case.pod_subject} runs, the container runtime has no ready sandbox for it"
        yield Finding("SandboxMissing", case.machine.subject, what, "the kubelet ends the pod; restart the VM")


def record(case: CheckedVmi) -> Iterator[Finding]:
    """The multus daemon's record knows the attachments of the network status, and no others."""
    found, inside = case.sandbox_record, case.inside
    if isinstance(found, NotVisible) or isinstance(inside, NotVisible) or inside.sandbox is None:
        return
    subject = case.machine.subject
    if found is None:
        if case.statuses:
            what = f"pod {case.pod_subject} has attachments, the multus daemon has no record of its sandbox"
            yield Finding("RecordMissing", subject, what, "restart the VM; addresses may have to be freed by hand")
        return
    if found.pod_uid != case.pod.metadata.uid or _file(found.netns) != _file(inside.netns):
        what = f"the record of sandbox {found.sandbox} speaks of pod {found.pod_uid} and {found.netns}, not of this pod"
        yield Finding("RecordDiffers", subject, what, MULTUS)
    if found.released:
        what = f"the record of sandbox {found.sandbox} says that the runtime has undone it, the pod still runs"
        yield Finding("RecordDiffers", subject, what, "the multus daemon detaches all of it; restart the VM")
    subjects = {nic.names.stand_in: nic.subject for nic in case.nics}
    for link, status in case.statuses.items():
        attached = found.find(link)
        about = subjects.get(link, subject)
        if link in case.busy:
            continue
        if attached is None:
            what = f"the network status has {link} on {status.name}, the multus daemon has no record of it"
            yield Finding("AttachmentMissing", about, what, NETWORKS_ROLE)
        elif not attached.finished:
            what = f"the network status has {link}, the multus daemon's record says that its ADD was not finished"
            yield Finding("AttachmentUnfinished", about, what, NETWORKS_ROLE)
        elif sorted(attached.ips) != sorted(status.ips or ()):
            what = (
                f"the multus daemon recorded the addresses {listed(attached.ips)} for {link}, "
                f"the network status has {listed(status.ips or ())}"
            )
            yield Finding("AttachmentDiffers", about, what, NETWORKS_ROLE)
    for attached in found.attached:
        if attached.link not in case.statuses and attached.link not in case.busy:
            what = f"the multus daemon has {attached.link} on {attached.network} attached, the network status does not"
            yield Finding("AttachmentLeftOver", subject, what, NETWORKS_ROLE)


def links(case: CheckedVmi) -> Iterator[Finding]:
    """The links of every attachment stand in the pod as they should, and no others of hotnic's."""
    if isinstance(case.inside, NotVisible) or isinstance(case.inside.links, NotVisible):
        return
    here = {link.name: link for link in case.inside.links}
    for nic in case.nics:
        yield from _wired(case, nic, here)
    wired = {nic.names.stand_in for nic in case.nics} | case.busy
    for name, status in case.statuses.items():
        if name not in wired and name not in here:
            what = f"the network status has {name} on {status.name}, there is no such link in the pod"
            yield Finding("LinkMissing", case.machine.subject, what, "make the pod anew: restart the VM")
    for name in here:
        digits = hash_of(name)
        if digits is not None and not case.known_hash(digits):
            what = f"link {name} stands in pod {case.pod_subject}, which has no interface it could belong to"
            yield Finding("LinkLeftOver", case.machine.subject, what, f"{BY_HAND} (ip link del {name})")


def _wired(case: CheckedVmi, nic: CheckedNic, here: dict[str, SeenLink]) -> Iterator[Finding]:
    names = nic.names
    repair = replug(case.machine.namespace, case.machine.name, nic.name)
    parts = (
        ("PodNic", names.nic, None),
        ("Bridge", names.bridge, _BRIDGE),
        ("Tap", names.tap, _TAP),
        ("DummyInterface", names.stand_in, _STAND_IN),
    )
    for part, name, kinds in parts:
        link = here.get(name)
        if link is None:
            yield Finding(f"{part}Missing", nic.subject, f"link {name} is not in the pod", repair)
        elif kinds is not None and link.kind not in kinds:
            what = f"link {name} in the pod is a {link.kind or 'device'}, not a {' or '.join(sorted(kinds))}"
            yield Finding(f"{part}Differs", nic.subject, what, repair)
        elif part != "DummyInterface" and not link.up:
            yield Finding(f"{part}Down", nic.subject, f"link {name} in the pod is down", repair)
    bridge, stand_in = here.get(names.bridge), here.get(names.stand_in)
    if bridge is not None:
        for part, name in (("PodNic", names.nic), ("Tap", names.tap)):
            port = here.get(name)
            if port is not None and port.master != bridge.index:
                yield Finding(f"{part}OffBridge", nic.subject, f"link {name} is no port of {names.bridge}", repair)
    if stand_in is not None and nic.record is not None:
        if stand_in.mac != nic.record.mac.lower():
            what = f"{names.stand_in} has MAC {stand_in.mac}, the pod NIC record {nic.record.mac}"
            yield Finding("DummyInterfaceDiffers", nic.subject, what, repair)
        if sorted(stand_in.addresses) != sorted(nic.record.ips):
            what = (
                f"{names.stand_in} has the addresses {listed(stand_in.addresses)}, "
                f"the pod NIC record {listed(nic.record.ips)}"
            )
            yield Finding("DummyInterfaceDiffers", nic.subject, what, repair)


def veths(case: CheckedVmi) -> Iterator[Finding]:
    """The node's end of each veth is up and a port of the bridge that its plugin put it on."""
    found, inside, node = case.sandbox_record, case.inside, case.node
    if not isinstance(found, SandboxRecords) or isinstance(inside, NotVisible) or isinstance(node, NotVisible):
        return
    if isinstance(inside.links, NotVisible) or isinstance(node.links, NotVisible):
        return
    inner = {link.index: link for link in inside.links}
    outer = {link.index: link for link in node.links}
    subjects = {nic.names.stand_in: nic.subject for nic in case.nics}
    for attached in found.attached:
        if attached.kind != "veth" or attached.link in case.busy or not attached.finished:
            continue
        subject = subjects.get(attached.link, case.machine.subject)
        link = inner.get(attached.ifindex)
        if link is None or link.kind != "veth":
            what = f"the multus daemon made link {attached.ifindex} for {attached.link}, no such veth is in the pod"
            yield Finding("VethMissing", subject, what, "make the pod anew: restart the VM")
            continue
        end = outer.get(link.peer or 0)
        if end is None or end.kind != "veth" or end.peer != link.index:
            what = f"the other end of {link.name} ({attached.link}) is not on the node"
            yield Finding("HostVethMissing", subject, what, "make the pod anew: restart the VM")
            continue
        yield from _host_end(attached, end, outer, subject)


def _host_end(attached: AttachmentRecord, end: SeenLink, outer: dict[int, SeenLink], subject: str) -> Iterator[Finding]:
    if not end.up:
        what = f"the node's end of {attached.link}, {end.name}, is down"
        yield Finding("HostVethDown", subject, what, f"ip link set {end.name} up")
    master = outer.get(end.master or 0)
    if attached.bridge is not None and (master is None or master.name != attached.bridge):
        where = f"a port of {master.name}" if master is not None else "on no bridge"
        what = f"the node's end of {attached.link}, {end.name}, is {where}; its plugin put it on {attached.bridge}"
        yield Finding("HostVethOffBridge", subject, what, f"ip link set {end.name} master {attached.bridge}")


def leases(case: CheckedVmi) -> Iterator[Finding]:
    """Every address that ``host-local`` gave is kept for its link, and the sandbox keeps no other."""
    found, node = case.sandbox_record, case.node
    if not isinstance(found, SandboxRecords) or isinstance(node, NotVisible) or isinstance(node.leases, NotVisible):
        return
    kept = {(lease.link, lease.ip): lease for lease in node.leases if lease.container == found.sandbox}
    subjects = {nic.names.stand_in: nic.subject for nic in case.nics}
    given = set()
    for attached in found.attached:
        for ip in attached.ips:
            given.add((attached.link, ip))
            if attached.leased and attached.link not in case.busy and (attached.link, ip) not in kept:
                what = f"{attached.link} has {ip} of {attached.network}, which host-local does not keep for it"
                repair = "it may be given twice: unplug the NIC and plug it again"
                yield Finding("LeaseMissing", subjects.get(attached.link, case.machine.subject), what, repair)
    for key, lease in kept.items():
        if key not in given and lease.link not in case.busy:
            what = f"host-local keeps {lease.ip} of {lease.network} for {lease.link}, which does not have it"
            yield Finding("LeaseLeftOver", case.machine.subject, what, _free(lease.network, lease.ip))


def domain(case: CheckedVmi) -> Iterator[Finding]:
    """The guest uses the taps, and has the cards, of exactly the NICs that are at rest."""
    if isinstance(case.inside, NotVisible):
        return
    taps, cards = case.inside.taps, case.inside.cards
    if not isinstance(taps, NotVisible):
        for nic in case.nics:
            if nic.names.tap not in taps:
                what = f"the VMI's status says it is in the domain, but no process in the pod holds {nic.names.tap}"
                repair = replug(case.machine.namespace, case.machine.name, nic.name)
                yield Finding("TapNotHeld", nic.subject, what, repair)
        for tap in sorted(taps):
            digits = hash_of(tap)
            if digits is not None and not case.known_hash(digits):
                what = f"the guest of pod {case.pod_subject} holds {tap}, which belongs to no interface"
                yield Finding("GuestDeviceLeftOver", case.machine.subject, what, "restart the VM")
    if not isinstance(cards, NotVisible):
        here = {card.interface: card for card in cards}
        for nic in case.nics:
            card, shown = here.get(nic.name), str(nic.entry.get("mac") or "").lower()
            if card is None:
                what = "the VMI's status says it is in the domain, the domain has no such card"
                yield Finding("GuestDeviceMissing", nic.subject, what, "the handler plugs it again within a minute")
            elif card.mac != shown:
                what = f"its card has MAC {card.mac}, the VMI's status says {shown or 'none'}"
                yield Finding(
                    "GuestDeviceDiffers", nic.subject, what, "the handler corrects the status within a minute"
                )
        known = {interface.name for interface in case.vmi.spec.interface_items()}
        for name in sorted(here.keys() - known):
            what = f"the domain has a card of interface {name}, the spec has no such interface"
            yield Finding("GuestDeviceLeftOver", f"{case.machine.subject}/{name}", what, "restart the VM")


def _free(network: str, ip: str) -> str:
    return f"remove the file {ip} of network {network} from host-local's directory once nothing uses the address"


def _file(path: str) -> str:
    """The last part of a path: /run and /var/run are one directory on every node."""
    return path.rpartition("/")[2]
