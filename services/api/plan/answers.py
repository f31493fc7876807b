"""Types of the api's plans: what it observed, the answers it can give, and the refusals that checks raise.

No decisions: the next module, :mod:`services.api.plan.checks`, has those that VMs and VMIs share.
"""

from enum import StrEnum

import msgspec

from schemas.bus.events import ChangedObject, ObjectRef, Requested
from schemas.kubernetes.objects import NetworkAttachmentDefinition, Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation
from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.stages import OperationKind
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.spec_patch import PatchOp


class RequestTarget(StrEnum):
    """The kind of object that a request changes; the value is the resource's name in KubeVirt's messages."""

    VM = "virtualmachine"
    VMI = "virtualmachineinstance"


class Observed(msgspec.Struct, frozen=True):
    """Everything that an answer depends on; an object that does not exist, or was not read, is ``None``.

    :ivar target: the kind of object that the request changes.
    :ivar namespace: the namespace of that object.
    :ivar name: the name of that object.
    :ivar options: the body of the request.
    :ivar vm: the VM; not read for ``removeinterface`` on a VMI.
    :ivar vmi: the VMI of the requested name.
    :ivar pod: the acting pod; read only when the VMI has an interface of the requested name.
    :ivar nad: the requested NAD; read for ``addinterface`` only.
    :ivar nad_allowed: whether the user may use that NAD.
    :ivar vm_allowed: whether the user may update the VM; reviewed only beside KubeVirt.
    :ivar user: the name of the user.
    :ivar owned_by_hotnic: whether hotnic, not KubeVirt, owns the VMs of this cluster.
    :ivar beside: what the KubeVirt that owns the VMs can do; ``None`` where hotnic owns them.
    :ivar preferred_model: the interface model of the VM's preference; empty when it names none.
    :ivar served: whether a pod that attaches networks at run time was found on the VMI's node; read only beside
        KubeVirt.
    :ivar allow_eviction: whether the user accepts that KubeVirt shuts the VM down for this request.
    :ivar default_binding: the binding of the primary network (KubeVirt's ``pod: {}``) of a VM that lists no interface.
    :ivar new_id: a UUID for a new operation.
    :ivar now: the current time, RFC 3339, UTC.
    :ivar traceparent: the trace context of the request; ``None`` when it is not traced.
    """

    target: RequestTarget
    namespace: str
    name: str
    options: AddInterfaceOptions | RemoveInterfaceOptions
    vm: VirtualMachine | None
    vmi: VirtualMachineInstance | None
    pod: Pod | None
    nad: NetworkAttachmentDefinition | None
    nad_allowed: bool
    vm_allowed: bool
    user: str
    owned_by_hotnic: bool
    default_binding: str
    new_id: str
    now: str
    traceparent: str | None
    beside: Capabilities | None = None
    preferred_model: str = ""
    served: bool = False
    allow_eviction: bool = False

    def new_operation(self, kind: OperationKind) -> Operation:
        """Return a new operation for the requested interface."""
        return Operation(self.new_id, kind, self.options.name, self.traceparent, self.now)


class RefuseRequest(msgspec.Struct, frozen=True):
    """Refuse the request.

    :ivar code: the HTTP status code.
    :ivar reason: the reason of the Kubernetes ``Status``.
    :ivar message: the text for the user.
    :ivar kind: the kind of the object that the refusal is about.
    :ivar name: the name of that object.
    :ivar cause: the machine-readable cause, such as :data:`schemas.kubernetes.options.PERSIST_REQUIRED`; may be empty.
    """

    code: int
    reason: str
    message: str
    kind: str
    name: str
    cause: str = ""


class JoinOperation(msgspec.Struct, frozen=True):
    """Answer with an operation in progress that an identical request has started."""

    operation: Operation


class EntryWrite(msgspec.Struct, frozen=True):
    """Two patches of the VMI of a running VM beside KubeVirt.

    :ivar ops: writes the entry of the operation; empty when the VMI has it already.
    :ivar withdrawal: takes it back; empty when another request wrote it.
    """

    ops: list[PatchOp]
    withdrawal: list[PatchOp]


class ChangeObject(msgspec.Struct, frozen=True):
    """Patch the target and start an operation.

    For a VMI, the api then publishes ``requested``. For a VM, the controller does, when it changes the VMI; but beside
    KubeVirt the api does for a running VM.

    :ivar target: the object to patch.
    :ivar operation: the operation that the patch starts.
    :ivar ops: the JSON patch.
    :ivar network: the NAD as ``namespace/name``; empty for an unplug.
    :ivar subresource: the subresource to patch; ``None`` is the object itself.
    :ivar entry: the write of the operation to the VMI, before the patch; only for a running VM beside KubeVirt.
    :ivar warnings: what the change will cause, as sentences for the user.
    """

    target: RequestTarget
    operation: Operation
    ops: list[PatchOp]
    network: str = ""
    subresource: str | None = None
    entry: EntryWrite | None = None
    warnings: tuple[str, ...] = ()

    def requested_event(self, vmi: VirtualMachineInstance) -> Requested:
        """Return the event that the operation was requested.

        :param vmi: the VMI after the patch.
        """
        meta = vmi.metadata
        return Requested(
            operation=self.operation,
            vmi=ObjectRef(meta.namespace, meta.name, meta.uid),
            node=vmi.status.node_name,
            changed=ChangedObject("VirtualMachineInstance", meta.uid, meta.resource_version),
            network=self.network,
        )


Answer = RefuseRequest | JoinOperation | ChangeObject


class Refused(Exception):
    """Raised by a check: the request is refused.

    :ivar answer: the refusal.
    """

    def __init__(self, answer: RefuseRequest) -> None:
        super().__init__(answer.message)
        self.answer = answer


def refused(observed: Observed, code: int, reason: str, message: str) -> Refused:
    """Return a refusal about the object that the request changes.

    :param code: the HTTP status code.
    :param reason: the reason of the Kubernetes ``Status``.
    :param message: the text for the user.
    """
    return Refused(RefuseRequest(code, reason, message, str(observed.target), observed.name))


def not_found(observed: Observed) -> Refused:
    """Return a 404 refusal, in KubeVirt's words."""
    return refused(observed, 404, "NotFound", f'{observed.target}.kubevirt.io "{observed.name}" not found')


def conflict(observed: Observed, why: str, reason: str = "Conflict", cause: str = "") -> Refused:
    """Return a 409 refusal, in KubeVirt's words.

    :param why: the explanation for the user, which follows KubeVirt's prefix.
    :param reason: the reason of the Kubernetes ``Status``, such as ``AlreadyExists``.
    :param cause: see :class:`RefuseRequest`.
    """
    message = f'Operation cannot be fulfilled on {observed.target}.kubevirt.io "{observed.name}": {why}'
    return Refused(RefuseRequest(409, reason, message, str(observed.target), observed.name, cause))


def invalid(observed: Observed, why: str) -> Refused:
    """Return a 422 refusal.

    :param why: the explanation for the user, which follows the name of the object.
    """
    return refused(observed, 422, "Invalid", f'{observed.target}.kubevirt.io "{observed.name}" is invalid: {why}')
