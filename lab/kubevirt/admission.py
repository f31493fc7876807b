"""What virt-api's webhooks refuse, and what they undo, as an admission of the lab's API server.

Only rules about interfaces, and about who may write a VMI, are played. Next: `webhooks.py`, the same for Kubernetes
itself.
"""

from __future__ import annotations

from typing import Any, Final

from lab.apiserver.errors import ApiError
from lab.apiserver.registry.resources import ServedResource
from lab.apiserver.rest.verbs import Admission
from lab.kubevirt.objects import VM_GENERATION
from lab.kubevirt.specs import ABSENT, SpecLists, is_secondary, lists_of
from lab.kubevirt.versions import Behaviour, behaviour_of

Object = dict[str, Any]

ACCOUNT: Final = "system:serviceaccount:kubevirt:kubevirt-controller"
ACCOUNTS: Final = frozenset({ACCOUNT, *(ACCOUNT.replace("controller", name) for name in ("apiserver", "handler"))})
"""KubeVirt's own accounts, which may write everything; the player uses the first one."""

RESTRICTED: Final = "update of VMI object is restricted"
RESERVED: Final = "modification of the following reserved kubevirt.io/ labels on a VMI object is prohibited"
RESERVED_LABELS: Final = ("kubevirt.io/nodeName", "kubevirt.io/migrationTargetNodeName", "kubevirt.io/created-by")
VMI_VALIDATOR: Final = "virtualmachineinstances-update-validator.kubevirt.io"
VM_VALIDATOR: Final = "virtualmachine-validator.kubevirt.io"


class RefusedChange(Exception):
    """A change that one of KubeVirt's webhooks refuses; the message is the reason that it gives.

    :ivar webhook: the webhook's name.
    """

    def __init__(self, webhook: str, reason: str) -> None:
        super().__init__(reason)
        self.webhook = webhook


def admission_of(version: str) -> Admission:
    """Return the admission of a version of KubeVirt.

    :raises UnknownVersionError: it is not one of 1.0 to 1.9.
    """
    behaviour = behaviour_of(version)

    def admit(user: str, resource: ServedResource, new: Object, old: Object | None) -> Object:
        if resource.group != "kubevirt.io":
            return new
        try:
            return admitted(user, resource.plural, new, old, behaviour)
        except RefusedChange as refusal:
            message = f'admission webhook "{refusal.webhook}" denied the request: {refusal}'
            raise ApiError(422, "Invalid", message) from refusal

    return admit


def admitted(user: str, plural: str, new: Object, old: Object | None, behaviour: Behaviour) -> Object:
    """Return an object of the group kubevirt.io as it is stored.

    :param plural: its resource.
    :param old: the object before; `None` at a creation.
    :raises RefusedChange: a webhook refuses it.
    """
    if user in ACCOUNTS:
        return new
    if plural == "virtualmachines":
        if refusal := find_refusal(lists_of(new["spec"]["template"]["spec"]), behaviour):
            raise RefusedChange(VM_VALIDATOR, refusal)
    elif plural == "virtualmachineinstances" and old is not None:
        return admitted_vmi(new, old)
    return new


def admitted_vmi(new: Object, old: Object) -> Object:
    """Return a VMI as it is stored after a user's update: the status is that of before, annotations are kept.

    :raises RefusedChange: the spec or a reserved label is changed.
    """
    if new.get("spec") != old.get("spec"):
        raise RefusedChange(VMI_VALIDATOR, RESTRICTED)
    labels, before = new["metadata"].get("labels") or {}, old["metadata"].get("labels") or {}
    if any(labels.get(name) != before.get(name) for name in RESERVED_LABELS):
        raise RefusedChange(VMI_VALIDATOR, RESERVED)
    stored = {key: value for key, value in new.items() if key != "status"}
    if "status" in old:
        stored["status"] = old["status"]
    generation = (old["metadata"].get("annotations") or {}).get(VM_GENERATION)
    if generation is not None:
        annotations = {**(new["metadata"].get("annotations") or {}), VM_GENERATION: generation}
        stored["metadata"] = {**new["metadata"], "annotations": annotations}
    return stored


def find_refusal(lists: SpecLists, behaviour: Behaviour) -> str | None:
    """Return why a VM with these networks and interfaces is refused; `None` if it is not."""
    names = [str(interface.get("name")) for interface in lists.interfaces]
    for name in names:
        if names.count(name) > 1:
            return "Only one interface can be connected to one specific network"
    for interface in lists.interfaces:
        name, state = interface["name"], interface.get("state", "")
        allowed = ("", ABSENT, "up", "down") if behaviour.link_state else ("", ABSENT)
        if state not in allowed:
            return f"logical {name} interface state value is unsupported: {state}"
        if lists.network(name) is None:
            return f"spec.domain.devices.interfaces {name!r} has no network of the same name"
        if state == ABSENT and "bridge" not in interface:
            return f'"{name}" interface\'s state "absent" is supported only for bridge binding'
        if state == ABSENT and not is_secondary(lists.network(name)):
            return f'"{name}" interface\'s state "absent" is not supported on default networks'
        if state in ("up", "down") and "sriov" in interface:
            return f'"{name}" interface\'s state "{state}" is not supported for SR-IOV NICs'
    return None
