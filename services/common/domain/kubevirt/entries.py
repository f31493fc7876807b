"""The entries of a VMI beside KubeVirt: operations that are written to it before KubeVirt follows its template. Pure.

An entry of a plug and one of an unplug have keys of their own, so that both exist while KubeVirt still follows the
template. A change of the NAD is a plug of its own, whose entry replaces the earlier plug's. Entries are the only
annotations that hotnic writes there. The api writes one for each of its requests, the controller for every other
change.
Not here: how far an operation is (:mod:`services.common.domain.kubevirt.stages`).
"""

from collections.abc import Mapping

import msgspec

from schemas.kubernetes.objects import VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.stages import OperationKind
from services.common.domain.kubevirt.times import seconds_between
from services.common.domain.nic import VmiNics
from services.common.domain.operations import owning_vm_uid, read_operations, read_unplugs
from services.common.domain.spec_patch import PatchOp, annotation_path, build_annotation_ops

ORPHAN_AGE = 60.0
"""Seconds after which an entry that nothing follows counts as left over: its change was refused, or never came."""


class InterfaceEntries(msgspec.Struct, frozen=True):
    """The entries of one interface; ``None`` where there is none.

    :ivar plug: the operation that plugs the interface; it stays until the interface is unplugged.
    :ivar unplug: the operation that unplugs it.
    """

    plug: Operation | None = None
    unplug: Operation | None = None

    def of(self, kind: OperationKind) -> Operation | None:
        """Return the entry of this kind."""
        return self.plug if kind is OperationKind.PLUG else self.unplug


def entry_key(interface: str, kind: OperationKind) -> str:
    """Return the key of the VMI's annotation with an entry."""
    return operation_key(interface) if kind is OperationKind.PLUG else unplug_key(interface)


def read_entries(nics: VmiNics) -> dict[tuple[str, OperationKind], Operation]:
    """Return the entries of a VMI by interface and kind, without operations from a time when hotnic owned the VMs."""
    return {key: operation for key, operation in nics.entries.items() if operation.vm is not None}


def entries_of_kind(vmi: VirtualMachineInstance, kind: OperationKind) -> dict[str, Operation]:
    """Return the entries of one kind by interface, without copies that name another VM."""
    read = read_operations if kind is OperationKind.PLUG else read_unplugs
    found = read(vmi.metadata, owning_vm_uid(vmi))
    return {name: entry for name, entry in found.items() if entry.kind is kind and entry.vm is not None}


def find_entry(vmi: VirtualMachineInstance, interface: str, kind: OperationKind) -> Operation | None:
    """Return the entry of an interface; ``None`` if there is none."""
    return entries_of_kind(vmi, kind).get(interface)


def find_entries(vmi: VirtualMachineInstance | None, interface: str) -> InterfaceEntries:
    """Return the entries of one interface; a VM that does not run has none."""
    if vmi is None:
        return InterfaceEntries()
    return InterfaceEntries(*(find_entry(vmi, interface, kind) for kind in (OperationKind.PLUG, OperationKind.UNPLUG)))


def entry_ops(vmi: VirtualMachineInstance, changes: Mapping[str, str | None]) -> list[PatchOp]:
    """Return the patch of a VMI that changes entries; it applies only while none of them has changed.

    :param changes: the new values by :func:`entry_key`; ``None`` removes one.
    """
    meta = vmi.metadata
    tests: list[PatchOp] = []
    if meta.annotations:
        # A test for null also succeeds on a missing annotation: an entry that somebody else writes meanwhile wins.
        tests = [{"op": "test", "path": annotation_path(key), "value": meta.annotations.get(key)} for key in changes]
    return [same_vmi(vmi), *tests, *build_annotation_ops(meta.annotations, meta.resource_version, dict(changes))]


def withdrawal_ops(vmi: VirtualMachineInstance, entry: Operation) -> list[PatchOp]:
    """Return the patch of a VMI that takes an entry back, unless it has been replaced or removed since."""
    path = annotation_path(entry_key(entry.interface, entry.kind))
    test = {"op": "test", "path": path, "value": encode_annotation(entry)}
    return [same_vmi(vmi), test, {"op": "remove", "path": path}]


def same_vmi(vmi: VirtualMachineInstance) -> PatchOp:
    """Return the test that a patch is of this VMI: a VM that restarts gets a new one of the same name."""
    return {"op": "test", "path": "/metadata/uid", "value": vmi.metadata.uid}


def entry_age(entry: Operation, now: str) -> float:
    """Return the seconds since an operation was requested, at least 0; without a valid time it is left over.

    :param now: RFC 3339.
    """
    age = seconds_between(entry.requested_at, now)
    return max(0.0, age) if age is not None else ORPHAN_AGE
