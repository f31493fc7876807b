"""The owner of a cluster's VMs, and whether NIC hot-plug is enabled. Pure, from settings and KubeVirt objects.

Next: :mod:`services.common.runtime.installations`, which watches the objects.
"""

import re
from collections.abc import Iterable
from typing import Literal

from schemas.kubernetes.kubevirt import KubeVirt
from schemas.kubernetes.objects import Pod

COMPONENT_LABEL = "kubevirt.io"
CONTROLLER, HANDLER = "virt-controller", "virt-handler"
"""The components of KubeVirt that plug and unplug NICs, as in the label of their pods."""

GATE = "HotplugNICs"
GATE_FREE_SINCE = (1, 4)
"""First KubeVirt version without the feature gate; hot-plug is always enabled there."""

GateSetting = Literal["auto", "on", "off"]
OwnerSetting = Literal["auto", "hotnic", "kubevirt"]

_VERSION = re.compile(r"v?(\d+)\.(\d+)")


def is_hotplug_enabled(setting: GateSetting, installations: Iterable[KubeVirt]) -> bool:
    """Return whether hot-plug is enabled.

    The setting decides. ``auto`` follows KubeVirt's feature gate; without KubeVirt, hot-plug is enabled.
    """
    if setting != "auto":
        return setting == "on"
    found = list(installations)
    return not found or any(_is_gate_open(installation) for installation in found)


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


def _is_gate_open(installation: KubeVirt) -> bool:
    version = _VERSION.match(installation.status.observed_kube_virt_version)
    if version is not None and (int(version[1]), int(version[2])) >= GATE_FREE_SINCE:
        return True
    configuration = installation.spec.configuration
    developer = configuration.developer_configuration if configuration else None
    return GATE in ((developer.feature_gates if developer else None) or ())
