"""The events the handler publishes. Pure. Next: :mod:`services.handler.apply`, which publishes them."""

from schemas.events import Changed, ConfirmedBy, Failed, GuestAttached, GuestDetached, ObjectRef
from schemas.kube import Pod, VirtualMachineInstance
from schemas.stages import OperationKind, Stage
from services.common.domain.status_interfaces import entry_of
from services.handler.records import Nic


def attached(
    vmi: VirtualMachineInstance, pod: Pod, sandbox_id: str, nic: Nic, confirmed_by: ConfirmedBy, attempt: int
) -> GuestAttached:
    """A confirmed card.

    :param vmi: as it is after the status was written.
    """
    entry = entry_of(vmi.status.interfaces, nic.name) or {}
    return GuestAttached(
        operation=nic.operation,
        vmi=_vmi(vmi),
        pod=_pod(pod),
        sandbox_id=sandbox_id or None,
        node=pod.spec.node_name,
        attempt=attempt,
        changed=Changed("VirtualMachineInstance", vmi.metadata.uid, vmi.metadata.resource_version),
        mac=entry.get("mac"),
        confirmed_by=confirmed_by,
        guest_interface=entry.get("interfaceName"),
    )


def detached(vmi: VirtualMachineInstance, pod: Pod, sandbox_id: str, nic: Nic, attempt: int) -> GuestDetached:
    """A NIC that was released.

    :param vmi: as it is after that was written. :param nic: with the operation as written.
    """
    return GuestDetached(
        operation=nic.operation,
        vmi=_vmi(vmi),
        pod=_pod(pod),
        sandbox_id=sandbox_id or None,
        node=pod.spec.node_name,
        attempt=attempt,
        changed=Changed("VirtualMachineInstance", vmi.metadata.uid, vmi.metadata.resource_version),
    )


def goal(nic: Nic) -> Stage:
    """The stage that the handler is to bring a NIC to."""
    return Stage.GUEST_DETACHED if nic.operation.kind is OperationKind.UNPLUG else Stage.GUEST_ATTACHED


def failed(
    vmi: VirtualMachineInstance,
    pod: Pod,
    sandbox_id: str,
    nic: Nic,
    reason: str,
    message: str,
    attempt: int,
    retry_after: float | None,
) -> Failed:
    """An attempt that failed.

    :param retry_after: seconds; ``None`` when it is final.
    """
    return Failed(
        operation=nic.operation,
        vmi=_vmi(vmi),
        pod=_pod(pod),
        sandbox_id=sandbox_id or None,
        node=pod.spec.node_name,
        attempt=attempt,
        at=goal(nic),
        reason=reason,
        message=message,
        retry_after=retry_after,
    )


def _vmi(vmi: VirtualMachineInstance) -> ObjectRef:
    return ObjectRef(vmi.metadata.namespace, vmi.metadata.name, vmi.metadata.uid)


def _pod(pod: Pod) -> ObjectRef:
    return ObjectRef(pod.metadata.namespace, pod.metadata.name, pod.metadata.uid)
