"""The played KubeVirt's webhooks on Kubernetes: what they refuse, and what they undo."""

import base64
import json
from typing import Any

import pytest

from lab.kubevirt.admission import ACCOUNT, RESTRICTED
from lab.kubevirt.versions import behaviour_of
from lab.kubevirt.webhooks import configurations, review

Object = dict[str, Any]

OLD: Object = {"metadata": {"annotations": {"kubevirt.io/vm-generation": "1"}}, "spec": {"a": 1}, "status": {"b": 1}}
EDITED: Object = {"metadata": {"annotations": {"own": "x"}}, "spec": {"a": 1}, "status": {"b": 2}}
UNDONE = {"annotations": {"own": "x", "kubevirt.io/vm-generation": "1"}}


def answer(new: Object, *, mutate: bool, user: str = "admin") -> Object:
    resource = {"group": "kubevirt.io", "version": "v1", "resource": "virtualmachineinstances"}
    request = {"uid": "u1", "userInfo": {"username": user}, "resource": resource, "object": new, "oldObject": OLD}
    return review(request, behaviour_of("1.9"), mutate=mutate)


@pytest.mark.parametrize(("user", "mutate"), [("admin", True), (ACCOUNT, False)])
def test_change_of_a_vmi_spec_is_refused_by_the_validator_alone(user: str, mutate: bool) -> None:
    changed = {**OLD, "spec": {"a": 2}}
    assert answer(changed, mutate=mutate, user=user) == {"uid": "u1", "allowed": True}
    refused = answer(changed, mutate=False)
    assert (refused["allowed"], refused["status"]["message"]) == (False, RESTRICTED)


def test_change_of_a_vmi_status_is_undone_except_for_kubevirt() -> None:
    undone = answer(EDITED, mutate=True)
    patch = {op["path"]: op["value"] for op in json.loads(base64.b64decode(undone["patch"]))}
    assert patch == {"/status": {"b": 1}, "/metadata": UNDONE}
    for unchanged in (
        answer(EDITED, mutate=False),
        answer(EDITED, mutate=True, user=ACCOUNT),
        answer(OLD, mutate=True),
    ):
        assert unchanged == {"uid": "u1", "allowed": True}


def test_status_that_did_not_exist_is_removed_again() -> None:
    resource = {"resource": "virtualmachineinstances"}
    old: Object = {"metadata": {}, "spec": {}}
    request = {"uid": "u1", "userInfo": {}, "resource": resource, "object": {**old, "status": {}}, "oldObject": old}
    patch = json.loads(base64.b64decode(review(request, behaviour_of("1.9"), mutate=True)["patch"]))
    assert patch == [{"op": "remove", "path": "/status"}]


def test_configurations_name_the_path_of_each_webhook() -> None:
    urls = {
        (found["kind"], hook["rules"][0]["resources"][0]): hook["clientConfig"]["url"]
        for found in configurations("https://127.0.0.1:1", b"CA")
        for hook in found["webhooks"]
    }
    assert urls == {
        ("ValidatingWebhookConfiguration", "virtualmachines"): "https://127.0.0.1:1/validate",
        ("ValidatingWebhookConfiguration", "virtualmachineinstances"): "https://127.0.0.1:1/validate",
        ("MutatingWebhookConfiguration", "virtualmachineinstances"): "https://127.0.0.1:1/mutate",
    }
