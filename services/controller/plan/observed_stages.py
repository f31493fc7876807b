"""The stages that KubeVirt brings an interface to while it owns the VMs, as events. Pure.

Only an operation with an entry has them. The controller sees them all in the VMI and its acting pod, so that no role
has to run on the node beside virt-handler. What hotnic's networks attaches, networks publishes itself.
Next: :mod:`services.controller.observed_stages`, which publishes each of them once.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from schemas.bus.events import (
    ChangedObject,
    ConfirmedBy,
    GuestAttached,
    GuestDetached,
    MultusAttached,
    ObjectRef,
    PodAnnotated,
)
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import read_hotplug_mark
from schemas.stages import OperationKind, Stage
from services.common.domain.kubevirt.entries import read_entries
from services.common.domain.kubevirt.stages import is_in_guest, is_on_another_network, nad_of, observe_stage
from services.common.domain.nic import Nic, VmiNics
from services.common.domain.operations import ABSENT, is_migrating
from services.common.domain.status_interfaces import GUEST_AGENT

ObservedEvent = PodAnnotated | MultusAttached | GuestAttached | GuestDetached


class ObservedStage(msgspec.Struct, frozen=True):
    """One stage of an operation, reached or not.

    :ivar event: the event to publish once it is reached.
    :ivar due: whether the step before it is done.
    """

    event: ObservedEvent
    reached: bool
    due: bool = True


def observed_stages(nics: VmiNics) -> Iterator[ObservedStage]:
    """Yield the stages of the operations that have an entry, those of the pod before those of the guest."""
    yield from _pod_stages(nics)
    yield from _guest_stages(nics)


def _pod_stages(nics: VmiNics) -> Iterator[ObservedStage]:
    """Yield for each plug whether the acting pod's annotations list the attachment, as desired and as present."""
    pod = nics.pod
    if pod is None:
        return
    meta = pod.metadata
    for nic in nics:
        # Not an entry for another NAD, which KubeVirt has still to copy to the VMI.
        operation = nic.operation
        if not nic.has_operation or operation.vm is None or nic.absent:
            continue
        fields = {
            **_fields(nics),
            "changed": ChangedObject("Pod", meta.uid, meta.resource_version),
            "operation": operation,
            "pod_interface": nic.link,
        }
        annotated = nic.element is not None and nad_of(nic.element, meta.namespace) == nic.nad
        yield ObservedStage(PodAnnotated(**fields), annotated)
        if not _is_attached_by_networks(nic, pod):
            mac, ips = (nic.status.mac, nic.status.ips) if nic.status is not None else (None, ())
            attached = nic.status is not None and not is_on_another_network(nics, nic)
            yield ObservedStage(MultusAttached(mac=mac, ips=tuple(ips or ()), **fields), attached, annotated)


def _is_attached_by_networks(nic: Nic, pod: Pod) -> bool:
    """Return whether hotnic's networks attached the interface to the running pod."""
    record = nic.record or read_hotplug_mark(pod.metadata.annotations, nic.link)
    if record is None or record.pod_uid != pod.metadata.uid or record.interface != nic.link:
        return False
    # The multus role, which attaches at the pod's creation, publishes nothing and leaves no digest.
    return record.settings_digest is not None


def _guest_stages(nics: VmiNics) -> Iterator[ObservedStage]:
    """Yield for each plug and unplug whether the guest has got or released the device.

    Nothing at the hand-over of a migration: the VMI's status may then be incomplete, and says so again afterwards.
    """
    if nics.pod is None or is_migrating(nics.vmi):
        return
    for (name, kind), operation in read_entries(nics).items():
        nic = nics.nics.get(name)
        absent = nic is not None and nic.interface.state == ABSENT
        if kind is OperationKind.UNPLUG:
            detached = GuestDetached(operation=operation, **_fields(nics))
            # KubeVirt removes an interface from the spec when guest and Multus have released it.
            yield ObservedStage(detached, nic is None or (absent and not is_in_guest(nic)), nic is None or absent)
        elif nic is not None and not absent and nic.operation == operation:
            attached = GuestAttached(
                operation=operation,
                mac=nic.entry.get("mac"),
                confirmed_by=ConfirmedBy.GUEST_AGENT if GUEST_AGENT in nic.tokens else ConfirmedBy.DEVICE,
                guest_interface=nic.entry.get("interfaceName"),
                **_fields(nics),
            )
            # After a change of the NAD the guest has the device on the old network, until a migration.
            reached = observe_stage(nics, nic) is Stage.GUEST_ATTACHED
            due = nic.status is not None and not is_on_another_network(nics, nic)
            yield ObservedStage(attached, reached, due)


def _fields(nics: VmiNics) -> dict[str, Any]:
    """Return what the events of a VMI have; a stage that was reached by a change of the pod names the pod instead."""
    pod, vmi = nics.pod, nics.vmi.metadata
    assert pod is not None
    return {
        "vmi": _vmi_ref(nics),
        "pod": ObjectRef(pod.metadata.namespace, pod.metadata.name, pod.metadata.uid),
        "node": pod.spec.node_name,
        "changed": ChangedObject("VirtualMachineInstance", vmi.uid, vmi.resource_version),
    }


def _vmi_ref(nics: VmiNics) -> ObjectRef:
    meta = nics.vmi.metadata
    return ObjectRef(meta.namespace, meta.name, meta.uid)
