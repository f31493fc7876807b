"""The owner of a cluster's VMs, and whether NIC hot-plug is enabled. Pure, from settings and KubeVirt objects.

Next: :mod:`services.common.domain.kubevirt.capabilities`, what this KubeVirt can do.
"""

from collections.abc import Container, Iterable
from typing import Literal

from schemas.kubernetes.kubevirt import KubeVirt
from schemas.kubernetes.objects import Pod
from services.common.domain.kubevirt.capabilities import read_capabilities

COMPONENT_LABEL = "kubevirt.io"
CONTROLLER, HANDLER = "virt-controller", "virt-handler"
"""The components of KubeVirt that plug and unplug NICs, as in the label of their pods."""

KUBEVIRT_NAMESPACES = ("kubevirt", "kubevirt-hyperconverged", "openshift-cnv")
"""Where KubeVirt, its operator for clusters and OpenShift's are installed unless their administrator chooses another
namespace."""

GateSetting = Literal["auto", "on", "off"]
OwnerSetting = Literal["auto", "hotnic", "kubevirt"]


def find_installations(objects: Iterable[KubeVirt], namespaces: Container[str] | None = None) -> list[KubeVirt]:
    """Return the KubeVirt objects that count as an installation of KubeVirt.

    A tenant may create such objects, with a status and pods that look like KubeVirt's, in a namespace where it has all
    rights. Therefore only the namespaces count where an administrator installs KubeVirt. There those count whose status
    virt-operator has written before it installs anything; without any, all do: they configure hotnic where no
    virt-operator runs.

    :param namespaces: the namespaces that count; ``None``: all of them.
    """
    listed = [one for one in objects if namespaces is None or one.metadata.namespace in namespaces]
    return [one for one in listed if _is_seen(one)] or [
        one for one in listed if one.metadata.namespace in (namespaces or KUBEVIRT_NAMESPACES)
    ]


def _is_seen(found: KubeVirt) -> bool:
    status = found.status
    return bool(status.phase or status.observed_kube_virt_version or status.target_kube_virt_version)


def is_hotplug_enabled(setting: GateSetting, installations: Iterable[KubeVirt]) -> bool:
    """Return whether hot-plug is enabled.

    The setting decides. ``auto`` follows KubeVirt's feature gate; without KubeVirt, hot-plug is enabled.
    """
    if setting != "auto":
        return setting == "on"
    capabilities = read_capabilities(installations)
    return capabilities is None or not capabilities.gate


def acting_owner(setting: OwnerSetting, installations: Iterable[KubeVirt]) -> Literal["hotnic", "kubevirt"]:
    """Return the owner of the VMs. Two owners must never change the same interface.

    The setting decides; ``auto`` means ``kubevirt`` wherever KubeVirt is installed.
    """
    if setting != "auto":
        return setting
    return "kubevirt" if any(True for _ in installations) else "hotnic"


def find_kubevirt_controllers(pods: Iterable[Pod], installations: Iterable[KubeVirt]) -> list[str]:
    """Return the running pods of KubeVirt that plug and unplug NICs, as sorted ``namespace/name``.

    Pods that are not ready count, because they act as soon as they have started. Only namespaces with a KubeVirt object
    count: any user may set the label on any pod, and that must not stop hotnic.
    """
    install_namespaces = {installation.metadata.namespace for installation in installations}
    found = {
        f"{pod.metadata.namespace}/{pod.metadata.name}"
        for pod in pods
        if pod.metadata.namespace in install_namespaces
        and pod.metadata.labels.get(COMPONENT_LABEL) in (CONTROLLER, HANDLER)
        and pod.status.phase == "Running"
    }
    return sorted(found)


def default_binding(installations: Iterable[KubeVirt]) -> str:
    """Return the binding of the primary network (KubeVirt's ``pod: {}``) of a VM that lists no interface."""
    for installation in installations:
        configuration = installation.spec.configuration
        network = configuration.network if configuration else None
        return (network.default_network_interface if network else "") or "bridge"
    return "masquerade"
