"""Types of the controller's plan: what it observed, the actions it can take, and the events they publish.

No decisions: these are in :mod:`services.controller.plan.operations`, the next module, and its siblings.
"""

from enum import StrEnum

import msgspec

from schemas.bus.events import ChangedObject, ObjectRef, PodAnnotated, Requested
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation
from services.common.domain.nic import VmiNics
from services.common.domain.spec_patch import (
    InterfaceLists,
    PatchOp,
    SpecHolder,
    build_patch,
    operation_annotations,
    template_spec_holder,
    vmi_spec_holder,
)
from services.common.domain.template import TemplateInterfaces


class PatchTarget(StrEnum):
    """The object that a patch changes."""

    VM = "vm"
    VMI = "vmi"
    POD = "pod"


class Observed(msgspec.Struct, frozen=True):
    """One VM, its VMI and the VMI's acting pod; each is ``None`` where it does not exist.

    :ivar vm: the VM.
    :ivar vmi: the VMI.
    :ivar pod: the acting pod.
    :ivar template: the parsed template of the VM; ``None`` when there is no VM or its template is malformed.
    :ivar nics: the parsed VMI and pod; ``None`` when there is no VMI or one of them is malformed.
    :ivar malformed: what is malformed in VMI or pod; empty when they can be parsed.
    :ivar enabled: whether NICs may be hot-plugged in this cluster.
    :ivar now: the current time, RFC 3339, UTC.
    :ivar refused_interfaces: the interfaces whose operation the API server has refused in this run.
    :ivar one_at_a_time: whether to start only one operation of the template, because the API server has refused several
        together.
    """

    vm: VirtualMachine | None
    vmi: VirtualMachineInstance | None
    pod: Pod | None
    template: TemplateInterfaces | None
    nics: VmiNics | None
    malformed: str
    enabled: bool
    now: str
    refused_interfaces: frozenset[str]
    one_at_a_time: bool


class AddedAttachment(msgspec.Struct, frozen=True):
    """An attachment that a patch adds to the pod's networks annotation; ``pod-annotated`` is published for it.

    :ivar operation: the plug that needs the attachment.
    :ivar pod_interface: the name of its pod interface.
    """

    operation: Operation
    pod_interface: str


class PatchObject(msgspec.Struct, frozen=True):
    """Patch one object.

    :ivar target: the object to patch.
    :ivar verb: the purpose, for the span's name.
    :ivar ops: the JSON patch.
    :ivar operations: the operations the patch serves; its span is in the first one's trace and links the others'.
    :ivar added_attachments: the attachments to publish ``pod-annotated`` for after the patch.
    """

    target: PatchTarget
    verb: str
    ops: list[PatchOp]
    operations: tuple[Operation, ...] = ()
    added_attachments: tuple[AddedAttachment, ...] = ()


class StartedOperation(msgspec.Struct, frozen=True):
    """An operation to start.

    :ivar operation: the operation; without ``traceparent`` when no annotation has it yet, the controller then starts
        its trace.
    :ivar network: the NAD as ``namespace/name``; empty for an unplug.
    :ivar on_vm: whether the VM gets the operation's annotation.
    :ivar on_vmi: whether the VMI gets the operation's annotation.
    """

    operation: Operation
    network: str = ""
    on_vm: bool = False
    on_vmi: bool = True


class StartOperations(msgspec.Struct, frozen=True):
    """Write operations to the VM, then to the VMI, and publish ``requested`` for those written to the VMI.

    The VM comes first, so that a run after a crash finds the operation and does not create a second one.

    :ivar started: the operations to start.
    :ivar vm: the desired lists of the VM's template; ``None`` leaves them unchanged.
    :ivar vmi: the desired lists of the VMI; ``None`` leaves them unchanged.
    """

    started: tuple[StartedOperation, ...]
    vm: InterfaceLists | None = None
    vmi: InterfaceLists | None = None

    def vm_ops(self, vm: VirtualMachine, operations: list[Operation]) -> list[PatchOp]:
        """Return the patch of the VM; empty when the VM does not change.

        :param operations: the operations as they are written, in the order of ``started``.
        """
        mine = [o for o, one in zip(operations, self.started, strict=True) if one.on_vm]
        return _patch_ops(template_spec_holder(vm), self.vm, mine)

    def vmi_ops(self, vmi: VirtualMachineInstance, operations: list[Operation]) -> list[PatchOp]:
        """Return the patch of the VMI; empty when the VMI does not change.

        :param operations: the operations as they are written, in the order of ``started``.
        """
        mine = [o for o, one in zip(operations, self.started, strict=True) if one.on_vmi]
        return _patch_ops(vmi_spec_holder(vmi), self.vmi, mine)


class WarnUser(msgspec.Struct, frozen=True):
    """Record a Warning Event with the reason why a requested change is not made.

    :ivar target: the object that the Event is about.
    :ivar reason: CamelCase, the reason of the Event.
    :ivar message: the text of the Event.
    :ivar key: the identity of the Event: an Event with the same key is recorded once.
    """

    target: PatchTarget
    reason: str
    message: str
    key: tuple[str, ...]


Action = PatchObject | StartOperations | WarnUser


def _patch_ops(holder: SpecHolder, lists: InterfaceLists | None, operations: list[Operation]) -> list[PatchOp]:
    changes = operation_annotations(operations, holder.metadata.uid)
    return build_patch(holder, lists or holder.lists, changes) if lists is not None or operations else []


def requested_event(started: StartedOperation, operation: Operation, vmi: VirtualMachineInstance) -> Requested:
    """Return the event that an operation was requested.

    :param operation: the operation as it was written.
    :param vmi: the VMI after the patch.
    """
    meta = vmi.metadata
    return Requested(
        operation=operation,
        vmi=ObjectRef(meta.namespace, meta.name, meta.uid),
        node=vmi.status.node_name,
        changed=ChangedObject("VirtualMachineInstance", meta.uid, meta.resource_version),
        network=started.network,
    )


def pod_annotated_event(added: AddedAttachment, vmi: VirtualMachineInstance, pod: Pod, attempt: int) -> PodAnnotated:
    """Return the event that the pod's networks annotation lists an attachment.

    :param pod: the pod after the patch.
    :param attempt: the number of the controller's attempt.
    """
    meta = pod.metadata
    return PodAnnotated(
        operation=added.operation,
        vmi=ObjectRef(vmi.metadata.namespace, vmi.metadata.name, vmi.metadata.uid),
        pod=ObjectRef(meta.namespace, meta.name, meta.uid),
        node=pod.spec.node_name,
        changed=ChangedObject("Pod", meta.uid, meta.resource_version),
        attempt=attempt,
        pod_interface=added.pod_interface,
    )
