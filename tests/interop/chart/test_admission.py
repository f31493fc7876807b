"""The admission policies as rendered: when they are there, whom they trust, and that their words are those of the code.

What they allow is tested on a real API server: `tests/interop/admission`.
"""

import re
from typing import Any

import pytest

from schemas.kubernetes import operations
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.objects import CREATED_BY_LABEL
from services.common.domain.plugin_types import SHIMS
from tests.support.interop.chart import ROLES, VALUE_SETS, find, objects, render, rendered

POLICY, BINDING = "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"
SUBJECTS = {"pods", "bindings", "vmis", "vms", "networks", "events", "own-objects"}
OF_ACCOUNTS = {"pods", "vmis", "vms", "events", "own-objects"}
"""The policies that restrict hotnic's own accounts, also beside KubeVirt."""
OF_NODE_ROLES = OF_ACCOUNTS - {"vmis", "vms"}
"""Those that are there without api and controller."""
ANNOTATIONS = {
    NETWORKS,
    NETWORK_STATUS,
    operations.NIC_SLOTS,
    operations.operation_key("").rpartition(".")[0] + ".",
    operations.unplug_key("").rpartition(".")[0] + ".",
    operations.pod_nic_key("").rpartition(".")[0] + ".",
    operations.hotplug_mark_key("").rpartition(".")[0] + ".",
}
"""The keys, and the beginnings of the keys with a hash, that the code writes."""


def policies(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item["spec"] for item in found if item["kind"] == POLICY}


def text(found: list[dict[str, Any]], name: str) -> str:
    """Return all expressions of a policy."""
    spec = policies(found)[name]
    parts = [*spec["matchConditions"], *spec["variables"], *spec["validations"]]
    return "\n".join(str(value) for part in parts for value in part.values())


def rights(found: list[dict[str, Any]], name: str) -> dict[str, set[str]]:
    """Return what each account may write of a policy's objects."""
    [expression] = [one["expression"] for one in policies(found)[name]["variables"] if one["name"] == "rights"]
    entries = re.findall(r"'system:serviceaccount:hotnic:hotnic-(\w+)': \[([^]]*)\]", expression)
    return {role: set(re.findall(r"'([^']+)'", keys)) for role, keys in entries}


@pytest.mark.parametrize("name", VALUE_SETS)
def test_all_policies_are_there_where_hotnic_owns_the_vms_and_elsewhere_those_of_its_accounts(name: str) -> None:
    found = rendered(name)
    others = {"multus": OF_NODE_ROLES, "multus-and-networks": OF_NODE_ROLES, "beside-kubevirt": OF_ACCOUNTS}.get(name)
    prefix = "hotnic-nics" if name == "all-options" else "hotnic"
    assert set(policies(found)) == {f"{prefix}-{subject}" for subject in others or SUBJECTS}
    for subject in others or ():
        # KubeVirt and users are not restricted: the policy is asked for requests of hotnic's accounts alone.
        [condition] = [
            one for one in policies(found)[f"hotnic-{subject}"]["matchConditions"] if one["name"] == "of-a-role"
        ]
        accounts = {item["metadata"]["name"] for item in found if item["kind"] == "ServiceAccount"}
        [names] = re.findall(r"^request.userInfo.username in \[([^]]*)\]$", condition["expression"].strip())
        asked = {one.rpartition(":")[2] for one in re.findall(r"'([^']+)'", names)}
        assert asked == accounts & {f"hotnic-{role}" for role in ROLES}


def test_each_policy_denies_and_none_is_open_when_it_fails() -> None:
    found = rendered("everything")
    for name, spec in policies(found).items():
        assert spec["failurePolicy"] == "Fail", name
        assert spec["matchConditions"], name
        bound = find(found, BINDING, name)["spec"]
        assert bound == {"policyName": name, "validationActions": ["Deny", "Audit"]}, name
        for one in spec["validations"]:
            assert one["reason"] == "Forbidden"
            assert one["message"]
            assert one["messageExpression"], "a refusal names the object"


def test_they_can_be_switched_off_and_on() -> None:
    assert not policies(objects(render(*VALUE_SETS["everything"], "--set", "admission.enabled=false")))
    assert not policies(objects(render(*VALUE_SETS["beside-kubevirt"], "--set", "admission.enabled=false")))
    beside = objects(render(*VALUE_SETS["beside-kubevirt"], "--set", "admission.enabled=true"))
    assert {name.removeprefix("hotnic-") for name in policies(beside)} == SUBJECTS
    # KubeVirt's accounts write everything; the roles write no spec, no status and no networks annotation there.
    assert "'system:serviceaccount:kubevirt:kubevirt-controller'" in text(beside, "hotnic-vmis")
    assert rights(beside, "hotnic-pods").keys() == {"networks", "multus"}
    assert rights(beside, "hotnic-vmis").keys() == {"api", "controller"}


def test_pods_need_no_policy_where_no_role_changes_them() -> None:
    without = ("--set", "networks.enabled=false,multus.enabled=false")
    found = policies(objects(render(*VALUE_SETS["beside-kubevirt"], *without)))
    assert {name.removeprefix("hotnic-") for name in found} == OF_ACCOUNTS - {"pods"}


def test_kubevirt_is_trusted_where_it_is_or_is_named() -> None:
    assert "kubevirt-controller" not in text(rendered("everything"), "hotnic-vmis")
    named = objects(render(*VALUE_SETS["everything"], "--set", "admission.kubevirtNamespace=virt"))
    for subject in ("pods", "bindings", "vmis", "vms"):
        assert "'system:serviceaccount:virt:kubevirt-controller'" in text(named, f"hotnic-{subject}")


def test_keys_are_those_that_the_code_writes() -> None:
    found = rendered("everything")
    written = {
        key for name in ("pods", "vmis", "vms") for keys in rights(found, f"hotnic-{name}").values() for key in keys
    }
    assert written == ANNOTATIONS
    assert CREATED_BY_LABEL in text(found, "hotnic-pods")
    assert all(key.startswith(operations.PREFIX) for key in ANNOTATIONS - {NETWORKS, NETWORK_STATUS})


def test_shims_and_allowed_plugin_types_are_those_of_the_roles() -> None:
    checked = text(rendered("everything"), "hotnic-networks")
    assert all(f"'{shim}'" in checked for shim in SHIMS)
    assert "'bridge', 'host-local'" in text(rendered("all-options"), "hotnic-nics-networks")


def test_components_of_events_are_the_roles() -> None:
    checked = text(rendered("everything"), "hotnic-events")
    for role in ROLES:
        assert f"['hotnic-{role}']" in checked


def test_in_one_process_the_account_of_multus_has_the_rights_of_its_roles() -> None:
    apart, together = rendered("everything"), rendered("one-process")
    for name in ("hotnic-pods", "hotnic-vmis"):
        one, many = rights(together, name), rights(apart, name)
        union = set[str]().union(*(many.get(role, set()) for role in ("multus", "networks", "handler")))
        assert one["multus"] == union
        assert "networks" not in one
        assert "handler" not in one


def test_the_policies_of_a_release_without_vms_know_only_its_roles() -> None:
    arguments = [*VALUE_SETS["multus-and-networks"], "--set", "admission.enabled=true"]
    found = objects(render(*arguments))
    assert rights(found, "hotnic-pods").keys() == {"networks", "multus"}
    assert "hotnic-controller'" not in text(found, "hotnic-pods")
