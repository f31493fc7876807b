"""What the controller looked at and what it can do: the words of its plan, without decisions.

Next: :mod:`services.controller.plan.operations`.
"""

from enum import StrEnum

import msgspec

from schemas.events import Changed, ObjectRef, PodAnnotated, Requested
from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from schemas.operations import Operation
from services.common.domain.spec_patch import Holder, Lists, Op, change, notes, of_vm, of_vmi


class Target(StrEnum):
    """The object that a patch changes."""

    VM = "vm"
    VMI = "vmi"
    POD = "pod"


class Observed(msgspec.Struct, frozen=True):
    """One VM, its VMI and the pod that acts for it; each ``None`` where there is none.

    :ivar enabled: whether NICs may be hot-plugged in this cluster. :ivar now: RFC 3339, UTC.
    :ivar refused: interfaces whose wish the API server refused in this run. :ivar singly: start one wish at a time.
    """

    vmi: VirtualMachineInstance | None
    pod: Pod | None
    vm: VirtualMachine | None = None
    enabled: bool = True
    now: str = ""
    refused: frozenset[str] = frozenset()
    singly: bool = False


class Annotated(msgspec.Struct, frozen=True):
    """An attachment that the annotation gains: what is to be published of it."""

    operation: Operation
    pod_interface: str


class Patch(msgspec.Struct, frozen=True):
    """Patch one object.

    :ivar verb: what it is for, as the span says it. :ivar operations: those it serves; its span is in their traces.
    :ivar gained: attachments to publish ``pod-annotated`` for, afterwards.
    """

    target: Target
    verb: str
    ops: list[Op]
    operations: tuple[Operation, ...] = ()
    gained: tuple[Annotated, ...] = ()


class Started(msgspec.Struct, frozen=True):
    """One wish that gets going.

    :ivar operation: without ``traceparent`` when nobody wrote it down: the controller then begins its trace.
    :ivar network: the NAD as ``namespace/name``; empty for an unplug.
    :ivar on_vm: whether the VM gets the operation's annotation; :ivar on_vmi: whether the VMI does.
    """

    operation: Operation
    network: str = ""
    on_vm: bool = False
    on_vmi: bool = True


class Start(msgspec.Struct, frozen=True):
    """Write wishes down: on the VM first (so that all who come later find the same operation), then on the VMI.

    ``requested`` is published for those that the VMI got. :ivar vm: the template's lists as they should be; ``None``
    leaves them. :ivar vmi: the same of the VMI.
    """

    wishes: tuple[Started, ...]
    vm: Lists | None = None
    vmi: Lists | None = None

    def vm_ops(self, vm: VirtualMachine, operations: list[Operation]) -> list[Op]:
        """The patch of the VM, with the operations as they are to be written; empty when it needs none."""
        mine = [o for o, wish in zip(operations, self.wishes, strict=True) if wish.on_vm]
        return _ops(of_vm(vm), self.vm, mine)

    def vmi_ops(self, vmi: VirtualMachineInstance, operations: list[Operation]) -> list[Op]:
        """The same for the VMI."""
        mine = [o for o, wish in zip(operations, self.wishes, strict=True) if wish.on_vmi]
        return _ops(of_vmi(vmi), self.vmi, mine)


class Complain(msgspec.Struct, frozen=True):
    """Say in a Kubernetes Event why something that was asked for is not done.

    :ivar key: makes it this Event and no other.
    """

    about: Target
    reason: str
    message: str
    key: tuple[str, ...]


Action = Patch | Start | Complain


def _ops(holder: Holder, lists: Lists | None, operations: list[Operation]) -> list[Op]:
    if lists is None and not operations:
        return []
    return change(holder, lists or holder.lists, notes(operations))


def requested(wish: Started, operation: Operation, vmi: VirtualMachineInstance) -> Requested:
    """The event of a wish that got going, of the VMI as patched."""
    meta = vmi.metadata
    return Requested(
        operation=operation,
        vmi=ObjectRef(meta.namespace, meta.name, meta.uid),
        node=vmi.status.node_name,
        changed=Changed("VirtualMachineInstance", meta.uid, meta.resource_version),
        network=wish.network,
    )


def pod_annotated(gained: Annotated, vmi: VirtualMachineInstance, pod: Pod, attempt: int) -> PodAnnotated:
    """The event of one gained attachment, of the pod as patched."""
    meta = pod.metadata
    return PodAnnotated(
        operation=gained.operation,
        vmi=ObjectRef(vmi.metadata.namespace, vmi.metadata.name, vmi.metadata.uid),
        pod=ObjectRef(meta.namespace, meta.name, meta.uid),
        node=pod.spec.node_name,
        changed=Changed("Pod", meta.uid, meta.resource_version),
        attempt=attempt,
        pod_interface=gained.pod_interface,
    )
