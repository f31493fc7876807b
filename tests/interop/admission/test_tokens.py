"""Real tokens: the API server says which node the pod of a role runs on, and the policies believe nothing else."""

import json
from collections.abc import Iterator

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS
from tests.support.interop.releases import write
from tests.support.kube.admission.cluster import GuardedCluster
from tests.support.kube.admission.objects import NAMESPACE, NODE, OTHER_NODE, RELEASE, pod
from tests.support.kube.admission.table import LAUNCHER, annotate
from tests.support.kube.control_plane import Object, until

ACCOUNT = f"{RELEASE}-networks"
ELSEWHERE = f"{LAUNCHER}-elsewhere"
STATUS = annotate(**{NETWORK_STATUS: '[{"name": "vms/bridge-net"}]'})


@pytest.fixture(scope="module")
def account(guarded: GuardedCluster) -> Iterator[None]:
    """The ServiceAccount of networks, with a pod on each node."""
    objects: list[Object] = [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}]
    objects[0]["metadata"]["namespace"] = RELEASE
    file = write(guarded.plane, "account", objects)
    guarded.plane.kubectl("create", "--filename", file)
    pods = [pod(f"networks-{node}", node) for node in (NODE, OTHER_NODE)]
    for one in pods:
        one["metadata"] |= {"namespace": RELEASE}
        one["spec"] |= {"serviceAccountName": ACCOUNT}
    guarded.plane.kubectl("create", "--filename", write(guarded.plane, "pods-of-networks", pods))
    yield
    guarded.plane.kubectl("delete", "pods", "--namespace", RELEASE, "--all", "--force", "--grace-period=0")
    guarded.plane.kubectl("delete", "--filename", file)


def token(guarded: GuardedCluster, *bound_to: str) -> str:
    """Return a token of the account of networks, as the kubelet requests it for a pod."""
    return guarded.plane.kubectl("create", "token", ACCOUNT, "--namespace", RELEASE, *bound_to).strip()


def token_of_node(guarded: GuardedCluster, node: str) -> str:
    """Return the token of the pod on a node."""
    return token(guarded, "--bound-object-kind=Pod", f"--bound-object-name=networks-{node}")


@pytest.mark.usefixtures("account")
def test_a_token_of_a_pod_is_good_for_the_objects_of_its_node(guarded: GuardedCluster) -> None:
    for node, own, foreign in ((NODE, LAUNCHER, ELSEWHERE), (OTHER_NODE, ELSEWHERE, LAUNCHER)):
        mine = token_of_node(guarded, node)
        assert guarded.send_with_token(mine, "PATCH", own, STATUS)[0] == 200
        status, message = guarded.send_with_token(mine, "PATCH", foreign, STATUS)
        assert (status, f"its token is of node {node}" in message) == (403, True)


@pytest.mark.usefixtures("account")
def test_a_token_that_is_bound_to_nothing_is_good_for_nothing(guarded: GuardedCluster) -> None:
    status, message = guarded.send_with_token(token(guarded), "PATCH", LAUNCHER, STATUS)
    assert (status, "its token is of no node" in message) == (403, True)


@pytest.mark.usefixtures("account")
def test_without_required_node_names_only_a_token_of_another_node_is_refused(guarded: GuardedCluster) -> None:
    unbound, other = token(guarded), token_of_node(guarded, OTHER_NODE)
    guarded.apply("admission.requireNodeName=false")
    try:
        until(
            lambda: guarded.send_with_token(unbound, "PATCH", LAUNCHER, STATUS)[0] == 200,
            lambda: f"the changed policy is in force: {guarded.send_with_token(unbound, 'PATCH', LAUNCHER, STATUS)}",
        )
        assert guarded.send_with_token(other, "PATCH", LAUNCHER, STATUS)[0] == 403
    finally:
        guarded.apply()
        until(
            lambda: guarded.send_with_token(unbound, "PATCH", LAUNCHER, STATUS)[0] == 403,
            lambda: "the policy of the chart's defaults is in force again",
        )


@pytest.mark.usefixtures("account")
def test_the_audit_log_has_the_refusal(guarded: GuardedCluster) -> None:
    status, _ = guarded.send_with_token(token(guarded), "PATCH", LAUNCHER, STATUS)
    assert status == 403
    key = "validation.policy.admission.k8s.io/validation_failure"
    lines = [json.loads(line) for line in guarded.plane.audit_log.read_text().splitlines() if key in line]
    last = [one for one in lines if one["user"]["username"].endswith(f":{ACCOUNT}")][-1]
    [failure] = json.loads(last["annotations"][key])
    assert failure["policy"] == f"{RELEASE}-pods"
    assert f"pod {NAMESPACE}/launcher" in failure["message"]
