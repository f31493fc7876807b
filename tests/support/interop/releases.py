"""Releases of the chart in a real cluster: how each choice is installed, and what a cluster contains.

The commands are those of docs/install.md.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.interop.chart import CHART, NATS, objects
from tests.support.kube.control_plane import KUBECTL, ControlPlane, Object, until

NAMESPACE = "hotnic"
RELEASE = "hotnic"
NODE = "node-1"
CRDS = CHART / "files" / "crds"
NAD_CRD = "network-attachment-definitions.k8s.cni.cncf.io"
KUBEVIRT_CRDS = tuple(f"{plural}.kubevirt.io" for plural in ("kubevirts", "virtualmachineinstances", "virtualmachines"))

Key = tuple[str, str, str]
"""Kind with its group, namespace and name of an object."""
Snapshot = dict[Key, Object]


@dataclass(frozen=True)
class ReleaseChoice:
    """One way to install the chart.

    :ivar values: helm's arguments.
    :ivar there: the CRDs that other software has installed.
    :ivar keeps: the CRDs that the release installs, and that stay.
    """

    values: tuple[str, ...]
    there: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()


def _choice(name: str, *more: str) -> tuple[str, ...]:
    return ("--values", str(CHART / "choices" / f"{name}.yaml"), *more)


RELEASES = {
    "multus": ReleaseChoice(_choice("multus"), there=(NAD_CRD,)),
    "multus-and-networks": ReleaseChoice(_choice("multus-and-networks", "--set", "crds.nad=true"), keeps=(NAD_CRD,)),
    "beside-kubevirt": ReleaseChoice(_choice("beside-kubevirt", "--set", NATS), there=(NAD_CRD, *KUBEVIRT_CRDS)),
    "everything": ReleaseChoice(_choice("everything", "--set", NATS), keeps=(NAD_CRD, *KUBEVIRT_CRDS)),
}

_UNSTEADY = {"events", "events.events.k8s.io", "leases.coordination.k8s.io", "componentstatuses"}
"""Resources that change by themselves."""


def snapshot(cluster: ControlPlane) -> Snapshot:
    """Return every object of the cluster, without what changes by itself.

    Versions and managed fields are left out. The accounts of controllers are, too: a controller creates its own before
    its first request.
    """
    found: Snapshot = {}
    for item in listed(cluster):
        metadata = item["metadata"]
        for name in ("resourceVersion", "managedFields", "generation"):
            metadata.pop(name, None)
        key = key_of(item)
        if key[:2] != ("ServiceAccount", "kube-system"):
            found[key] = item
    return found


def listed(cluster: ControlPlane) -> list[Object]:
    """Return every object of the cluster as it is, without the resources that change by themselves.

    The API server's list of resources follows the deletion of a CRD or an APIService a little later. Meanwhile it names
    resources that cannot be read.
    """
    refusal = ""

    def all_readable() -> list[Object]:
        nonlocal refusal
        done = cluster.run(KUBECTL, "api-resources", "--verbs=list", "--output=name", check=False)
        if done.returncode == 0:
            names = ",".join(sorted(set(done.stdout.split()) - _UNSTEADY))
            done = cluster.run(KUBECTL, "get", names, "--all-namespaces", "--output=json", check=False)
        if done.returncode != 0:
            refusal = done.stderr
            return []
        found: list[Object] = json.loads(done.stdout)["items"]
        return found

    return until(all_readable, lambda: f"every resource can be read: {refusal}")


def key_of(item: Object) -> Key:
    """Return the key of an object."""
    group = item["apiVersion"].rpartition("/")[0]
    kind = f"{item['kind']}.{group}" if group else item["kind"]
    return kind, item["metadata"].get("namespace", ""), item["metadata"]["name"]


@contextlib.contextmanager
def installed_crds(cluster: ControlPlane, names: tuple[str, ...]) -> Iterator[None]:
    """Install CRDs as other software does, and delete them at the end."""
    files = [CRDS / f"{name.partition('.')[2]}_{name.partition('.')[0]}.yaml" for name in names]
    # The API server creates and deletes the APIService of a CRD's group some time after the CRD.
    services = sorted({f"apiservice/v1.{name.partition('.')[2]}" for name in names})
    for file in files:
        cluster.kubectl("create", "--filename", str(file))
    if names:
        cluster.kubectl("wait", "--for=condition=Established", "crd", *names, "--timeout=100s")
        cluster.kubectl("wait", "--for=create", *services, "--timeout=100s")
        cluster.kubectl("wait", "--for=condition=Available", *services, "--timeout=100s")
    try:
        yield
    finally:
        if names:
            cluster.kubectl("delete", "crd", *names)
            cluster.kubectl("wait", "--for=delete", *services, "--timeout=100s")


@contextlib.contextmanager
def labelled_namespace(cluster: ControlPlane) -> Iterator[None]:
    """Create the release's namespace as the documentation says, and delete it at the end."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=privileged")
    made = ("serviceaccount/default", "configmap/kube-root-ca.crt")
    cluster.kubectl("wait", "--for=create", *made, f"--namespace={NAMESPACE}", "--timeout=100s")
    try:
        yield
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=100s")


@contextlib.contextmanager
def release(cluster: ControlPlane, *values: str) -> Iterator[list[Object]]:
    """Install the chart, provide its objects as rendered, and uninstall it at the end unless the test has done so."""
    try:
        # Inside: an install that fails leaves its objects, and an APIService among them blocks every namespace.
        cluster.helm("install", RELEASE, str(CHART), "--namespace", NAMESPACE, *values)
        yield manifest(cluster)
    finally:
        cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--no-hooks", "--ignore-not-found")


def manifest(cluster: ControlPlane) -> list[Object]:
    """Return the objects of the release as rendered, without hooks."""
    return objects(cluster.helm("get", "manifest", RELEASE, "--namespace", NAMESPACE))


def live(cluster: ControlPlane, rendered: list[Object]) -> list[Object]:
    """Return the objects of the release as the API server has them, in the order of the rendered ones."""
    return cluster.items("--filename", write(cluster, "manifest", rendered))


def write(cluster: ControlPlane, name: str, found: list[Object]) -> str:
    """Write objects to a file for kubectl and return its path."""
    path = cluster.kubeconfig.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump_all(found))
    return str(path)


def differences(rendered: Any, found: Any, path: str = "") -> list[str]:
    """Return where an object of the API server lacks or changes what was rendered; further fields are defaults."""
    if isinstance(rendered, dict) and isinstance(found, dict):
        return [
            line
            for name, value in rendered.items()
            if value not in (None, {}, [], "")
            for line in differences(value, found.get(name), f"{path}.{name}")
        ]
    if isinstance(rendered, list) and isinstance(found, list) and len(rendered) == len(found):
        pairs = enumerate(zip(rendered, found, strict=True))
        return [line for at, (one, other) in pairs for line in differences(one, other, f"{path}[{at}]")]
    return [] if rendered == found else [f"{path}: {json.dumps(rendered)} is {json.dumps(found)}"]


def workloads(found: list[Object]) -> dict[str, int]:
    """Return the number of pods that each workload wants on one node, by its name."""
    return {
        item["metadata"]["name"]: item["spec"].get("replicas", 1)
        for item in found
        if item["kind"] in ("Deployment", "DaemonSet")
    }


def admitted_pods(cluster: ControlPlane, found: list[Object]) -> list[Object]:
    """Wait until the API server has admitted every pod of the release; return the pods."""
    wanted = workloads(found)

    def all_there() -> list[Object]:
        pods = cluster.items("pods", "--namespace", NAMESPACE)
        counts = dict.fromkeys(wanted, 0)
        for pod in pods:
            counts[f"{RELEASE}-{pod['metadata']['labels']['app.kubernetes.io/component']}"] += 1
        return pods if counts == wanted else []

    return until(all_there, lambda: f"pods of {wanted}: {cluster.kubectl('get', 'pods,events', '-n', NAMESPACE)}")
