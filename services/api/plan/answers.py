"""What the api looked at and what it can answer: the words of its plans, without decisions.

Next: :mod:`services.api.plan.checks`.
"""

from enum import StrEnum

import msgspec

from schemas.events import Changed, ObjectRef, Requested
from schemas.kube import NetworkAttachmentDefinition, Pod, VirtualMachine, VirtualMachineInstance
from schemas.operations import Operation
from schemas.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.stages import OperationKind
from services.common.domain.spec_patch import Op


class Target(StrEnum):
    """What a request is about; the value is the resource as KubeVirt's messages call it."""

    VM = "virtualmachine"
    VMI = "virtualmachineinstance"


class Observed(msgspec.Struct, frozen=True):
    """Everything an answer depends on; what does not exist is ``None``.

    :ivar vm: looked at for requests about a VM only. :ivar vmi: for a VM, its own.
    :ivar pod: the acting pod, looked at where it matters. :ivar nad: for ``addinterface``.
    :ivar usable: whether the user may use that NAD. :ivar user: who asks.
    :ivar owned: whether hotnic, not KubeVirt, drives the NICs of this cluster.
    :ivar default_binding: how the pod network of a VM that names no interface is bound.
    :ivar fresh_id: a UUID for a new operation. :ivar now: RFC 3339, UTC.
    """

    target: Target
    namespace: str
    name: str
    options: AddInterfaceOptions | RemoveInterfaceOptions
    vm: VirtualMachine | None = None
    vmi: VirtualMachineInstance | None = None
    pod: Pod | None = None
    nad: NetworkAttachmentDefinition | None = None
    usable: bool = True
    user: str = ""
    owned: bool = True
    default_binding: str = "masquerade"
    fresh_id: str = ""
    now: str = ""
    traceparent: str | None = None

    def operation(self, kind: OperationKind) -> Operation:
        """A new operation of this request."""
        return Operation(self.fresh_id, kind, self.options.name, self.traceparent, self.now)


class Refuse(msgspec.Struct, frozen=True):
    """A refusal: HTTP code, Kubernetes reason, message for the user; ``kind`` and ``name`` of what it is about."""

    code: int
    reason: str
    message: str
    kind: str
    name: str


class Joined(msgspec.Struct, frozen=True):
    """The same request runs already: the caller is told its operation."""

    operation: Operation


class Change(msgspec.Struct, frozen=True):
    """Apply ``ops`` to the target; for a VMI, publish ``requested`` then (for a VM, the controller does).

    :ivar network: the NAD as ``namespace/name``; empty for an unplug.
    """

    target: Target
    operation: Operation
    ops: list[Op]
    network: str = ""

    def event(self, vmi: VirtualMachineInstance) -> Requested:
        """The event, of the VMI as patched."""
        meta = vmi.metadata
        return Requested(
            operation=self.operation,
            vmi=ObjectRef(meta.namespace, meta.name, meta.uid),
            node=vmi.status.node_name,
            changed=Changed("VirtualMachineInstance", meta.uid, meta.resource_version),
            network=self.network,
        )


Answer = Refuse | Joined | Change


def refuse(seen: Observed, code: int, reason: str, message: str) -> Refuse:
    """A refusal about the target itself."""
    return Refuse(code, reason, message, str(seen.target), seen.name)


def not_found(seen: Observed) -> Refuse:
    """404, in KubeVirt's words."""
    return refuse(seen, 404, "NotFound", f'{seen.target}.kubevirt.io "{seen.name}" not found')


def conflict(seen: Observed, why: str, reason: str = "Conflict") -> Refuse:
    """409, in KubeVirt's words."""
    message = f'Operation cannot be fulfilled on {seen.target}.kubevirt.io "{seen.name}": {why}'
    return refuse(seen, 409, reason, message)


def invalid(seen: Observed, why: str) -> Refuse:
    """422."""
    return refuse(seen, 422, "Invalid", f'{seen.target}.kubevirt.io "{seen.name}" is invalid: {why}')
