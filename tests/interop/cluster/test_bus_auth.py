"""The auth callout of NATS with tokens of the oldest and the newest API server: who gets in is a pod's ServiceAccount.

A real nats-server asks the callout, which reviews the tokens with the permissions that the chart gives the api. Nothing
runs the pods: their tokens are requested as a kubelet requests them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from services.common.kube.client import Kube
from tests.support.bus.auth_callout import Denials, running_callout
from tests.support.bus.auth_tokens import AUDIENCE
from tests.support.interop.chart import CHART
from tests.support.interop.releases import NAMESPACE, NODE, RELEASE, write
from tests.support.kube.control_plane import VERSION, ControlPlane, Object, control_plane
from tests.support.node.host_pods import bind, token_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

VERSIONS = ("1.30", VERSION)
VALUES = ("--set", "vmOwner=hotnic,nats.url=tls://nats:4222,nats.authCallout.secret=keys")
ACCOUNTS = ("hotnic-api", "hotnic-networks", "hotnic-controller", "other")


@pytest.fixture(scope="module", params=VERSIONS)
def kubernetes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the chart's rules of the api, and the ServiceAccounts of the roles."""
    if request.param == VERSION:
        yield from prepared(request.getfixturevalue("cluster"))
        return
    with control_plane(tmp_path_factory.mktemp("kubernetes-oldest"), request.param) as running:
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        running.kubectl("create", "--filename", write(running, "node", [node]))
        yield from prepared(running)


def prepared(cluster: ControlPlane) -> Iterator[ControlPlane]:
    """Create namespaces, accounts and the api's rules, and delete them at the end."""
    rendered = cluster.helm(
        *("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *VALUES),
        *("--show-only", "templates/api/rbac.yaml"),
    )
    rules = [item for item in yaml.safe_load_all(rendered) if item and item["kind"] != "ServiceAccount"]
    file = write(cluster, "rules", rules)
    for namespace in (NAMESPACE, "tenant"):
        cluster.kubectl("create", "namespace", namespace)
        for account in ACCOUNTS:
            cluster.kubectl("create", "serviceaccount", account, "--namespace", namespace)
        made = "configmap/kube-root-ca.crt"
        cluster.kubectl("wait", "--for=create", made, f"--namespace={namespace}", "--timeout=100s")
    cluster.kubectl("create", "--filename", file)
    try:
        yield cluster
    finally:
        cluster.kubectl("delete", "--filename", file, "--ignore-not-found")
        cluster.kubectl("delete", "namespace", NAMESPACE, "tenant", "--timeout=100s")


def make_pod(cluster: ControlPlane, name: str, account: str, namespace: str = NAMESPACE) -> Object:
    """Create a pod of a ServiceAccount on the node."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "serviceAccountName": account,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "role", "image": "hotnic"}],
        },
    }
    cluster.kubectl("create", "--filename", write(cluster, name, [pod]))
    made = cluster.get("pod", name, "--namespace", namespace)
    bind(cluster, made)
    return cluster.get("pod", name, "--namespace", namespace)


def request_token(
    cluster: ControlPlane,
    account: str,
    pod: Object | None,
    *,
    namespace: str = NAMESPACE,
    audience: str | None = AUDIENCE,
) -> str:
    """Request a token as a kubelet does.

    :param pod: to which it is bound.
    :param audience: ``None`` for the API server's.
    """
    arguments = ["create", "token", account, "--namespace", namespace, "--duration=1h"]
    if audience is not None:
        arguments.append(f"--audience={audience}")
    if pod is not None:
        metadata = pod["metadata"]
        arguments += ["--bound-object-kind=Pod", f"--bound-object-name={metadata['name']}"]
        arguments.append(f"--bound-object-uid={metadata['uid']}")
    return cluster.kubectl(*arguments).strip()


async def test_a_connection_is_what_the_token_of_its_pod_says(
    kubernetes: ControlPlane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = make_pod(kubernetes, "api-1", "hotnic-api")
    networks = make_pod(kubernetes, "networks-1", "hotnic-networks")
    gone = make_pod(kubernetes, "networks-2", "hotnic-networks")
    other = make_pod(kubernetes, "other-1", "other")
    tenant = make_pod(kubernetes, "networks-1", "hotnic-networks", "tenant")
    token = request_token(kubernetes, "hotnic-networks", networks)
    refusals = {
        "for the API server": (request_token(kubernetes, "hotnic-networks", networks, audience=None), "WrongAudience"),
        "bound to no pod": (request_token(kubernetes, "hotnic-networks", None), "NotBoundToPod"),
        "of another account": (request_token(kubernetes, "other", other), "ForeignAccount"),
        "of another namespace": (
            request_token(kubernetes, "hotnic-networks", tenant, namespace="tenant"),
            "ForeignAccount",
        ),
        "of a deleted pod": (request_token(kubernetes, "hotnic-networks", gone), "NotAuthenticated"),
        "forged": (f"{token.rpartition('.')[0]}.{'A' * 342}", "NotAuthenticated"),
    }
    kubernetes.kubectl("delete", "pod", "networks-2", "-n", NAMESPACE, "--grace-period=0", "--force")
    kubernetes.kubectl("wait", "--for=delete", "pod/networks-2", "-n", NAMESPACE, "--timeout=100s")

    config = token_kubeconfig(kubernetes, api, tmp_path)
    telemetry, _ = recording_telemetry()
    async with (
        await Kube.connect(kubeconfig=str(config), telemetry=telemetry, user_agent="test") as kube,
        running_callout(tmp_path, kube=kube) as callout,
    ):
        denials = Denials()
        client = await callout.connect(token, error_cb=denials.add)
        await client.publish(f"hotplug.multus-attached.{NODE}.vms.vm1", b"{}")
        await client.publish("hotplug.multus-attached.node-2.vms.vm1", b"{}")
        await client.flush()
        await denials.wait(publish=1, subscription=0)
        assert "node-2" in denials[0]
        await client.close()
        for what, (refused, expected) in refusals.items():
            assert await callout.refusal(refused) == expected, f"a token {what}"

    # What the API server says of the node decides whether the api has to read the pod.
    review: Object = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
    review["spec"] = {"token": token, "audiences": [AUDIENCE]}
    path = "/apis/authentication.k8s.io/v1/tokenreviews"
    status = json.loads(kubernetes.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(review)))
    with capsys.disabled():
        sys.stdout.write(f"\nextra of a reviewed token: {status['status']['user']['extra']} ")
