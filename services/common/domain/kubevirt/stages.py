"""The stage of a NIC that KubeVirt plugs or unplugs, from objects in any order. Pure.

KubeVirt does not wait for one side before it changes the other: an unplug leaves the pod's annotation first, then the
guest and the network status in either order. At the hand-over of a migration, stages go back and come again. So a stage
is what the objects say now. Not here: the stages where hotnic owns the VM, and why a stage is not reached.
Next: :mod:`services.common.domain.kubevirt.reasons`.
"""

from schemas.kubernetes.networks import NetworkSelectionElement
from schemas.stages import Stage
from services.common.domain.nic import Nic, VmiNics, qualified_nad
from services.common.domain.status_interfaces import DOMAIN


def observe_stage(nics: VmiNics, nic: Nic) -> Stage:
    """Return the stage that a NIC has reached in the acting pod and the guest."""
    return _unplug_stage(nic) if nic.absent else _plug_stage(nics, nic)


def is_in_guest(nic: Nic) -> bool:
    """Return whether the guest has the device."""
    # KubeVirt's entry of a finished NIC may lack infoSource; one that only Multus has told of has no MAC.
    finished = not nic.tokens and bool(nic.entry.get("mac"))
    return DOMAIN in nic.tokens or finished


def is_on_another_network(nics: VmiNics, nic: Nic) -> bool:
    """Return whether the pod's interface is attached to another NAD than that of the spec: the NAD was changed."""
    return nic.status is not None and qualified_nad(nic.status.name, nics.vmi.metadata.namespace) != nic.nad


def has_lost_its_element(nics: VmiNics, nic: Nic) -> bool:
    """Return whether the guest has the device of a plug, but the pod does not list the interface any more."""
    return nics.pod is not None and not nic.absent and not nic.in_pod and is_in_guest(nic)


def _plug_stage(nics: VmiNics, nic: Nic) -> Stage:
    attached = nic.status is not None and not is_on_another_network(nics, nic)
    # While no pod is known to act, the status of the VMI is all there is.
    if is_in_guest(nic) and (attached or nics.pod is None):
        return Stage.GUEST_ATTACHED
    if attached:
        return Stage.MULTUS_ATTACHED
    return Stage.POD_ANNOTATED if _lists_nad(nics, nic) else Stage.REQUESTED


def _unplug_stage(nic: Nic) -> Stage:
    if is_in_guest(nic):
        return Stage.REQUESTED
    return Stage.GUEST_DETACHED if nic.in_pod else Stage.MULTUS_DETACHED


def _lists_nad(nics: VmiNics, nic: Nic) -> bool:
    return nic.element is not None and nad_of(nic.element, nics.vmi.metadata.namespace) == nic.nad


def nad_of(element: NetworkSelectionElement, namespace: str) -> str:
    """Return the NAD of a network selection element as ``namespace/name``.

    :param namespace: the pod's namespace, the default.
    """
    return qualified_nad(element.name, element.namespace or namespace)
