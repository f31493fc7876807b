"""The owner of the VMs and whether hot-plug is enabled, as tables."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.kubevirt import KubeVirt
from schemas.kubernetes.objects import ObjectMeta, Pod, PodStatus
from services.common.domain.kubevirt.owner import (
    KUBEVIRT_NAMESPACES,
    acting_owner,
    default_binding,
    find_installations,
    find_kubevirt_controllers,
    is_hotplug_enabled,
)


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
def test_setting_or_feature_gate_enables_hotplug(setting: Any, installations: list[KubeVirt], enabled: bool) -> None:
    assert is_hotplug_enabled(setting, installations) is enabled


@pytest.mark.parametrize(
    ("setting", "installations", "owner"),
    [
        ("auto", [], "hotnic"),
        ("auto", [KubeVirt()], "kubevirt"),
        ("hotnic", [KubeVirt()], "hotnic"),
        ("kubevirt", [], "kubevirt"),
    ],
)
def test_kubevirt_owns_the_vms_where_installed_unless_the_setting_differs(
    setting: Any, installations: list[KubeVirt], owner: str
) -> None:
    assert acting_owner(setting, installations) == owner


def test_default_binding_is_that_of_the_kubevirt_configuration() -> None:
    assert default_binding([]) == "masquerade"
    assert default_binding([KubeVirt()]) == "bridge"
    assert default_binding([installation(network={"defaultNetworkInterface": "masquerade"})]) == "masquerade"


def placed(namespace: str, **status: str) -> KubeVirt:
    return msgspec.convert({"metadata": {"namespace": namespace, "name": "kubevirt"}, "status": status}, KubeVirt)


SEEN = placed("z-of-an-administrator", phase="Deploying")
RUNNING = placed("z-of-an-administrator", observedKubeVirtVersion="v1.9.0")
BEING_INSTALLED = placed("z-of-an-administrator", targetKubeVirtVersion="v1.9.0")
SEEN_THERE = placed("openshift-cnv", phase="Deployed")
USUAL, TENANT = placed("kubevirt"), placed("a-tenant")


@pytest.mark.parametrize(
    ("objects", "counted"),
    [
        ([], []),
        ([TENANT], []),
        ([TENANT, USUAL], [USUAL]),
        ([TENANT, SEEN], [SEEN]),
        ([TENANT, RUNNING], [RUNNING]),
        ([TENANT, BEING_INSTALLED], [BEING_INSTALLED]),
        ([USUAL, RUNNING], [RUNNING]),
    ],
)
def test_objects_count_that_virt_operator_has_seen_or_else_those_of_the_usual_namespace(
    objects: list[KubeVirt], counted: list[KubeVirt]
) -> None:
    assert find_installations(objects) == counted


@pytest.mark.parametrize(
    ("objects", "counted"),
    [([RUNNING], []), ([RUNNING, USUAL], [USUAL]), ([USUAL, SEEN_THERE], [SEEN_THERE]), ([TENANT], [])],
)
def test_objects_of_other_namespaces_do_not_count_for_a_role(objects: list[KubeVirt], counted: list[KubeVirt]) -> None:
    assert find_installations(objects, KUBEVIRT_NAMESPACES) == counted
    assert find_installations([RUNNING], ("z-of-an-administrator",)) == [RUNNING]


KUBEVIRT = KubeVirt(metadata=ObjectMeta(namespace="kubevirt", name="kubevirt"))


@pytest.mark.parametrize(
    ("namespace", "component", "phase", "installations", "found"),
    [
        ("kubevirt", "virt-controller", "Running", [KUBEVIRT], True),
        ("kubevirt", "virt-handler", "Running", [KUBEVIRT], True),
        ("kubevirt", "virt-handler", "Pending", [KUBEVIRT], False),
        ("kubevirt", "virt-handler", "Failed", [KUBEVIRT], False),
        ("kubevirt", "virt-operator", "Running", [KUBEVIRT], False),
        ("kubevirt", "virt-launcher", "Running", [KUBEVIRT], False),
        ("kubevirt", "", "Running", [KUBEVIRT], False),
        # The label alone is no proof: any user may set it on a pod.
        ("tenant", "virt-controller", "Running", [KUBEVIRT], False),
        ("kubevirt", "virt-controller", "Running", [], False),
    ],
)
def test_kubevirt_controllers_are_found_by_label_in_namespaces_of_kubevirt(
    namespace: str, component: str, phase: str, installations: list[KubeVirt], found: bool
) -> None:
    labels = {"kubevirt.io": component} if component else {}
    pod = Pod(metadata=ObjectMeta(namespace=namespace, name="x", labels=labels), status=PodStatus(phase=phase))
    assert find_kubevirt_controllers([pod], installations) == ([f"{namespace}/x"] if found else [])
