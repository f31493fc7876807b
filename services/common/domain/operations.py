"""Which operation an interface is in, and which pod acts for a VMI.

Both are read off objects, so that every role, told by bus or by watch, answers alike.
Next: :mod:`services.common.domain.attachments`.
"""

from collections.abc import Iterable

from schemas.kube import CREATED_BY_LABEL, Interface, Pod, VirtualMachineInstance
from schemas.operations import Operation, derived_id, operation_of
from schemas.stages import OperationKind

ABSENT = "absent"


def kind_of(interface: Interface) -> OperationKind:
    """What the spec wishes for an interface: ``state: absent`` unplugs, anything else plugs."""
    return OperationKind.UNPLUG if interface.state == ABSENT else OperationKind.PLUG


def operation_for(vmi: VirtualMachineInstance, interface: Interface) -> Operation:
    """The operation that an interface's wish belongs to.

    The annotation's, when it speaks of the same wish; otherwise (an edit with kubectl) one whose id everyone
    derives alike from the VMI's UID, the name, the kind and the generation.
    """
    kind = kind_of(interface)
    written = operation_of(vmi.metadata.annotations, interface.name)
    if written is not None and written.kind == kind:
        return written
    return Operation(
        id=derived_id(vmi.metadata.uid, interface.name, kind, vmi.metadata.generation),
        kind=kind,
        interface=interface.name,
    )


def migrating(vmi: VirtualMachineInstance) -> bool:
    """Whether a live migration is under way: nothing is plugged or unplugged until it is over."""
    state = vmi.status.migration_state
    return state is not None and not (state.completed or state.failed)


def acting_pod(vmi: VirtualMachineInstance, pods: Iterable[Pod]) -> Pod | None:
    """The pod that acts for a VMI: the one in ``status.activePods`` on ``status.nodeName``.

    Where the status does not list active pods (yet), the VMI's only launcher pod on that node that is not going away.
    """
    mine = [pod for pod in pods if belongs_to(pod, vmi)]
    active = vmi.status.active_pods
    if active:
        node = vmi.status.node_name
        return next((pod for pod in mine if active.get(pod.metadata.uid) == node and pod.spec.node_name == node), None)
    here = [
        pod
        for pod in mine
        if pod.metadata.deletion_timestamp is None
        and (not vmi.status.node_name or pod.spec.node_name == vmi.status.node_name)
    ]
    return here[0] if len(here) == 1 else None


def belongs_to(pod: Pod, vmi: VirtualMachineInstance) -> bool:
    """Whether a pod was made for this VMI (and not for an earlier one of the same name)."""
    uid = vmi.metadata.uid
    return pod.metadata.namespace == vmi.metadata.namespace and (
        pod.metadata.labels.get(CREATED_BY_LABEL) == uid
        or any(owner.kind == "VirtualMachineInstance" and owner.uid == uid for owner in pod.metadata.owner_references)
    )


def vmi_name_of(pod: Pod) -> str | None:
    """The name of the VMI that a pod was made for; ``None`` for an ordinary pod."""
    return next((o.name for o in pod.metadata.owner_references if o.kind == "VirtualMachineInstance"), None)
