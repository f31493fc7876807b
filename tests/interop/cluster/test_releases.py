"""A real API server accepts every object of each choice, and `helm uninstall` leaves only what is documented.

The uninstall is the documented one without hooks: nothing runs their pods.
"""

from typing import Any

import pytest

from services.cli.chart.uninstall import cleaning_pod
from tests.support.interop.chart import CHART, objects
from tests.support.interop.releases import (
    NAMESPACE,
    NODE,
    RELEASE,
    RELEASES,
    Key,
    Snapshot,
    admitted_pods,
    differences,
    installed_crds,
    key_of,
    labelled_namespace,
    live,
    manifest,
    release,
    snapshot,
    write,
)
from tests.support.kube.control_plane import ControlPlane, Object, until


@pytest.mark.parametrize("name", RELEASES)
def test_a_dry_run_accepts_every_object_and_creates_none(cluster: ControlPlane, name: str) -> None:
    choice = RELEASES[name]
    with installed_crds(cluster, choice.there), labelled_namespace(cluster):
        before = snapshot(cluster)
        arguments = [RELEASE, str(CHART), "--namespace", NAMESPACE, *choice.values]
        cluster.helm("install", *arguments, "--dry-run=server")
        rendered = write(cluster, "dry-run", objects(cluster.helm("template", *arguments, "--no-hooks")))
        cluster.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename", rendered)
        assert snapshot(cluster) == before


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_is_installed_upgraded_and_removed(cluster: ControlPlane, empty: Snapshot, name: str) -> None:
    choice = RELEASES[name]
    upgrade = ["upgrade", RELEASE, str(CHART), "--namespace", NAMESPACE, *choice.values, "--set", "log.level=debug"]
    with installed_crds(cluster, choice.there):
        before = snapshot(cluster)
        with labelled_namespace(cluster), release(cluster, *choice.values) as rendered:
            found = live(cluster, rendered)
            assert [line for pair in zip(rendered, found, strict=True) for line in differences(*pair)] == []
            admitted_pods(cluster, rendered)
            accept_hooks(cluster)

            cluster.helm(*upgrade)
            changed = live(cluster, manifest(cluster))
            assert levels(found) == {"info"}
            assert levels(changed) == {"debug"}

            steady = until(lambda: observed(cluster), lambda: "the controllers have seen the upgrade")
            cluster.helm(*upgrade)
            assert changes(steady, live(cluster, manifest(cluster))) == []

            cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--no-hooks")
            left = {("Namespace", "", NAMESPACE), ("ServiceAccount", NAMESPACE, "default")}
            left |= {("ConfigMap", NAMESPACE, "kube-root-ca.crt")}
            left |= {("CustomResourceDefinition.apiextensions.k8s.io", "", crd) for crd in choice.keeps}
            groups = {crd.partition(".")[2] for crd in choice.keeps}
            left |= {("APIService.apiregistration.k8s.io", "", f"v1.{group}") for group in groups}
            wait_for_difference(cluster, before, left)
        # The documentation's command for the CRDs. The namespace is gone, too.
        if choice.keeps:
            cluster.kubectl("delete", "crd", *choice.keeps)
    wait_for_difference(cluster, empty, set())


def accept_hooks(cluster: ControlPlane) -> None:
    """Check that the API server accepts the objects of the hooks, and the pod that cleans a node."""
    hooks = objects(cluster.helm("get", "hooks", RELEASE, "--namespace", NAMESPACE))
    early = [item for item in hooks if "helm.sh/hook-weight" in item["metadata"]["annotations"]]
    late = [item for item in hooks if item not in early]
    assert {item["kind"] for item in late} == {"Job", "Pod"}
    template = next(item for item in early if item["kind"] == "ConfigMap")["data"]["pod.json"]
    [pod] = objects(template)
    late.append(cleaning_pod(pod, NODE))
    early_file = write(cluster, "early-hooks", early)
    cluster.kubectl("create", "--validate=strict", "--filename", early_file)
    cluster.kubectl("create", "--dry-run=server", "--validate=strict", "--filename", write(cluster, "hooks", late))
    cluster.kubectl("delete", "--filename", early_file)


def levels(found: list[Object]) -> set[str]:
    """Return the log levels of all containers of the release's workloads."""
    pods = [item["spec"]["template"]["spec"] for item in found if item["kind"] in ("Deployment", "DaemonSet")]
    variables = [entry for pod in pods for container in pod["containers"] for entry in container["env"]]
    return {entry["value"] for entry in variables if entry["name"] == "HOTNIC_LOG_LEVEL"}


def observed(cluster: ControlPlane) -> list[Object]:
    """Return the objects of the release once the controllers have seen their last change."""
    found = live(cluster, manifest(cluster))
    statuses = [item for item in found if "observedGeneration" in item.get("status", {})]
    wanted = {"Deployment", "DaemonSet", "PodDisruptionBudget", "ValidatingAdmissionPolicy"}
    if {item["kind"] for item in statuses} != wanted & {item["kind"] for item in found}:
        return []
    seen = all(item["status"]["observedGeneration"] == item["metadata"]["generation"] for item in statuses)
    return found if seen else []


def changes(before: list[Object], after: list[Object]) -> list[str]:
    """Return the objects that differ in anything but their status, which controllers write at any time."""

    def content(item: Object) -> Any:
        if "status" not in item:
            return item
        metadata = {key: value for key, value in item["metadata"].items() if key != "resourceVersion"}
        metadata["managedFields"] = [entry for entry in metadata.get("managedFields", []) if "subresource" not in entry]
        return {key: value for key, value in item.items() if key != "status"} | {"metadata": metadata}

    pairs = zip(before, after, strict=True)
    return [" ".join(key_of(one)) for one, other in pairs if content(one) != content(other)]


def wait_for_difference(cluster: ControlPlane, before: Snapshot, wanted: set[Key]) -> None:
    """Wait until the cluster has these objects more than before, and is otherwise as it was."""

    def difference() -> list[str]:
        now = snapshot(cluster)
        found = [f"left: {key}" for key in now.keys() - before.keys() - wanted]
        found += [f"gone: {key}" for key in before.keys() - now.keys()]
        found += [f"not there: {key}" for key in wanted - now.keys()]
        return found + [f"changed: {key}" for key in before.keys() & now.keys() if before[key] != now[key]]

    until(lambda: not difference(), lambda: f"as before: {difference()}")
