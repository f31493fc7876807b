"""Finds who owns the VMs, as the commands see it: hotnic, or a KubeVirt whose controllers nobody has stopped.

The roles follow their setting ``HOTNIC_VM_OWNER``, which a command does not know.
Next: :mod:`services.cli.operations.hotplug_status`, which derives the status without the api.
"""

from schemas.kubernetes.kubevirt import KUBEVIRTS
from schemas.kubernetes.objects import PODS
from services.common.domain.kubevirt.capabilities import Capabilities, read_capabilities
from services.common.domain.kubevirt.owner import COMPONENT_LABEL, CONTROLLER, find_installations
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError


async def find_owner(kube: Kube) -> Capabilities | None:
    """Return what the KubeVirt that owns the VMs can do; ``None`` where hotnic owns them.

    KubeVirt does where a pod of virt-controller exists, also one that does not start: nobody has stopped KubeVirt then.
    Without the permission to read its objects, nothing of it is known; without the one to read its pods, there is one.
    """
    try:
        installations = find_installations((await kube.list(KUBEVIRTS)).items)
    except KubeError:
        return None
    try:
        # Only the namespaces of KubeVirt objects: any user may set the label on a pod of another one.
        pods = [
            pod
            for namespace in sorted({one.metadata.namespace for one in installations})
            for pod in (await kube.list(PODS, namespace, labels=f"{COMPONENT_LABEL}={CONTROLLER}")).items
        ]
    except KubeError:
        return read_capabilities(installations)
    return read_capabilities(installations) if pods else None
