"""Clean up a cluster before its Helm release is deleted: aggregated APIs, multus daemons, then the files on every node.

The order matters. An APIService without a server blocks discovery and the deletion of every namespace. A daemon writes
its CNI configuration again, so a node is cleaned after its daemon has ended. Nothing that fails stops the rest: the
release is deleted in any case, and what is left is reported. The pod that cleans a node runs ``hotnic node clean``.
"""

import asyncio
import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from schemas.kubernetes.api_registration import API_SERVICES
from schemas.kubernetes.objects import Condition, ObjectMeta, Resource
from services.cli.errors import ForeignConfiguration, StillInProgress
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists, KubeError, NotFound

POLL_INTERVAL: Final = 1.0
"""Seconds between two observations of the nodes and pods."""
SETTLED: Final = (ForeignConfiguration.exit_code, StillInProgress.exit_code)
"""Exit codes of ``hotnic node clean`` after which another attempt within minutes would change nothing."""
ERROR: Final = "Error: "
"""What click puts before the message of an error."""


class ClusterNodeStatus(msgspec.Struct, frozen=True):
    """The conditions of a node."""

    conditions: list[Condition] = []


class ClusterNode(msgspec.Struct, frozen=True):
    """A node of the cluster."""

    metadata: ObjectMeta = ObjectMeta()
    status: ClusterNodeStatus = ClusterNodeStatus()


class PlacedPodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """The node of a pod."""

    node_name: str = ""


class ContainerEnd(msgspec.Struct, frozen=True, rename="camel"):
    """How a container has ended.

    :ivar message: the end of its log.
    """

    exit_code: int = 0
    message: str = ""


class CleaningContainerState(msgspec.Struct, frozen=True):
    """A state of a container, if it has ended in it."""

    terminated: ContainerEnd | None = None


class CleaningContainer(msgspec.Struct, frozen=True, rename="camel"):
    """The state of the container that cleans a node, and that before the kubelet has started it again."""

    state: CleaningContainerState = CleaningContainerState()
    last_state: CleaningContainerState = CleaningContainerState()


class PlacedPodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The phase of a pod, why it is in it, and its containers."""

    phase: str = ""
    message: str = ""
    container_statuses: list[CleaningContainer] = []


class PlacedPod(msgspec.Struct, frozen=True):
    """A pod with its node and phase."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PlacedPodSpec = PlacedPodSpec()
    status: PlacedPodStatus = PlacedPodStatus()


NODES = Resource("", "v1", "nodes", "Node", ClusterNode, namespaced=False)
PLACED_PODS = Resource("", "v1", "pods", "Pod", PlacedPod)
DAEMON_SETS: Resource[dict[str, Any]] = Resource("apps", "v1", "daemonsets", "DaemonSet", dict[str, Any])


class CleaningProgress(msgspec.Struct, frozen=True):
    """How far the cleaning of the nodes is.

    :ivar create: nodes that need a cleaning pod now.
    :ivar cleaned: nodes that are done.
    :ivar waiting: why a node is not done yet.
    :ivar remaining: why something of hotnic stays on a node, where no further attempt changes that soon.
    """

    create: tuple[str, ...]
    cleaned: tuple[str, ...]
    waiting: dict[str, str]
    remaining: dict[str, str]


def progress(
    nodes: Iterable[ClusterNode], daemons: Iterable[PlacedPod], cleaning: Iterable[PlacedPod]
) -> CleaningProgress:
    """Return how far the cleaning is, from the nodes, the pods of multus daemons and the cleaning pods."""
    with_daemon = {pod.spec.node_name for pod in daemons}
    pods = {pod.spec.node_name: pod for pod in cleaning}
    create, cleaned = list[str](), list[str]()
    waiting, remaining = dict[str, str](), dict[str, str]()
    for node in sorted(nodes, key=lambda node: node.metadata.name):
        name, pod = node.metadata.name, pods.get(node.metadata.name)
        if pod is not None and pod.status.phase == "Succeeded":
            cleaned.append(name)
            continue
        end = None if pod is None else _last_end(pod)
        if end is not None and end.exit_code in SETTLED:
            remaining[name] = (
                _reason(end) or f"the cleaning pod ended with code {end.exit_code}, and its log is not known"
            )
            continue
        if not _is_ready(node):
            waiting[name] = "the node is not ready"
        elif name in with_daemon:
            waiting[name] = "the multus daemon has not ended"
        elif pod is None:
            waiting[name] = "the cleaning pod has not started"
        else:
            reason = pod.status.message or (_reason(end) if end is not None else "") or "no reason"
            waiting[name] = f"the cleaning pod is {pod.status.phase or 'Pending'}: {reason}"
        # On a node that is not ready the pod waits for the kubelet, in case the node returns in time.
        if pod is None and name not in with_daemon:
            create.append(name)
    return CleaningProgress(tuple(create), tuple(cleaned), waiting, remaining)


def _last_end(pod: PlacedPod) -> ContainerEnd | None:
    """Return how the container of a cleaning pod has ended last."""
    for container in pod.status.container_statuses:
        for state in (container.state, container.last_state):
            if state.terminated is not None:
                return state.terminated
    return None


def _reason(end: ContainerEnd) -> str:
    """Return the error of the command, which may stand anywhere, because output and errors are two streams."""
    lines = end.message.split("\n")
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    return (errors or [line for line in lines if line] or [""])[-1]


def cleaning_pod(template: Mapping[str, Any], node: str) -> dict[str, Any]:
    """Return the pod that cleans a node: bound to the node, so that no taint and no scheduler keeps it away."""
    pod = copy.deepcopy(dict(template))
    digest = hashlib.sha256(node.encode()).hexdigest()[:10]
    component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
    pod["metadata"]["name"] = f"{pod['metadata']['labels']['app.kubernetes.io/instance']}-{component}-{digest}"
    pod["spec"]["nodeName"] = node
    return pod


def _is_ready(node: ClusterNode) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in node.status.conditions)


class Uninstall:
    """The steps before the release is deleted.

    :param template: the pod that cleans a node, without a node.
    :param say: prints a line.
    """

    def __init__(self, kube: Kube, namespace: str, template: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._template = template
        self._say = say
        labels = template["metadata"]["labels"]
        self._cleaning = _selector(labels, labels["app.kubernetes.io/component"])
        self._daemons = _selector(labels, "multus")

    async def remove(self, api_services: Iterable[str], daemon_set: str) -> None:
        """Delete the APIServices, then the DaemonSet of the multus daemons."""
        for name in api_services:
            await self._delete(API_SERVICES, None, name)
        await self._delete(DAEMON_SETS, self._namespace, daemon_set)

    async def clean_nodes(self, labels: str, timeout: float) -> CleaningProgress:
        """Clean every node with these labels, until all are done or the time is over; report the nodes.

        :param labels: label selector of the nodes.
        :param timeout: seconds.
        """
        found = CleaningProgress((), (), {"?": "the nodes cannot be listed"}, {})
        try:
            async with asyncio.timeout(timeout):
                while found.waiting:
                    try:
                        found = await self._step(labels)
                    except KubeError as error:
                        self._say(f"cannot clean nodes, trying again: {error.message}")
                    if found.waiting:
                        await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            pass
        # At once: the Job has a deadline, too, and deleting takes long where the API server does not answer.
        self._report(found)
        await self._delete_pods()
        return found

    async def _step(self, labels: str) -> CleaningProgress:
        nodes = await self._kube.list(NODES, labels=labels or None)
        daemons = await self._kube.list(PLACED_PODS, self._namespace, labels=self._daemons)
        cleaning = await self._kube.list(PLACED_PODS, self._namespace, labels=self._cleaning)
        found = progress(nodes.items, daemons.items, cleaning.items)
        for node in found.create:
            try:
                await self._kube.create(PLACED_PODS, self._namespace, cleaning_pod(self._template, node))
            except AlreadyExists:
                # From an earlier attempt of this hook.
                continue
            except KubeError as error:
                # An admission policy may refuse the pod, perhaps on this node only.
                found.waiting[node] = f"cannot create the cleaning pod: {error.message}"
        return found

    async def _delete_pods(self) -> None:
        try:
            pods = await self._kube.list(PLACED_PODS, self._namespace, labels=self._cleaning)
            for pod in pods.items:
                # At once: the kubelet of a node that is not ready would never confirm the deletion.
                await self._delete(PLACED_PODS, self._namespace, pod.metadata.name, grace=0, quiet=True)
        except KubeError as error:
            self._say(f"cannot delete the cleaning pods ({self._cleaning}): {error.message}")

    async def _delete(
        self,
        resource: Resource[Any],
        namespace: str | None,
        name: str,
        *,
        grace: int | None = None,
        quiet: bool = False,
    ) -> None:
        try:
            await self._kube.delete(resource, namespace, name, grace=grace)
        except NotFound:
            return
        except KubeError as error:
            self._say(f"cannot delete {resource.kind} {name}: {error.message}")
            return
        if not quiet:
            self._say(f"{resource.kind} {name} deleted")

    def _report(self, found: CleaningProgress) -> None:
        if found.cleaned:
            self._say(f"nodes cleaned: {', '.join(found.cleaned)}")
        for node, reason in found.waiting.items():
            self._say(f"node NOT cleaned: {node}: {reason}")
        for node, reason in found.remaining.items():
            self._say(f"node NOT cleaned completely: {node}: {reason}")
        if found.waiting or found.remaining:
            arguments = self._template["spec"]["containers"][0]["args"]
            self._say(f"on each of them run this image with the node's root at /host: hotnic {' '.join(arguments)}")


def _selector(labels: Mapping[str, str], component: str) -> str:
    chosen = {key: labels[f"app.kubernetes.io/{key}"] for key in ("name", "instance")} | {"component": component}
    return ",".join(f"app.kubernetes.io/{key}={value}" for key, value in chosen.items())
