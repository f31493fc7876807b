"""The stage of a NIC that KubeVirt plugs or unplugs, from objects in any order. Pure.

KubeVirt does not wait for one side before it changes the other: an unplug leaves the pod's annotation first, then the
guest and the network status in either order. At the hand-over of a migration, stages go back and come again. So a stage
is what the objects say now. After a change of the NAD the interface stays attached to the old network until the VM is
migrated; its stages start again, judged by the name in network-status.
Not here: the stages where hotnic owns the VM, and why a stage is not reached.
Next: :mod:`services.common.domain.kubevirt.reasons`.
"""

from schemas.kubernetes.networks import NetworkSelectionElement
from schemas.stages import OperationKind, Stage
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.migration import is_migration_required
from services.common.domain.nic import Nic, VmiNics, qualified_nad
from services.common.domain.status_interfaces import DOMAIN
from services.common.domain.template import TemplateInterfaces


def observe_stage(nics: VmiNics, nic: Nic) -> Stage:
    """Return the stage that a NIC has reached in the acting pod and the guest."""
    return _unplug_stage(nic) if nic.absent else _plug_stage(nics, nic)


def is_in_guest(nic: Nic) -> bool:
    """Return whether the guest has the device."""
    # KubeVirt's entry of a finished NIC may lack infoSource; one that only Multus has told of has no MAC.
    finished = not nic.tokens and bool(nic.entry.get("mac"))
    return DOMAIN in nic.tokens or finished


def is_on_another_network(nics: VmiNics, nic: Nic, nad: str | None = None) -> bool:
    """Return whether the pod's interface is attached to another NAD: the NAD was changed.

    :param nad: as ``namespace/name``; that of the VMI's spec by default.
    """
    return nic.status is not None and qualified_nad(nic.status.name, nics.vmi.metadata.namespace) != (nad or nic.nad)


def desired_nad(template: TemplateInterfaces, nics: VmiNics, nic: Nic, beside: Capabilities) -> str:
    """Return the NAD that a NIC will be attached to, as ``namespace/name``.

    It is the template's, where KubeVirt copies a change of it to the running VMI, otherwise the VMI's.
    """
    desired = template.interfaces.get(nic.name)
    network = desired.network if desired is not None and desired.kind is OperationKind.PLUG else None
    if not beside.nad_change or network is None or network.multus is None:
        return nic.nad
    return qualified_nad(network.multus.network_name, nics.vmi.metadata.namespace)


def has_lost_its_element(nics: VmiNics, nic: Nic) -> bool:
    """Return whether the guest has the device of a plug, but the pod does not list the interface any more."""
    return nics.pod is not None and not nic.absent and not nic.in_pod and is_in_guest(nic)


def _plug_stage(nics: VmiNics, nic: Nic) -> Stage:
    attached = nic.status is not None and not is_on_another_network(nics, nic)
    # While no pod is known to act, the status of the VMI is all there is. It does not tell networks apart, but a change
    # of the NAD requires a migration.
    unknown = nics.pod is None and not is_migration_required(nics.vmi)
    if is_in_guest(nic) and (attached or unknown):
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
