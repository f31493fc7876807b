"""The hooks of the Helm chart: what `helm uninstall` and `helm test` run in the cluster."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.objects import Condition, ObjectMeta, Pod, Resource
from services.cli.chart.attachment import check_apis, check_attachment
from services.cli.chart.uninstall import (
    CleaningContainer,
    CleaningContainerState,
    CleaningProgress,
    ClusterNode,
    ClusterNodeStatus,
    ContainerEnd,
    PlacedPod,
    PlacedPodSpec,
    PlacedPodStatus,
    Uninstall,
    cleaning_pod,
    progress,
)
from services.cli.errors import CommandFailed
from services.common.kube.errors import AlreadyExists, Forbidden, NotFound, Unavailable
from services.common.kube.listing import Listing

pytestmark = pytest.mark.looptime

LABELS = {
    "app.kubernetes.io/name": "hotnic",
    "app.kubernetes.io/instance": "hotnic",
    "app.kubernetes.io/component": "uninstall-node",
}
TEMPLATE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"namespace": "hotnic", "labels": LABELS},
    "spec": {"containers": [{"name": "clean", "args": ["node", "clean", "--host-root=/host"]}]},
}


def cluster_node(name: str, ready: str = "True") -> ClusterNode:
    return ClusterNode(ObjectMeta(name=name), ClusterNodeStatus([Condition("Ready", ready)]))


def placed(node: str, phase: str = "", name: str = "pod", message: str = "") -> PlacedPod:
    return PlacedPod(ObjectMeta(name=name), PlacedPodSpec(node), PlacedPodStatus(phase, message))


def ended(node: str, code: int, message: str, *, restarted: bool = False) -> PlacedPod:
    """Return a cleaning pod whose container has ended with this code; the kubelet starts it again."""
    end = CleaningContainerState(ContainerEnd(code, message))
    container = CleaningContainer(last_state=end) if restarted else CleaningContainer(state=end)
    return PlacedPod(ObjectMeta(name="pod"), PlacedPodSpec(node), PlacedPodStatus("Running", "", [container]))


CALLED = "/etc/cni/net.d/05-x.conf: hotnic did not generate this configuration; delete it"
LOG = f"removed /run/multus: x\nError: {CALLED}\nleft /opt/cni/bin/hotnic-multus: y\n"
"""The end of a container's log; the order of the two streams is not fixed."""


@pytest.mark.parametrize(
    ("nodes", "daemons", "cleaning", "expected"),
    [
        ([], [], [], CleaningProgress((), (), {}, {})),
        (
            [cluster_node("a")],
            [placed("a")],
            [],
            CleaningProgress((), (), {"a": "the multus daemon has not ended"}, {}),
        ),
        ([cluster_node("a")], [], [], CleaningProgress(("a",), (), {"a": "the cleaning pod has not started"}, {})),
        (
            [cluster_node("a")],
            [],
            [placed("a", "Pending", message="image hotnic:dev not found")],
            CleaningProgress((), (), {"a": "the cleaning pod is Pending: image hotnic:dev not found"}, {}),
        ),
        ([cluster_node("a")], [], [placed("a", "Succeeded")], CleaningProgress((), ("a",), {}, {})),
        # A node that is not ready keeps its daemon's pod for ever; without one it gets a pod, in case it returns.
        (
            [cluster_node("a", "Unknown")],
            [placed("a")],
            [],
            CleaningProgress((), (), {"a": "the node is not ready"}, {}),
        ),
        ([cluster_node("a", "False")], [], [], CleaningProgress(("a",), (), {"a": "the node is not ready"}, {})),
        # What no further attempt changes is not waited for, and the kubelet's next attempts change nothing of that.
        ([cluster_node("a")], [], [ended("a", 3, LOG)], CleaningProgress((), (), {}, {"a": CALLED})),
        ([cluster_node("a")], [], [ended("a", 4, LOG, restarted=True)], CleaningProgress((), (), {}, {"a": CALLED})),
        (
            [cluster_node("a", "False")],
            [],
            [ended("a", 3, "")],
            CleaningProgress((), (), {}, {"a": "the cleaning pod ended with code 3, and its log is not known"}),
        ),
        (
            [cluster_node("a")],
            [],
            [ended("a", 1, "removed /x: y\nfailed /run/multus: the multus daemon still runs\n", restarted=True)],
            CleaningProgress(
                (), (), {"a": "the cleaning pod is Running: failed /run/multus: the multus daemon still runs"}, {}
            ),
        ),
        # The nodes are independent of each other.
        (
            [cluster_node("b"), cluster_node("a"), cluster_node("c")],
            [placed("b")],
            [placed("a", "Succeeded")],
            CleaningProgress(
                ("c",), ("a",), {"b": "the multus daemon has not ended", "c": "the cleaning pod has not started"}, {}
            ),
        ),
    ],
)
def test_progress(
    nodes: list[ClusterNode], daemons: list[PlacedPod], cleaning: list[PlacedPod], expected: CleaningProgress
) -> None:
    assert progress(nodes, daemons, cleaning) == expected


def test_the_end_of_a_container_is_read_from_the_status_of_its_pod() -> None:
    end = {"terminated": {"exitCode": 3, "reason": "Error", "message": LOG}}
    status = {"name": "clean", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": end}
    document = {"spec": {"nodeName": "a"}, "status": {"phase": "Running", "containerStatuses": [status]}}
    found = msgspec.json.decode(msgspec.json.encode(document), type=PlacedPod)
    assert progress([cluster_node("a")], [], [found]).remaining == {"a": CALLED}


def test_cleaning_pod_is_bound_to_its_node_and_has_a_name_of_its_own() -> None:
    one, other = cleaning_pod(TEMPLATE, "node-1"), cleaning_pod(TEMPLATE, "node-2")
    assert one["spec"]["nodeName"] == "node-1"
    assert one["metadata"]["name"].startswith("hotnic-uninstall-node-")
    assert one["metadata"]["name"] != other["metadata"]["name"]
    assert "name" not in TEMPLATE["metadata"], "the template is not changed"


class ScriptedCluster:
    """The requests of the uninstall, answered from two nodes.

    :ivar calls: the requests that change something, in order.
    :ivar daemons: the nodes whose daemons have not ended.
    :ivar unready: the nodes that are not ready.
    :ivar errors: the error of the first request that has this key.
    :ivar refused: the nodes on which no pod may be created.
    :ivar ends: code and log of the cleaning pods that do not succeed, by node.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.daemons = {"node-1", "node-2"}
        self.unready: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self.pods: dict[str, str] = {}
        self.refused: set[str] = set()
        self.ends: dict[str, tuple[int, str]] = {}

    def _check(self, key: str) -> None:
        if key in self.errors:
            raise self.errors.pop(key)

    async def delete(
        self, resource: Resource[Any], namespace: str | None, name: str, *, grace: int | None = None
    ) -> None:
        self._check(f"delete {resource.kind}")
        self.calls.append(f"delete {resource.kind} {name}")
        if resource.kind == "DaemonSet":
            self.daemons &= self.unready
        if resource.kind == "Pod":
            del self.pods[name]

    async def list(self, resource: Resource[Any], namespace: str | None = None, *, labels: str | None) -> Listing[Any]:
        self._check(f"list {resource.kind}")
        if resource.kind == "Node":
            assert labels == "kubernetes.io/os=linux"
            ready = {name: "False" if name in self.unready else "True" for name in ("node-1", "node-2")}
            return Listing([cluster_node(name, state) for name, state in ready.items()], "1")
        assert namespace == "hotnic"
        assert labels is not None
        if "component=multus" in labels:
            return Listing([placed(node) for node in sorted(self.daemons)], "1")
        assert "component=uninstall-node" in labels
        return Listing(
            [self._cleaning_pod(name, node) for name, node in self.pods.items()],
            "1",
        )

    def _cleaning_pod(self, name: str, node: str) -> PlacedPod:
        if node in self.ends:
            pod = ended(node, *self.ends[node])
            return msgspec.structs.replace(pod, metadata=ObjectMeta(name=name))
        return placed(node, "Pending" if node in self.unready else "Succeeded", name)

    async def create(self, resource: Resource[Any], namespace: str | None, body: Mapping[str, Any]) -> None:
        name, node = body["metadata"]["name"], body["spec"]["nodeName"]
        assert node not in self.daemons, "a node is cleaned after its daemon has ended"
        if name in self.pods:
            raise AlreadyExists("exists", status=409)
        if node in self.refused:
            raise Forbidden("violates PodSecurity", status=403)
        self.calls.append(f"create Pod on {node}")
        self.pods[name] = node


async def run_uninstall(cluster: ScriptedCluster, timeout: float = 30.0) -> tuple[CleaningProgress, list[str]]:
    lines: list[str] = []
    run = Uninstall(cluster, "hotnic", TEMPLATE, lines.append)  # type: ignore[arg-type]
    await run.remove(["v1.subresources.hotnic.io"], "hotnic-multus")
    return await run.clean_nodes("kubernetes.io/os=linux", timeout), lines


async def test_apis_go_first_then_daemons_then_the_nodes_are_cleaned() -> None:
    cluster = ScriptedCluster()
    found, lines = await run_uninstall(cluster)
    assert cluster.calls[:2] == ["delete APIService v1.subresources.hotnic.io", "delete DaemonSet hotnic-multus"]
    assert cluster.calls[2:4] == ["create Pod on node-1", "create Pod on node-2"]
    assert found.cleaned == ("node-1", "node-2")
    assert not cluster.pods, "no pod is left"
    assert "nodes cleaned: node-1, node-2" in lines


async def test_a_node_whose_shim_stays_is_reported_at_once_with_the_file_and_fails_nothing() -> None:
    cluster = ScriptedCluster()
    cluster.ends = {"node-2": (3, LOG)}
    began = asyncio.get_running_loop().time()
    found, lines = await run_uninstall(cluster, timeout=3600.0)
    assert asyncio.get_running_loop().time() - began < 60
    assert (found.cleaned, found.waiting) == (("node-1",), {})
    assert f"node NOT cleaned completely: node-2: {CALLED}" in lines
    assert lines[-1].endswith("hotnic node clean --host-root=/host")
    assert not cluster.pods


async def test_a_node_that_is_not_ready_is_reported_with_the_command_and_stops_nothing() -> None:
    cluster = ScriptedCluster()
    cluster.unready = {"node-2"}
    found, lines = await run_uninstall(cluster, timeout=3.0)
    assert found.cleaned == ("node-1",)
    assert "node NOT cleaned: node-2: the node is not ready" in lines
    assert lines[-1].endswith("hotnic node clean --host-root=/host")
    assert not cluster.pods


async def test_the_nodes_are_reported_before_the_pods_are_deleted_which_may_outlast_the_job() -> None:
    cluster = ScriptedCluster()
    run = Uninstall(cluster, "hotnic", TEMPLATE, cluster.calls.append)  # type: ignore[arg-type]
    await run.remove([], "hotnic-multus")
    await run.clean_nodes("kubernetes.io/os=linux", 30.0)
    report = cluster.calls.index("nodes cleaned: node-1, node-2")
    assert all(call.startswith("delete Pod") for call in cluster.calls[report + 1 :])
    assert len(cluster.calls) == report + 3


@pytest.mark.parametrize(
    ("key", "error", "said"),
    [
        ("delete APIService", NotFound("gone", status=404), ""),
        ("delete APIService", Forbidden("forbidden", status=403), "cannot delete APIService"),
        ("delete DaemonSet", NotFound("gone", status=404), ""),
        ("list Node", Unavailable("no answer"), "cannot clean nodes, trying again: no answer"),
    ],
)
async def test_an_error_does_not_stop_the_rest(key: str, error: Exception, said: str) -> None:
    cluster = ScriptedCluster()
    cluster.errors[key] = error
    if key == "delete DaemonSet":
        cluster.daemons.clear()
    found, lines = await run_uninstall(cluster)
    assert found.cleaned == ("node-1", "node-2")
    assert any(said in line for line in lines)


async def test_a_refused_pod_does_not_stop_the_other_nodes_and_is_reported() -> None:
    cluster = ScriptedCluster()
    cluster.refused = {"node-1"}
    found, lines = await run_uninstall(cluster, timeout=3.0)
    assert found.cleaned == ("node-2",)
    assert "node NOT cleaned: node-1: cannot create the cleaning pod: violates PodSecurity" in lines


class PodWithNetworks:
    """The pod of `helm test`: its annotation decides which links it has.

    :ivar patches: the values of the annotation.
    """

    def __init__(self, links: Path, works: bool = True) -> None:
        self.links, self.works = links, works
        self.patches: list[str | None] = []
        self.served_after = 0

    async def merge_patch(self, resource: Resource[Any], namespace: str, name: str, body: Mapping[str, Any]) -> None:
        value = body["metadata"]["annotations"][NETWORKS]
        self.patches.append(value)
        link = self.links / "hotnictest0"
        if value and self.works:
            assert msgspec.json.decode(value) == [{"name": "net", "interface": "hotnictest0"}]
            link.touch()
        elif not value:
            link.unlink()

    async def get(self, resource: Resource[Any], namespace: str, name: str) -> Pod:
        return Pod(metadata=ObjectMeta(name=name, annotations={NETWORK_STATUS: "[]"}))

    async def request(self, method: str, path: str) -> None:
        assert path == "/apis/subresources.hotnic.io/v1"
        self.served_after -= 1
        if self.served_after >= 0:
            raise Unavailable("service unavailable", status=503)


async def check(pod: PodWithNetworks, *, attached: bool = False, timeout: float = 30.0) -> list[str]:
    lines: list[str] = []
    await check_attachment(
        pod,  # type: ignore[arg-type]
        ("hotnic", "hotnic-test"),
        "net",
        "hotnictest0",
        attached=attached,
        timeout=timeout,
        say=lines.append,
        links=pod.links,
    )
    return lines


async def test_interface_is_attached_and_detached(tmp_path: Path) -> None:
    pod = PodWithNetworks(tmp_path)
    assert await check(pod) == ["interface hotnictest0 attached", "interface hotnictest0 detached"]
    assert pod.patches[1] is None


async def test_interface_from_the_start_is_only_looked_for(tmp_path: Path) -> None:
    pod = PodWithNetworks(tmp_path)
    (tmp_path / "hotnictest0").touch()
    assert await check(pod, attached=True) == ["interface hotnictest0 attached"]
    assert not pod.patches


async def test_missing_interface_fails_with_the_network_status(tmp_path: Path) -> None:
    with pytest.raises(
        CommandFailed, match=r"hotnictest0 of pod hotnic/hotnic-test not attached .* network-status: \[\]"
    ):
        await check(PodWithNetworks(tmp_path, works=False), timeout=0.01)


async def test_apis_are_waited_for(tmp_path: Path) -> None:
    pod, lines = PodWithNetworks(tmp_path), list[str]()
    pod.served_after = 2
    await check_apis(pod, ("subresources.hotnic.io/v1",), 30.0, lines.append)  # type: ignore[arg-type]
    assert lines == ["API subresources.hotnic.io/v1 served"]
    pod.served_after = 10**9
    with pytest.raises(CommandFailed, match=r"kubectl describe apiservice v1\.subresources\.hotnic\.io"):
        await check_apis(pod, ("subresources.hotnic.io/v1",), 0.01, lines.append)  # type: ignore[arg-type]
