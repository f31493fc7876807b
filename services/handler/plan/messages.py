"""Build the events that the handler publishes. Pure. Next: :mod:`services.handler.report`, which publishes them."""

from schemas.bus.events import ChangedObject, ConfirmedBy, Failed, GuestAttached, GuestDetached, ObjectRef
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.stages import OperationKind, Stage
from services.common.domain.nic import Nic
from services.common.domain.status_interfaces import find_entry, readable


def guest_attached(
    vmi: VirtualMachineInstance, pod: Pod, sandbox_id: str, nic: Nic, confirmed_by: ConfirmedBy, attempt: int
) -> GuestAttached:
    """Build the event of a NIC that is confirmed.

    :param vmi: the VMI after its status was written.
    """
    entry = readable(find_entry(vmi.status.interfaces, nic.name) or {})
    return GuestAttached(
        operation=nic.operation,
        vmi=_vmi(vmi),
        pod=_pod(pod),
        sandbox_id=sandbox_id or None,
        node=pod.spec.node_name,
        attempt=attempt,
        changed=ChangedObject("VirtualMachineInstance", vmi.metadata.uid, vmi.metadata.resource_version),
        mac=entry.get("mac"),
        confirmed_by=confirmed_by,
        guest_interface=entry.get("interfaceName"),
    )


def guest_detached(vmi: VirtualMachineInstance, pod: Pod, sandbox_id: str, nic: Nic, attempt: int) -> GuestDetached:
    """Build the event of a NIC that is released.

    :param vmi: the VMI after ``released`` was written.
    :param nic: the NIC with the operation as written.
    """
    return GuestDetached(
        operation=nic.operation,
        vmi=_vmi(vmi),
        pod=_pod(pod),
        sandbox_id=sandbox_id or None,
        node=pod.spec.node_name,
        attempt=attempt,
        changed=ChangedObject("VirtualMachineInstance", vmi.metadata.uid, vmi.metadata.resource_version),
    )


def target_stage(nic: Nic) -> Stage:
    """Return the stage that the handler brings a NIC to."""
    return Stage.GUEST_DETACHED if nic.operation.kind is OperationKind.UNPLUG else Stage.GUEST_ATTACHED


def attempt_failed(
    vmi: VirtualMachineInstance,
    pod: Pod,
    sandbox_id: str,
    nic: Nic,
    reason: str,
    message: str,
    attempt: int,
    retry_after: float | None,
) -> Failed:
    """Build the event of an attempt that failed.

    :param retry_after: seconds; ``None`` when the failure is final.
    """
    return Failed(
        operation=nic.operation,
        vmi=_vmi(vmi),
        pod=_pod(pod),
        sandbox_id=sandbox_id or None,
        node=pod.spec.node_name,
        attempt=attempt,
        at=target_stage(nic),
        reason=reason,
        message=message,
        retry_after=retry_after,
    )


def _vmi(vmi: VirtualMachineInstance) -> ObjectRef:
    return ObjectRef(vmi.metadata.namespace, vmi.metadata.name, vmi.metadata.uid)


def _pod(pod: Pod) -> ObjectRef:
    return ObjectRef(pod.metadata.namespace, pod.metadata.name, pod.metadata.uid)
