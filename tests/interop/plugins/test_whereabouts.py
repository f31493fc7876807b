"""Addresses by whereabouts, whose leases are objects of the API server, on a lab with Kubernetes itself.

Its CRDs and rights come from the source of its Go module, and the plugin has a token with these rights only.
"""

import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from lab.apiserver.identity import pki
from tests.support.interop.tools import source, tool
from tests.support.lab.ordinary_pods import NAMESPACE, OrdinaryPods, ordinary_pods
from tests.support.lab.running import KUBERNETES_VARIABLE, Lab, environment, running_lab, wait_until

NETWORK: Final = "cluster-wide"
IPAM_NAMESPACE: Final = "kube-system"
"""The namespace of whereabouts' own objects."""
DEPLOYED: Final = ("CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding")
"""The kinds of upstream's manifests that the plugin needs; its DaemonSet would only install it."""


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Check nothing between the tests: processes of the lab are restarted, and all of them end with it."""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab on Kubernetes with the plugin, its objects and its configuration."""
    directory = tmp_path_factory.mktemp("lab")
    with environment(**{KUBERNETES_VARIABLE: "1.36"}), running_lab(directory, bare=True, guests="double") as running:
        manifests = sorted((source("whereabouts") / "doc" / "crds").glob("*.yaml"))
        objects = [obj for file in manifests for obj in yaml.safe_load_all(file.read_text())]
        wanted = [obj for obj in objects if obj and obj["kind"] in DEPLOYED]
        running.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted}))
        running.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=45s")
        shutil.copy(tool("whereabouts"), running.layout.state / "cni-bin" / "whereabouts")
        write_kubeconfig(running)
        settings = {"datastore": "kubernetes", "kubernetes": {"kubeconfig": str(kubeconfig(running))}}
        ipam = {
            "type": "whereabouts",
            "range": "10.67.0.0/24",
            "configuration_path": str(directory / "whereabouts.conf"),
        }
        (directory / "whereabouts.conf").write_text(json.dumps(settings))
        config = {"cniVersion": "1.0.0", "name": NETWORK, "type": "bridge", "bridge": "hotnic-br7", "ipam": ipam}
        nad = {
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": NETWORK, "namespace": NAMESPACE},
            "spec": {"config": json.dumps(config)},
        }
        running.kubectl("apply", "-f", "-", stdin=json.dumps(nad))
        yield running


def kubeconfig(lab: Lab) -> Path:
    return lab.layout.dir / "whereabouts.kubeconfig"


def write_kubeconfig(lab: Lab) -> None:
    """Write the plugin's kubeconfig, with a token of its service account."""
    server = json.loads(lab.layout.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    token = lab.kubectl("create", "token", "whereabouts", "-n", IPAM_NAMESPACE).strip()
    pki.write_kubeconfig(kubeconfig(lab), server, lab.layout.apiserver, token, namespace=IPAM_NAMESPACE)


@pytest.fixture
async def pods(lab: Lab) -> AsyncIterator[OrdinaryPods]:
    async with ordinary_pods(lab.layout.kubeconfig) as made:
        yield made


def leases(lab: Lab) -> set[tuple[str, str]]:
    """Return pod and interface of every lease; each must also be reserved for the whole cluster."""
    kinds = "ippools.whereabouts.cni.cncf.io,overlappingrangeipreservations.whereabouts.cni.cncf.io"
    items = json.loads(lab.kubectl("get", kinds, "-A", "-o", "json"))["items"]
    pools = [one for pool in items if pool["kind"] == "IPPool" for one in (pool["spec"]["allocations"] or {}).values()]
    reserved = [one["spec"] for one in items if one["kind"] == "OverlappingRangeIPReservation"]
    found = {(one["podref"].removeprefix(f"{NAMESPACE}/"), one["ifname"]) for one in pools}
    assert found == {(one["podref"].removeprefix(f"{NAMESPACE}/"), one["ifname"]) for one in reserved}
    return found


def element(interface: str) -> dict[str, str]:
    return {"name": NETWORK, "interface": interface}


def records(lab: Lab) -> list[Path]:
    """Return the files of the multus daemon's records."""
    return list((lab.layout.state / "cni" / "multus" / "sandboxes").glob("*.json"))


def record(lab: Lab, pod: str) -> dict[str, Any]:
    """Wait for the file with the record of a pod's sandbox, and return it."""
    deadline = time.monotonic() + 45
    while True:
        for file in records(lab):
            found: dict[str, Any] = json.loads(file.read_text())
            if found["pod"] == pod:
                return found
        assert time.monotonic() < deadline, f"no record of pod {pod}"


def check(lab: Lab, pod: str) -> None:
    """Call CHECK for the sandbox of a pod through the shim, as a container runtime may."""
    found = record(lab, pod)
    args = f"K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={pod}"
    variables = {"COMMAND": "CHECK", "CONTAINERID": found["sandboxId"], "NETNS": found["netns"], "IFNAME": "eth0"}
    environment = [f"CNI_{key}={value}" for key, value in {**variables, "ARGS": args, "PATH": "/opt/cni/bin"}.items()]
    call = "/opt/cni/bin/hotnic-multus < /etc/cni/net.d/00-multus.conf"
    done = lab.hotnic("lab", "exec", "--", "env", *environment, "sh", "-c", call)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_leases_follow_the_interfaces(lab: Lab, pods: OrdinaryPods) -> None:
    await pods.create("wide1", "wide2", networks=f"{NETWORK}@net1")
    assert leases(lab) == {("wide1", "net1"), ("wide2", "net1")}
    await pods.set_networks("wide1", [element("net1"), element("net2")])
    await pods.until_links("wide1", "net1", "net2")
    assert leases(lab) == {("wide1", "net1"), ("wide1", "net2"), ("wide2", "net1")}
    addresses = [entry.ips for name in ("wide1", "wide2") for entry in pods.attached(name)]
    assert sorted(addresses, key=str) == [["10.67.0.1"], ["10.67.0.2"], ["10.67.0.3"]]
    # whereabouts implements no CHECK, and its refusal shows nothing about the interfaces.
    check(lab, "wide1")
    await pods.set_networks("wide1", [element("net2")])
    await pods.until_links("wide1", "net2")
    assert leases(lab) == {("wide1", "net2"), ("wide2", "net1")}
    await pods.delete("wide1", "wide2")
    assert leases(lab) == set()
    wait_until(lambda: not records(lab))


async def test_an_address_is_released_when_whereabouts_is_back(lab: Lab, pods: OrdinaryPods) -> None:
    """Without its kubeconfig DEL fails. The pod is deleted all the same, and the daemon repeats DEL later."""
    await pods.create("wide3", networks=f"{NETWORK}@net1")
    kubeconfig(lab).unlink()
    try:
        await pods.delete("wide3")
    finally:
        write_kubeconfig(lab)
    assert leases(lab) == {("wide3", "net1")}
    # It would do so within a minute, and does so when it starts.
    with lab.stopped("multus"):
        pass
    wait_until(lambda: not leases(lab))
    wait_until(lambda: not records(lab))
