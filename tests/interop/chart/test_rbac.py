"""Each role's rules are exactly the requests that its code can send, no verb more and no verb less.

The requests are read from the source (`tests/support/kube/requests.py`). What cannot be read stands in the tables here.
"""

from typing import Any

import pytest

from services.api.discovery import CHANGE_RESOURCES, STATUS_RESOURCE
from tests.support.interop.chart import CHART, NATS, ROLES, VALUE_SETS, find, helm, objects, render, rendered
from tests.support.kube.requests import CHECKOUT, Permission, modules_of, permissions_of

KUBEVIRT, NAD, INSTANCETYPE = "kubevirt.io", "k8s.cni.cncf.io", "instancetype.kubevirt.io"

VARIABLE: dict[str, dict[str, set[Permission]]] = {
    "services/common/kube/cache/reflector.py": {"self._kube.list_pages": set(), "self._kube.watch": set()},
    "services/common/kube/cache/cached_reader.py": {"self._kube.get": set()},
    "services/common/kube/cache/vmi_watch.py": {"Reflector": set()},
    "services/controller/apply.py": {
        "self._kube.json_patch": {
            (KUBEVIRT, "virtualmachines", "patch"),
            (KUBEVIRT, "virtualmachineinstances", "patch"),
            ("", "pods", "patch"),
        }
    },
    "services/api/observe.py": {
        "kube.get": {
            (KUBEVIRT, "virtualmachines", "get"),
            (KUBEVIRT, "virtualmachineinstances", "get"),
            (NAD, "network-attachment-definitions", "get"),
            (INSTANCETYPE, "virtualmachinepreferences", "get"),
            (INSTANCETYPE, "virtualmachineclusterpreferences", "get"),
        }
    },
}
"""By module and call: what a call with a variable resource needs. A reflector is found where it is made."""

RAW: dict[str, set[Permission]] = {
    "services/api/observe.py": {("authorization.k8s.io", "subjectaccessreviews", "create")},
    "services/api/apply.py": {(KUBEVIRT, "virtualmachines/status", "patch")},
    "services/api/bus_auth/review.py": {("authentication.k8s.io", "tokenreviews", "create")},
}
"""By module: requests without a resource, or to a subresource that is named elsewhere.

``GET /version`` needs no rule: every authenticated user may send it.
"""


def needed(role: str) -> set[Permission]:
    """Return what the code of a role can request."""
    found: set[Permission] = set()
    for path in modules_of(f"services.{role}.__main__"):
        name = str(path.relative_to(CHECKOUT))
        read, unread = permissions_of(path)
        known = VARIABLE.get(name, {})
        assert unread <= known.keys(), f"{name}: {unread - known.keys()}: add what the call needs to VARIABLE"
        found |= read | RAW.get(name, set())
        for permissions in known.values():
            found |= permissions
    return found


def granted(found: list[dict[str, Any]], role: str) -> set[Permission]:
    """Return what the ClusterRole and the Roles bound to the account of a role allow."""
    account = {"kind": "ServiceAccount", "name": f"hotnic-{role}", "namespace": "hotnic"}
    rules: list[dict[str, Any]] = []
    for binding in found:
        if binding["kind"] in ("ClusterRoleBinding", "RoleBinding") and account in binding["subjects"]:
            reference = binding["roleRef"]
            rules += find(found, reference["kind"], reference["name"])["rules"]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("role", ROLES)
def test_rules_are_the_requests_of_the_code(role: str) -> None:
    # api and controller have rules of their own in either mode.
    beside = objects(render("--set", "vmOwner=kubevirt,controller.enabled=true", "--set", NATS))
    allowed = granted(rendered("everything"), role) | granted(beside, role)
    if role == "api":
        allowed |= granted(rendered("auth-callout"), role)
    wanted = needed(role)
    assert sorted(wanted - allowed) == [], "the code can send requests that the chart does not allow"
    assert sorted(allowed - wanted) == [], "the chart allows requests that the code cannot send"


def test_beside_kubevirt_the_observers_have_the_same_rules_without_most_changes() -> None:
    explains = {
        (KUBEVIRT, "virtualmachineinstancemigrations", "list"),
        ("", "events", "list"),
        ("coordination.k8s.io", "leases", "get"),
    }
    for role in ("controller", "handler"):
        full = granted(rendered("everything"), role)
        beside = granted(objects(render("--set", f"vmOwner=kubevirt,{role}.enabled=true", "--set", NATS)), role)
        # The controller writes the operations to annotations of the VMIs.
        patched = {"leases", "virtualmachineinstances"} if role == "controller" else set()
        more = explains if role == "controller" else set()
        assert beside == {item for item in full if item[2] != "patch" or item[1] in patched} | more


def test_no_node_role_may_patch_whole_pods_but_during_an_upgrade() -> None:
    """Whoever may patch a pod may change its image: a stolen token of one node would run anything on every node."""
    patch = ("", "pods", "patch")
    for name in VALUE_SETS:
        if name == "all-options":
            continue
        for role in ("networks", "multus", "handler"):
            assert patch not in granted(rendered(name), role), (name, role)
    before = objects(render(*VALUE_SETS["everything"], "--set", "rbac.patchPods=true"))
    for role in ROLES:
        more = {patch} if role in ("networks", "multus", "handler") else set()
        assert granted(before, role) == granted(rendered("everything"), role) | more


def test_tokens_are_reviewed_only_where_the_auth_callout_is_answered() -> None:
    values = ("--set", "nats.url=tls://nats.nats:4222,nats.authCallout.secret=keys")
    with_callout = objects(render(*VALUE_SETS["everything"], *values))
    more = granted(with_callout, "api") - granted(rendered("everything"), "api")
    assert more == {("authentication.k8s.io", "tokenreviews", "create"), ("", "pods", "get")}
    for role in ROLES[1:]:
        assert granted(with_callout, role) == granted(rendered("everything"), role)


def test_in_one_process_the_account_of_multus_has_the_rules_of_its_roles_and_no_more() -> None:
    apart = rendered("everything")
    roles = set[Permission]().union(*(granted(apart, role) for role in ("multus", "networks", "handler")))
    assert granted(rendered("one-process"), "multus") == roles


HOOKS: dict[str, tuple[str, set[Permission]]] = {
    "uninstall": (
        "services/cli/chart/uninstall.py",
        # Deletions go through one function.
        {("apiregistration.k8s.io", "apiservices", "delete"), ("apps", "daemonsets", "delete"), ("", "pods", "delete")},
    ),
    "test": ("services/cli/chart/attachment.py", set()),
}
"""By hook: its module, and what its calls with a variable resource need."""


@pytest.mark.parametrize("hook", HOOKS)
def test_rules_of_a_hook_are_the_requests_of_its_code(hook: str) -> None:
    module, variable = HOOKS[hook]
    read, unread = permissions_of(CHECKOUT / module)
    assert unread <= {"self._kube.delete"}
    assert granted(rendered("everything"), hook) == read | variable


@pytest.mark.parametrize("name", VALUE_SETS)
def test_no_rule_has_a_wildcard(name: str) -> None:
    for item in rendered(name):
        for rule in item.get("rules", []) if item["kind"] in ("ClusterRole", "Role") else []:
            assert "*" not in [*rule.get("apiGroups", []), *rule.get("resources", []), *rule["verbs"]]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


@pytest.mark.parametrize("name", VALUE_SETS)
def test_writes_to_secrets_and_apiservices_are_bound_to_names(name: str) -> None:
    for item in rendered(name):
        for rule in item.get("rules", []) if item["kind"] in ("ClusterRole", "Role") else []:
            if {"secrets", "apiservices", "configmaps", "leases", "daemonsets"} & set(rule["resources"]):
                assert rule.get("resourceNames") or rule["verbs"] == ["create"]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_role_has_an_account_of_its_own(name: str) -> None:
    found = rendered(name)
    for item in found:
        if item["kind"] in ("Deployment", "DaemonSet"):
            account = item["spec"]["template"]["spec"]["serviceAccountName"]
            assert account == item["metadata"]["name"]
            find(found, "ServiceAccount", account)


def test_users_may_plug_and_see_by_the_usual_roles() -> None:
    found = rendered("everything")
    edit, view, version = (find(found, "ClusterRole", f"hotnic-{name}") for name in ("edit", "view", "version"))
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {label for label in edit["metadata"]["labels"] if label.startswith(prefix)} == {
        f"{prefix}admin",
        f"{prefix}edit",
    }
    assert f"{prefix}view" in view["metadata"]["labels"]
    assert {verb for rule in edit["rules"] for verb in rule["verbs"]} == {"update"}
    assert {verb for rule in view["rules"] for verb in rule["verbs"]} == {"get"}
    assert version["rules"][0]["apiGroups"] == ["subresources.hotnic.io", "subresources.kubevirt.io"]
    assert version["rules"][0]["verbs"] == ["list"]
    subjects = find(found, "ClusterRoleBinding", "hotnic-version")["subjects"]
    assert [subject["name"] for subject in subjects] == ["system:authenticated"]


def test_rules_of_users_name_the_subresources_that_the_api_serves() -> None:
    found = rendered("everything")
    assert set(find(found, "ClusterRole", "hotnic-edit")["rules"][0]["resources"]) == set(CHANGE_RESOURCES)
    assert find(found, "ClusterRole", "hotnic-view")["rules"][0]["resources"] == [STATUS_RESOURCE]


def test_helm_refuses_a_second_controller_and_accepts_other_roles_in_a_second_release() -> None:
    """Helm does not install over an object of another release, and a controller of each would change the same VMs."""

    def of_the_cluster(release: str, *values: str) -> set[tuple[str, str]]:
        command = ["template", release, str(CHART), "--namespace", release, "--kube-version", "v1.36.3", *values]
        found = [item for item in objects(helm(*command).stdout) if "namespace" not in item["metadata"]]
        return {(item["kind"], item["metadata"]["name"]) for item in found}

    controller = [*VALUE_SETS["beside-kubevirt"], "--set", "api.enabled=false"]
    both = {("ClusterRole", "hotnic-controller"), ("ClusterRoleBinding", "hotnic-controller")}
    assert of_the_cluster("one", *controller) & of_the_cluster("two", *controller) == both
    without = VALUE_SETS["multus-and-networks"]
    assert of_the_cluster("one", *without)
    assert not of_the_cluster("one", *controller) & of_the_cluster("two", *without)
