"""Who owns the VMs and whether hot-plug is on, as tables."""

from typing import Any

import msgspec
import pytest

from schemas.kube import ObjectMeta, Pod, PodStatus
from schemas.kubevirt import KubeVirt
from services.common.domain.kubevirt import acting_owner, default_binding, hotplug_enabled, rivals


def installation(*gates: str, version: str = "", **configuration: Any) -> KubeVirt:
    document = {
        "spec": {"configuration": {"developerConfiguration": {"featureGates": list(gates)}, **configuration}},
        "status": {"observedKubeVirtVersion": version},
    }
    return msgspec.convert(document, KubeVirt)


@pytest.mark.parametrize(
    ("setting", "installations", "enabled"),
    [
        ("auto", [], True),
        ("auto", [installation("HotplugNICs")], True),
        ("auto", [installation("HotplugNIC")], False),
        ("auto", [installation()], False),
        ("auto", [KubeVirt()], False),
        ("auto", [installation(version="v1.3.2")], False),
        ("auto", [installation(version="v1.4.0")], True),
        ("auto", [installation(version="1.10.0-rc.1")], True),
        ("auto", [installation(version="devel")], False),
        ("on", [installation()], True),
        ("off", [], False),
        ("off", [installation("HotplugNICs")], False),
    ],
)
def test_the_gate_is_the_settings_or_the_installations_word(
    setting: Any, installations: list[KubeVirt], enabled: bool
) -> None:
    assert hotplug_enabled(setting, installations) is enabled


@pytest.mark.parametrize(
    ("setting", "installations", "owner"),
    [
        ("auto", [], "hotnic"),
        ("auto", [KubeVirt()], "kubevirt"),
        ("hotnic", [KubeVirt()], "hotnic"),
        ("kubevirt", [], "kubevirt"),
    ],
)
def test_kubevirt_owns_the_vms_wherever_it_is_unless_told_otherwise(
    setting: Any, installations: list[KubeVirt], owner: str
) -> None:
    assert acting_owner(setting, installations) == owner


def test_an_unsaid_pod_network_is_bound_as_kubevirt_is_configured() -> None:
    assert default_binding([]) == "masquerade"
    assert default_binding([KubeVirt()]) == "bridge"
    assert default_binding([installation(network={"defaultNetworkInterface": "masquerade"})]) == "masquerade"


HOME = KubeVirt(metadata=ObjectMeta(namespace="kubevirt", name="kubevirt"))


@pytest.mark.parametrize(
    ("namespace", "component", "phase", "homes", "found"),
    [
        ("kubevirt", "virt-controller", "Running", [HOME], True),
        ("kubevirt", "virt-handler", "Running", [HOME], True),
        ("kubevirt", "virt-handler", "Pending", [HOME], False),
        ("kubevirt", "virt-handler", "Failed", [HOME], False),
        ("kubevirt", "virt-operator", "Running", [HOME], False),
        ("kubevirt", "virt-launcher", "Running", [HOME], False),
        ("kubevirt", "", "Running", [HOME], False),
        # A label is nobody's proof: any user may put it on a pod of theirs.
        ("tenant", "virt-controller", "Running", [HOME], False),
        ("kubevirt", "virt-controller", "Running", [], False),
    ],
)
def test_kubevirts_controllers_are_known_by_their_label_where_kubevirt_is_installed(
    namespace: str, component: str, phase: str, homes: list[KubeVirt], found: bool
) -> None:
    labels = {"kubevirt.io": component} if component else {}
    pod = Pod(metadata=ObjectMeta(namespace=namespace, name="x", labels=labels), status=PodStatus(phase=phase))
    assert rivals([pod], homes) == ([f"{namespace}/x"] if found else [])
