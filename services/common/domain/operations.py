"""The operation of an interface, and the acting pod of a VMI.

Both are read from objects, so that all roles come to the same result, whether triggered by bus or by watch.
Next: :mod:`services.common.domain.nic`.
"""

from collections.abc import Iterable

from schemas.kubernetes.objects import CREATED_BY_LABEL, VMS, Interface, ObjectMeta, Pod, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, derive_operation_id, read_held, read_unplug_at
from schemas.stages import OperationKind

ABSENT = "absent"
FINISHED = frozenset({"Succeeded", "Failed"})
"""Phases of a pod that runs nothing any more."""


def operation_kind(interface: Interface) -> OperationKind:
    """Return the kind of operation of an interface: ``state: absent`` unplugs, any other state plugs."""
    return OperationKind.UNPLUG if interface.state == ABSENT else OperationKind.PLUG


def read_operations(meta: ObjectMeta, vm: str | None = None) -> dict[str, Operation]:
    """Return the operations in an object's annotations by interface, without malformed ones and without copies.

    :param meta: the object's metadata. An operation that names another object is a copy.
    :param vm: UID of the VM that owns a VMI. An operation that names another VM is a copy that came with a clone or a
        restore; every operation that names one is a copy on an object other than a VMI.
    """
    found = (read_held(meta, key) for key in meta.annotations)
    return {
        operation.interface: operation
        for operation in found
        if operation is not None and (operation.vm is None or operation.vm == vm)
    }


def read_unplugs(meta: ObjectMeta, vm: str | None) -> dict[str, Operation]:
    """Return the unplugs beside KubeVirt in a VMI's annotations by interface.

    They have a key of their own, see :func:`schemas.kubernetes.operations.unplug_key`.

    :param vm: UID of the VM that owns the VMI.
    """
    found = (read_unplug_at(meta.annotations, key) for key in meta.annotations)
    return {operation.interface: operation for operation in found if operation is not None and operation.vm == vm}


def owning_vm_uid(vmi: VirtualMachineInstance) -> str | None:
    """Return the UID of the VM that owns a VMI; ``None`` for a VMI without a VM."""
    return next((owner.uid for owner in vmi.metadata.owner_references if owner.kind == VMS.kind), None)


def resolve_operation(vmi: VirtualMachineInstance, interface: Interface, written: Operation | None) -> Operation:
    """Return the operation of an interface.

    It is the annotation's, if that has the kind that the spec demands. Otherwise, for example after an edit with
    kubectl, its id is derived from the VMI's UID, the name, the kind and the generation, which every role derives
    alike.

    :param written: the operation in the VMI's annotation; ``None`` when there is none.
    """
    kind = operation_kind(interface)
    if written is not None and written.kind is kind:
        return written
    derived = derive_operation_id(vmi.metadata.uid, interface.name, kind, vmi.metadata.generation)
    return Operation(derived, kind, interface.name)


def is_migrating(vmi: VirtualMachineInstance) -> bool:
    """Return whether a live migration is unfinished; until then nothing is plugged or unplugged."""
    state = vmi.status.migration_state
    return state is not None and not (state.completed or state.failed)


def find_acting_pod(vmi: VirtualMachineInstance, pods: Iterable[Pod]) -> Pod | None:
    """Return the pod that acts for a VMI: its newest launcher pod on ``status.nodeName`` that is not finished.

    While the status lists no active pods, it is the only launcher pod on that node that is not being deleted.
    """
    mine = [pod for pod in pods if belongs_to(pod, vmi) and pod.status.phase not in FINISHED]
    active, node = vmi.status.active_pods, vmi.status.node_name
    if active:
        # After a migration away and back, activePods lists two pods of the node, of which one is finished.
        here = [pod for pod in mine if active.get(pod.metadata.uid) == node and pod.spec.node_name == node]
        return max(here, key=lambda pod: pod.metadata.creation_timestamp or "", default=None)
    here = [pod for pod in mine if pod.metadata.deletion_timestamp is None and (not node or pod.spec.node_name == node)]
    return here[0] if len(here) == 1 else None


def belongs_to(pod: Pod, vmi: VirtualMachineInstance) -> bool:
    """Return whether a pod was created for this VMI, and not for an earlier one of the same name."""
    return pod.metadata.namespace == vmi.metadata.namespace and vmi.metadata.uid in vmi_uids_of(pod)


def vmi_uids_of(pod: Pod) -> list[str]:
    """Return the UIDs of the VMIs for which a pod was created: none, one, or two if label and owner differ."""
    label = pod.metadata.labels.get(CREATED_BY_LABEL)
    owners = [owner.uid for owner in pod.metadata.owner_references if owner.kind == "VirtualMachineInstance"]
    return [*owners, *([label] if label is not None and label not in owners else [])]


def vmi_name_of(pod: Pod) -> str | None:
    """Return the name of the VMI for which a pod was created; ``None`` for an ordinary pod."""
    return next((o.name for o in pod.metadata.owner_references if o.kind == "VirtualMachineInstance"), None)
