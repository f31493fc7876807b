"""The entries of one interface on a VMI beside KubeVirt: the operations that its owning VM's template requested. Pure.

An entry of a plug and one of an unplug have keys of their own, so that both exist while KubeVirt still follows the
template. They are the only annotations that hotnic writes there, and always on the VMI.
Not here: the stages of an operation (:mod:`services.common.domain.status.hotplug_status`).
"""

import msgspec

from schemas.kubernetes.objects import VirtualMachineInstance
from schemas.kubernetes.operations import Operation, operation_key, read_operation, unplug_key
from schemas.stages import OperationKind


class InterfaceEntries(msgspec.Struct, frozen=True):
    """The entries of one interface; ``None`` where there is none, or a copy that names another VM.

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


def read_entries(vmi: VirtualMachineInstance, interface: str, vm_uid: str) -> InterfaceEntries:
    """Return the entries of an interface.

    :param vm_uid: UID of the VM that owns the VMI. An entry that names another one came with a clone or a restore.
    """
    found = {}
    for kind in OperationKind:
        text = vmi.metadata.annotations.get(entry_key(interface, kind))
        operation = read_operation({operation_key(interface): text}, interface) if text is not None else None
        if operation is not None and operation.kind is kind and operation.vm == vm_uid:
            found[kind] = operation
    return InterfaceEntries(found.get(OperationKind.PLUG), found.get(OperationKind.UNPLUG))
