"""api and controller with the tokens of their ServiceAccounts on a real API server: what they may do is what they do.

All replicas run as host processes in place of their pods. An interface is plugged by a user with the role `edit`.
"""

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.apiserver.identity import pki
from tests.support.bus import nats
from tests.support.interop.chart import CHART
from tests.support.interop.jaeger import free_ports
from tests.support.interop.releases import (
    NAMESPACE,
    NODE,
    RELEASE,
    RELEASES,
    admitted_pods,
    labelled_namespace,
    release,
    write,
)
from tests.support.kube.audit_log import AuditedRequest, Right, forbidden_requests, granted_rights, used_rights
from tests.support.kube.control_plane import KUBECTL, ControlPlane, Object, until
from tests.support.node.host_pods import bind, host_pod, pod_network, set_status

VMS = "vms"
APIS = ("v1.subresources.hotnic.io", "v1.subresources.kubevirt.io", "v1alpha3.subresources.kubevirt.io")
VM, VMI = (
    f"/apis/subresources.hotnic.io/v1/namespaces/{VMS}/{resource}/vm1"
    for resource in ("virtualmachines", "virtualmachineinstances")
)
RAN = ("api", "controller")
NETWORK: Object = {
    "apiVersion": "k8s.cni.cncf.io/v1",
    "kind": "NetworkAttachmentDefinition",
    "metadata": {"name": "bridge-net", "namespace": VMS},
    "spec": {"config": json.dumps({"cniVersion": "1.0.0", "name": "bridge-net", "type": "bridge"})},
}

ACCOUNT = {"kind": "ServiceAccount", "namespace": NAMESPACE}
"""A subject of a binding, without its name."""

PLUG_NEEDS: dict[str, set[Right]] = {
    "api": {
        ("", "secrets", "patch"),
        ("apiregistration.k8s.io", "apiservices", "patch"),
        ("kubevirt.io", "virtualmachines", "patch"),
        ("kubevirt.io", "virtualmachineinstances", "patch"),
    },
    "controller": {
        ("coordination.k8s.io", "leases", "create"),
        ("coordination.k8s.io", "leases", "patch"),
        ("kubevirt.io", "virtualmachineinstances", "patch"),
        ("", "pods", "patch"),
        ("", "events", "create"),
    },
}
"""What each role certainly requests, from its start to the end of a plug."""


@dataclass(frozen=True)
class Installation:
    """A release whose api and controller run.

    :ivar rendered: the objects of the release.
    :ivar values: helm's arguments for the values.
    :ivar audited_before: number of requests in the audit log before: other files have accounts of the same names.
    """

    cluster: ControlPlane
    rendered: list[Object]
    values: tuple[str, ...]
    audited_before: int

    def audited(self) -> list[AuditedRequest]:
        """Return the requests since the installation that were answered until now."""
        return self.cluster.audited()[self.audited_before :]

    def user(self, name: str) -> Path:
        """Return the kubeconfig of a user."""
        folder = self.cluster.kubeconfig.parent
        path = folder / f"{name}.kubeconfig"
        if not path.exists():
            pki.write_kubeconfig(path, self.cluster.server, folder, pki.issue_client(folder, name, []), user_name=name)
        return path

    def replace(self, user: str, path: str, body: Object) -> subprocess.CompletedProcess[str]:
        """Send a PUT to the aggregated API as a user."""
        arguments = ("replace", "--raw", path, "--filename", "-")
        return self.cluster.run(KUBECTL, *arguments, stdin=json.dumps(body), kubeconfig=self.user(user), check=False)


@pytest.fixture(scope="module")
def installation(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Everything is installed, and every replica of api and controller runs."""
    directory = tmp_path_factory.mktemp("roles")
    audited_before = len(cluster.audited())
    with contextlib.ExitStack() as stack:
        stack.enter_context(pod_network())
        port = stack.enter_context(nats_process(directory))
        values = (*RELEASES["everything"].values, "--set", f"nats.url=nats://127.0.0.1:{port}")
        stack.enter_context(labelled_namespace(cluster))
        stack.callback(cluster.kubectl, "delete", "crd", *RELEASES["everything"].keeps)
        rendered = stack.enter_context(release(cluster, *values))
        pods = admitted_pods(cluster, rendered)
        run = [pod for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] in RAN]
        for number, pod in enumerate(run, 11):
            stack.enter_context(host_pod(cluster, pod, f"198.18.0.{number}", directory))
        for name in APIS:
            cluster.kubectl("wait", "--for=condition=Available", f"apiservice/{name}", "--timeout=100s")
        yield Installation(cluster, rendered, values, audited_before)


@contextlib.contextmanager
def nats_process(directory: Path) -> Iterator[int]:
    """Run a NATS server and yield its port."""
    [port] = free_ports(1)
    log = directory / "nats.log"
    command = [str(nats.binary()), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory / "nats")]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output)
    try:
        until(lambda: nats.READY in log.read_bytes(), log.read_text)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def plugged(installation: Installation) -> Iterator[Object]:
    """A user with the role `edit` has requested an interface; the launcher pod whose annotation requests it."""
    cluster = installation.cluster
    cluster.kubectl("create", "namespace", VMS)
    try:
        # A pod is admitted with an account only.
        cluster.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={VMS}", "--timeout=100s")
        for user, role in (("ed", "edit"), ("vi", "view")):
            cluster.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", VMS)
        cluster.kubectl("create", "--filename", write(cluster, "nad", [NETWORK]))
        pod = running_vm(cluster)
        # The VM's template, which the controller copies to the VMI, and the VMI alone.
        for path, name in ((VM, "blue"), (VMI, "green")):
            body = {"name": name, "networkAttachmentDefinitionName": "bridge-net"}
            done = installation.replace("ed", f"{path}/addinterface", body)
            assert done.returncode == 0, done.stderr
        yield until(lambda: requested(cluster, pod), lambda: cluster.kubectl("get", "vmi,pods", "-n", VMS, "-oyaml"))
    finally:
        cluster.kubectl("delete", "namespace", VMS, "--timeout=100s")


def running_vm(cluster: ControlPlane) -> str:
    """Create a VM with its running VMI and launcher pod, as KubeVirt does; return the pod's name."""
    spec = {
        "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}]}},
        "networks": [{"name": "default", "pod": {}}],
    }
    metadata: Object = {"name": "vm1", "namespace": VMS}
    vm = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": metadata}
    vm["spec"] = {"running": True, "template": {"spec": spec}}
    cluster.kubectl("create", "--filename", write(cluster, "vm", [vm]))
    vmi = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "spec": spec}
    owner = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "vm1", "controller": True}
    owner["uid"] = cluster.get("vm", "vm1", "-n", VMS)["metadata"]["uid"]
    vmi["metadata"] = metadata | {"ownerReferences": [owner]}
    cluster.kubectl("create", "--filename", write(cluster, "vmi", [vmi]))
    uid = cluster.get("vmi", "vm1", "-n", VMS)["metadata"]["uid"]
    name = "virt-launcher-vm1-abcde"
    owner = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm1", "uid": uid}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": VMS,
            "labels": {"kubevirt.io": "virt-launcher", "kubevirt.io/created-by": uid},
            "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
        },
        "spec": {"containers": [{"name": "compute", "image": "launcher"}], "terminationGracePeriodSeconds": 0},
    }
    cluster.kubectl("create", "--filename", write(cluster, "launcher", [pod]))
    made = cluster.get("pod", name, "-n", VMS)
    bind(cluster, made)
    set_status(cluster, made, "198.18.0.10", ready=True)
    status = {"phase": "Running", "nodeName": NODE, "activePods": {made["metadata"]["uid"]: NODE}}
    cluster.kubectl("patch", "vmi", "vm1", "-n", VMS, "--type=merge", "--patch", json.dumps({"status": status}))
    return name


def requested(cluster: ControlPlane, name: str) -> Object:
    """Return the launcher pod once its annotation requests both interfaces; else nothing."""
    pod = cluster.get("pod", name, "-n", VMS)
    networks = json.loads(pod["metadata"].get("annotations", {}).get("k8s.v1.cni.cncf.io/networks", "[]"))
    return pod if [item["name"] for item in networks] == ["bridge-net", "bridge-net"] else {}


def test_aggregated_apis_are_served_with_a_certificate_of_the_apis_own(installation: Installation) -> None:
    cluster = installation.cluster
    for name in APIS:
        version, _, group = name.partition(".")
        found = json.loads(cluster.kubectl("get", "--raw", f"/apis/{group}/{version}"))
        assert found["groupVersion"] == f"{group}/{version}"
        assert {resource["name"] for resource in found["resources"]} >= {"virtualmachineinstances/addinterface"}
        assert cluster.get("apiservice", name)["spec"]["caBundle"]
    assert "virtualmachineinstances/addinterface" not in cluster.kubectl("api-resources")

    def addresses() -> list[list[str]]:
        parts = cluster.items("endpointslices", "-n", NAMESPACE, "-l", "kubernetes.io/service-name=hotnic-api")
        return [endpoint["addresses"] for part in parts for endpoint in part["endpoints"] or []]

    # An API is available with the first replica that is ready; the controller adds the other one by itself.
    until(lambda: len(addresses()) == 2, lambda: f"two addresses: {addresses()}")
    for [address] in addresses():
        with urllib.request.urlopen(f"http://{address}:8080/metrics", timeout=30) as response:
            # The chart's alert about the certificate reads it.
            assert b"\nhotnic_tls_certificate_expires_seconds " in response.read()


def test_an_upgrade_keeps_the_certificate(installation: Installation) -> None:
    cluster = installation.cluster

    def certificates() -> list[Any]:
        secret = cluster.get("secret", f"{RELEASE}-api-tls", "-n", NAMESPACE)
        return [secret["data"], *(cluster.get("apiservice", name)["spec"]["caBundle"] for name in APIS)]

    before = certificates()
    cluster.helm("upgrade", RELEASE, str(CHART), "--namespace", NAMESPACE, *installation.values)
    assert certificates() == before


def test_users_may_do_what_their_roles_say(installation: Installation, plugged: Object) -> None:
    cluster = installation.cluster
    assert plugged["metadata"]["namespace"] == VMS
    status = json.loads(cluster.kubectl("get", "--raw", f"{VMI}/interfaces", kubeconfig=installation.user("vi")))
    assert [(item["interface"], item["network"]) for item in status["items"]] == [
        ("blue", "bridge-net"),
        ("green", "bridge-net"),
    ]
    # A watch ends by itself; its first line is the whole status.
    path = f"{VMI}/interfaces?watch=true&timeoutSeconds=1"
    watched = cluster.kubectl("get", "--raw", path, kubeconfig=installation.user("vi"))
    assert '"green"' in watched
    # A network of another namespace, which the user may not read: the api asks the API server.
    foreign = {"name": "red", "networkAttachmentDefinitionName": f"{NAMESPACE}/bridge-net"}
    refusal = installation.replace("ed", f"{VMI}/addinterface", foreign).stderr
    assert 'User "ed" cannot get resource "network-attachment-definitions"' in refusal.replace("\\", "")
    for user in ("vi", "nobody"):
        refused = installation.replace(user, f"{VMI}/addinterface", {"name": "red"})
        assert refused.returncode != 0
        assert "forbidden" in refused.stderr.lower()
    version = json.loads(
        cluster.kubectl(
            "get", "--raw", "/apis/subresources.kubevirt.io/v1/version", kubeconfig=installation.user("nobody")
        )
    )
    assert version["gitVersion"]


def test_a_namespace_is_deleted_while_the_apis_are_served(installation: Installation) -> None:
    installation.cluster.kubectl("create", "namespace", "other")
    installation.cluster.kubectl("delete", "namespace", "other", "--timeout=100s")


@pytest.mark.parametrize("role", RAN)
def test_a_role_sends_only_requests_that_its_rules_allow(
    installation: Installation, plugged: Object, capsys: pytest.CaptureFixture[str], role: str
) -> None:
    account = f"system:serviceaccount:{NAMESPACE}:{RELEASE}-{role}"

    def sent() -> list[AuditedRequest]:
        return [request for request in installation.audited() if request.user.username == account]

    # Events and Leases are written after the patch that ends the plug.
    until(lambda: PLUG_NEEDS[role] <= used_rights(sent()), lambda: f"only {used_rights(sent())}")
    requests = sent()
    assert forbidden_requests(requests) == []
    used = used_rights(requests)
    allowed = granted_rights(installation.rendered, ACCOUNT | {"name": f"{RELEASE}-{role}"})
    assert sorted(used - allowed) == []
    with capsys.disabled():
        sys.stdout.write(f"\n{role}: rules that were not used: {sorted(allowed - used)} ")
