"""Plan what the controller does for a VMI while KubeVirt owns the VMs: it keeps the entries of operations. Pure.

KubeVirt plugs and unplugs. An entry, an annotation of the VMI with the UID of its VM, gives each change one identity
and one trace from its first sight to its end. The api writes it for its requests; this plan adds it for changes by
anybody else, and removes what has ended or never came. Nothing else is written.
Next: :mod:`services.controller.entries`, which writes the plan.
"""

from collections.abc import Iterator

import msgspec

from schemas.kubernetes.objects import VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation
from schemas.stages import OperationKind
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.entries import ORPHAN_AGE, entry_age, entry_key, entry_ops, read_entries
from services.common.domain.kubevirt.stages import desired_nad, is_in_guest, is_on_another_network
from services.common.domain.nic import Nic, VmiNics, qualified_nad
from services.common.domain.operations import ABSENT, is_migrating
from services.common.domain.spec_patch import PatchOp
from services.common.domain.status_interfaces import DOMAIN, parse_tokens
from services.common.domain.template import TemplateInterfaces, find_pending_changes, is_active, owns
from services.controller.plan.actions import Observed


class NewEntry(msgspec.Struct, frozen=True):
    """An entry to write for a change that has none, or whose key has one for another NAD.

    :ivar network: the NAD as ``namespace/name``; empty for an unplug.
    """

    kind: OperationKind
    interface: str
    network: str = ""

    @property
    def key(self) -> str:
        """The key of its annotation."""
        return entry_key(self.interface, self.kind)


class EntryChanges(msgspec.Struct, frozen=True):
    """The changes of one VMI's entries, for one patch. Empty when there is nothing to write.

    :ivar added: the entries to write.
    :ivar removed: the keys of the entries to remove.
    :ivar next_orphan: seconds until an entry has to be removed unless something follows it; ``None`` if there is none.
    """

    added: tuple[NewEntry, ...] = ()
    removed: tuple[str, ...] = ()
    next_orphan: float | None = None

    def ops(self, vmi: VirtualMachineInstance, operations: list[Operation]) -> list[PatchOp]:
        """Return the patch of the VMI. It applies only while no entry that it changes has changed.

        :param operations: the operations of the added entries, in their order.
        """
        changes: dict[str, str | None] = dict.fromkeys(self.removed)
        for entry, operation in zip(self.added, operations, strict=True):
            changes[entry.key] = encode_annotation(operation)
        return entry_ops(vmi, changes)


def plan_entries(observed: Observed, beside: Capabilities) -> EntryChanges:
    """Return the changes of a VMI's entries.

    An interface that the VMI has from its start, or that was plugged before anybody looked, gets no entry: only a
    change in progress does.
    """
    template, nics = observed.template, observed.nics
    # KubeVirt plugs nothing into a VMI without a VM.
    if template is None or nics is None or not owns(template.vm, nics.vmi) or not is_active(nics.vmi):
        return EntryChanges()
    entries = read_entries(nics)
    added: dict[str, NewEntry] = {}
    if nics.vmi.status.phase == "Running":
        taken = {entry_key(name, kind): operation for (name, kind), operation in entries.items()}
        for entry in _changes_in_progress(template, nics, beside):
            # Two interfaces whose names have the same hash share a key: the first one has it.
            if entry.key not in taken or _is_other_network(nics, taken[entry.key], entry):
                added.setdefault(entry.key, entry)
    removed: list[str] = []
    waits: list[float] = []
    for (name, kind), operation in entries.items():
        ended = entry_key(name, kind) not in added and _is_taken_back(template, nics, operation, beside)
        if _is_followed(template, nics, name, kind) and not ended:
            continue
        unplugged = (name, OperationKind.UNPLUG) in entries and not _is_known(template, nics, name)
        left = 0.0 if ended or unplugged else ORPHAN_AGE - entry_age(operation, observed.now)
        if left > 0:
            waits.append(left)
        else:
            removed.append(entry_key(name, kind))
    return EntryChanges(tuple(added.values()), tuple(removed), min(waits, default=None))


def _changes_in_progress(template: TemplateInterfaces, nics: VmiNics, beside: Capabilities) -> Iterator[NewEntry]:
    """Yield the changes of the VMI that are not complete, then those that only the template has."""
    for nic in nics:
        if nic.interface.state == ABSENT:
            yield NewEntry(OperationKind.UNPLUG, nic.name)
            continue
        nad = desired_nad(template, nics, nic, beside)
        if _is_being_plugged(nics, nic) or is_on_another_network(nics, nic, nad):
            yield NewEntry(OperationKind.PLUG, nic.name, nad)
    # Nobody follows the template without the feature gate, and 1.0 follows its request queue only.
    for desired in find_pending_changes(template, nics) if not (beside.gate or beside.request_queue) else ():
        name, kind, network = desired.name, desired.kind, desired.network
        if network is None or network.multus is None or network.multus.default:
            continue
        if kind is OperationKind.PLUG:
            if nics.written(name, OperationKind.UNPLUG) is not None:
                # The VM as seen may be older than the VMI: KubeVirt drops an unplugged interface there first.
                continue
            nad = qualified_nad(network.multus.network_name, nics.vmi.metadata.namespace)
            yield NewEntry(kind, name, nad)
        elif name in nics.nics:
            yield NewEntry(kind, name)


def _is_being_plugged(nics: VmiNics, nic: Nic) -> bool:
    """Return whether the guest of a running VMI does not have the NIC yet.

    virt-handler reports all devices of the domain at once. Before it has, the VMI is starting. At the hand-over of a
    migration the report may be incomplete.
    """
    if nics.pod is None or is_migrating(nics.vmi) or is_in_guest(nic):
        return False
    return nic.status is None or any(DOMAIN in parse_tokens(entry) for entry in nics.vmi.status.interfaces or ())


def _is_other_network(nics: VmiNics, entry: Operation, new: NewEntry) -> bool:
    """Return whether the entry that a key has is for an earlier NAD of the same interface."""
    if new.kind is OperationKind.UNPLUG or entry.interface != new.interface:
        return False
    if entry.network is not None:
        return entry.network != new.network
    nic = nics.nics.get(new.interface)
    return nic is not None and is_on_another_network(nics, nic, new.network)


def _is_taken_back(template: TemplateInterfaces, nics: VmiNics, operation: Operation, beside: Capabilities) -> bool:
    """Return whether an entry is for another NAD than the one that the interface stays attached to."""
    nic = nics.nics.get(operation.interface)
    if nic is None or nic.status is None or nic.interface.state == ABSENT or operation.network is None:
        return False
    nad = desired_nad(template, nics, nic, beside)
    return operation.network != nad and not is_on_another_network(nics, nic, nad)


def _is_followed(template: TemplateInterfaces, nics: VmiNics, name: str, kind: OperationKind) -> bool:
    """Return whether VMI or template have an interface in the sense of its entry.

    A plug's entry belongs to the interface until it has left both.
    """
    if kind is OperationKind.PLUG:
        return _is_known(template, nics, name)
    desired, present = template.interfaces.get(name), nics.interfaces.get(name)
    return (desired is not None and desired.kind is kind) or (present is not None and present.state == ABSENT)


def _is_known(template: TemplateInterfaces, nics: VmiNics, name: str) -> bool:
    return name in template.interfaces or name in nics.interfaces
