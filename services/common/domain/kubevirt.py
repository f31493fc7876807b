"""Who owns the VMs of a cluster, and whether NICs may be hot-plugged in it: pure, from settings and KubeVirt objects.

Next: :mod:`services.common.kube.installations`, which keeps the objects in step.
"""

import re
from collections.abc import Iterable
from typing import Literal

from schemas.kube import Pod
from schemas.kubevirt import KubeVirt

COMPONENT_LABEL = "kubevirt.io"
CONTROLLER, HANDLER = "virt-controller", "virt-handler"
"""The parts of KubeVirt that drive NICs, as the label of their pods says."""

GATE = "HotplugNICs"
GATE_FREE_SINCE = (1, 4)
"""From this version of KubeVirt on the gate no longer exists: hot-plug is always on."""

GateSetting = Literal["auto", "on", "off"]
OwnerSetting = Literal["auto", "hotnic", "kubevirt"]

_VERSION = re.compile(r"v?(\d+)\.(\d+)")


def hotplug_enabled(setting: GateSetting, installations: Iterable[KubeVirt]) -> bool:
    """Whether the gate is open: as set, else as the KubeVirt object says, else (there is none) open."""
    if setting != "auto":
        return setting == "on"
    found = list(installations)
    return not found or any(_gate(installation) for installation in found)


def acting_owner(setting: OwnerSetting, installations: Iterable[KubeVirt]) -> Literal["hotnic", "kubevirt"]:
    """Who drives the NICs: as set, else KubeVirt wherever it is installed. Two must never drive one NIC."""
    if setting != "auto":
        return setting
    return "kubevirt" if any(True for _ in installations) else "hotnic"


def rivals(pods: Iterable[Pod], installations: Iterable[KubeVirt]) -> list[str]:
    """The pods of KubeVirt that drive NICs now, as ``namespace/name``, in order.

    Ready or not: one that is starting acts in a moment. Only where KubeVirt is installed, which is the namespace of its
    own object: a label that any user may put on any pod must not stop hotnic.
    """
    homes = {installation.metadata.namespace for installation in installations}
    found = {
        f"{pod.metadata.namespace}/{pod.metadata.name}"
        for pod in pods
        if pod.metadata.namespace in homes
        and pod.metadata.labels.get(COMPONENT_LABEL) in (CONTROLLER, HANDLER)
        and pod.status.phase == "Running"
    }
    return sorted(found)


def default_binding(installations: Iterable[KubeVirt]) -> str:
    """How KubeVirt binds the pod network of a VM that names no interface at all."""
    for installation in installations:
        configuration = installation.spec.configuration
        network = configuration.network if configuration else None
        return (network.default_network_interface if network else "") or "bridge"
    return "masquerade"


def _gate(installation: KubeVirt) -> bool:
    version = _VERSION.match(installation.status.observed_kube_virt_version)
    if version is not None and (int(version[1]), int(version[2])) >= GATE_FREE_SINCE:
        return True
    configuration = installation.spec.configuration
    developer = configuration.developer_configuration if configuration else None
    return GATE in ((developer.feature_gates if developer else None) or ())
