"""Join the operations of a VMI: where KubeVirt owns the VMs, the operation of a change is on the VMI, not on the pod.

The VMI is read only when a launcher pod has something to attach or detach and its own annotations name no operation for
it. Without the VMI the change is made all the same, under an operation of its own: the trace is not worth a delay.
Next: :mod:`services.networks.apply`.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from schemas.bus.events import ObjectRef
from schemas.kubernetes.objects import VMIS, Pod, VirtualMachineInstance
from schemas.names import is_object_name, pod_interface
from schemas.stages import OperationKind
from services.common.domain.kubevirt.entries import entries_of_kind
from services.common.kube.denials import describe_error
from services.common.kube.errors import Forbidden, KubeError
from services.common.runtime.context import RoleContext
from services.networks.plan.actions import Action, Attach, Detach
from services.networks.plan.attachments import PodAttachments

DEADLINE = 1.0
"""Seconds to read a VMI."""


def vmi_of(pod: Pod) -> ObjectRef | None:
    """Return the VMI that owns a pod; ``None`` for an ordinary pod.

    An owner reference may name anything: Kubernetes checks neither its group nor the length of its name, which becomes
    a part of the subject of every event about the pod.
    """
    for owner in pod.metadata.owner_references:
        is_vmi = owner.kind == VMIS.kind and owner.api_version.startswith(f"{VMIS.group}/")
        if is_vmi and is_object_name(owner.name):
            return ObjectRef(pod.metadata.namespace, owner.name, owner.uid)
    return None


class VmiOperations:
    """Finds the operations of changes on the VMIs of launcher pods."""

    def __init__(self, context: RoleContext) -> None:
        self._kube = context.kube
        self._log = context.log
        self._denied = False

    async def join(self, pod: Pod, actions: Sequence[Action], attachments: PodAttachments) -> list[Action]:
        """Return the actions, each with the operation of the VMI if the VMI has one for it."""
        owner = vmi_of(pod)
        written = list(attachments.operations.values())
        changes = [action for action in actions if isinstance(action, Attach | Detach)]
        if owner is None or all(change.operation in written for change in changes):
            return list(actions)
        vmi = await self._read(owner)
        return [join_operation(action, vmi) for action in actions] if vmi is not None else list(actions)

    async def _read(self, owner: ObjectRef) -> VirtualMachineInstance | None:
        try:
            async with asyncio.timeout(DEADLINE):
                vmi = await self._kube.get(VMIS, owner.namespace, owner.name)
        except Forbidden as error:
            if not self._denied:
                self._denied = True
                self._log.warning("operations of VMIs unknown", error=describe_error(error))
            return None
        except (KubeError, TimeoutError) as error:
            self._log.info("operation of a VMI unknown", vmi=f"{owner.namespace}/{owner.name}", error=str(error))
            return None
        self._denied = False
        return vmi if vmi.metadata.uid == owner.uid else None


def join_operation(action: Action, vmi: VirtualMachineInstance) -> Action:
    """Return an action with the operation that the VMI has for its link, or as it is. Pure."""
    if not isinstance(action, Attach | Detach):
        return action
    kind = OperationKind.PLUG if isinstance(action, Attach) else OperationKind.UNPLUG
    # The entry of a change of the NAD is not that of an attachment to the old one.
    networks = (None, action.network) if isinstance(action, Attach) else (None,)
    entries = (entry for entry in entries_of_kind(vmi, kind).values() if entry.network in networks)
    operation = next((entry for entry in entries if pod_interface(entry.interface) == action.link), None)
    return msgspec.structs.replace(action, operation=operation) if operation is not None else action
