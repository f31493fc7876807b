"""The lab's node as a process: settings, caches and control loops.

The lab's supervisor starts `python -m lab.node` inside the namespaces. The process is ready once the Node
object is registered, the guests of an earlier run are adopted and containerd's network is ready, that is: multus has
written its configuration. A restart leaves sandboxes and guests as they are.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from lab.layout import GuestKind
from lab.node.cri import PodRuntime, RuntimeCallError
from lab.node.kubelet import Kubelet
from lab.node.launcher import Launcher
from lab.node.launcher_containers import LauncherContainers
from lab.node.registration import Registration
from lab.node.resources import Key
from lab.node.scheduler import Scheduler
from lab.node.uplinks import Uplinks
from lab.node.virt import VmiLoop, VmLoop
from lab.tools import LabTools
from schemas.kubernetes.objects import NADS, PODS, VMIS, VMS, Pod, Resource, VirtualMachineInstance
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.reconcile import Reconciler
from services.common.runtime.process import RoleRuntime
from services.common.runtime.process import main as run
from services.common.runtime.settings import CommonSettings

T = TypeVar("T")

POLL_INTERVAL = 0.02
"""Seconds between two queries of a runtime that is not ready yet."""


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Settings of the lab's node."""

    cri_socket: Annotated[str, msgspec.Meta(description="containerd's socket")] = "/run/containerd/containerd.sock"
    cgroup_parent: Annotated[str, msgspec.Meta(description="cgroup that holds all sandboxes")] = "/hotnic-lab"
    guests_dir: Annotated[str, msgspec.Meta(description="folder of the guests' sockets and consoles")] = (
        "/run/hotnic/guests"
    )
    guests: Annotated[
        GuestKind, msgspec.Meta(description="kind of guests; a VMI's annotation lab.hotnic.io/guest takes precedence")
    ] = "qemu"
    kubelet: Annotated[
        bool, msgspec.Meta(description="whether this process is kubelet and scheduler, or real ones run the pods")
    ] = True
    vms: Annotated[
        bool, msgspec.Meta(description="whether this process starts VMs, or a KubeVirt creates their pods")
    ] = True
    cluster: Annotated[
        bool,
        msgspec.Meta(description="whether this process also schedules the pods of all nodes and creates VMIs and pods"),
    ] = True
    uplink: Annotated[
        str | None, msgspec.Meta(description="network namespace of the node whose bridges this node's join")
    ] = None
    tools: Annotated[str | None, msgspec.Meta(description="folder of kernel, image and binaries")] = None


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Create the node's loops and start them."""
    settings, log = runtime.settings, runtime.log
    tools = LabTools.find(Path(settings.tools) if settings.tools else None)
    kube = await Kube.connect(kubeconfig=settings.kubeconfig, telemetry=runtime.telemetry, user_agent="hotnic-lab-node")
    runtime.stack.push_async_callback(kube.close)
    cri = PodRuntime(settings.cri_socket, settings.cgroup_parent)
    runtime.stack.push_async_callback(cri.close)
    loops = Loops(runtime, kube, cri, tools)
    # Adopt before the loops start, or they would start a second guest for a pod.
    await loops.launcher.adopt()
    runtime.stack.push_async_callback(loops.launcher.stop_watching)
    if settings.kubelet:
        registration = Registration(kube, settings.node_name, await cri.version(), log)
        await registration.register()
        runtime.spawn("heartbeat", registration.run)
    await loops.run()
    # Only containers need the network of pods, so only their loop waits for it.
    runtime.readiness.set("container-network", False, "containerd's network is not ready")
    runtime.spawn("container-network", wait_for_network(cri, loops.start_containers, runtime))


class Loops:
    """The loops of VMs and VMIs, and those that are kubelet and scheduler, with the caches that trigger them."""

    def __init__(self, runtime: RoleRuntime[Settings], kube: Kube, cri: PodRuntime, tools: LabTools) -> None:
        node, log = runtime.settings.node_name, runtime.log
        self._runtime = runtime
        self._kube = kube
        self._last_views: dict[tuple[str, Key], Any] = {}
        guests, folder = runtime.settings.guests, Path(runtime.settings.guests_dir)
        self.launcher = Launcher(cri, tools, folder, self._guest_changed, log, guests=guests)
        self._pods = self._reflector(PODS, self._pod_changed)
        self._vmis = self._reflector(VMIS, self._vmi_changed)
        self._vms = self._reflector(VMS, lambda key, _vm: self._vm_loop.add(key, source="watch"))
        vms = VmLoop(kube, log)
        vmis = VmiLoop(kube, self.launcher, node, log, creates_pods=runtime.settings.cluster)
        self._kubelet: Kubelet | None = None
        self._scheduler: Reconciler[Key] | None = None
        if runtime.settings.kubelet:
            if runtime.settings.cluster:
                self._scheduler = self._reconciler("scheduler", Scheduler(kube).reconcile, self._pods.keys)
            self._kubelet = Kubelet(kube, cri, self.launcher, node, self._pods.items, log)
            self._containers = self._reconciler("kubelet", self._kubelet.reconcile, self._pods.keys)
        else:
            containers = LauncherContainers(kube, cri, self.launcher)
            self._containers = self._reconciler("launcher containers", containers.reconcile, self.launcher.pods)
        self._vm_loop = self._reconciler("vm", vms.reconcile, self._vms.keys)
        self._vmi_loop = self._reconciler("vmi", vmis.reconcile, self._vmis.keys)
        self._nads = self._reflector(NADS, lambda key, _nad: self._uplinks.add(key, source="watch"))
        uplinks = Uplinks(self._nads.get, node, runtime.settings.uplink or "", log)
        self._uplinks = self._reconciler("uplinks", uplinks.reconcile, self._nads.keys)

    async def run(self) -> None:
        """Start every loop but that of containers, which waits for the runtime's network."""
        watches: dict[str, Reflector[Any]] = {"pods": self._pods}
        loops = {"scheduler": self._scheduler}
        if self._runtime.settings.uplink:
            watches["nads"], loops["uplinks"] = self._nads, self._uplinks
        if self._runtime.settings.vms:
            watches["vmis"], loops["vmi"] = self._vmis, self._vmi_loop
            if self._runtime.settings.cluster:
                watches["vms"], loops["vm"] = self._vms, self._vm_loop
        for name, reflector in watches.items():
            self._runtime.spawn(f"watch {name}", reflector.run)
        for reflector in watches.values():
            await reflector.synced.wait()
        for name, loop in loops.items():
            if loop is not None:
                self._runtime.spawn(name, loop.run)

    async def start_containers(self) -> None:
        """Start the kubelet's loop, after the sandboxes that belong to no pod are removed, or that beside a kubelet."""
        if self._kubelet is not None:
            await self._kubelet.remove_orphans()
        self._runtime.spawn("containers", self._containers.run)

    def _reflector(self, resource: Resource[T], changed: Callable[[Key, T | None], None]) -> Reflector[T]:
        return Reflector(self._kube, resource, on_change=changed, log=self._runtime.log)

    def _reconciler(self, name: str, reconcile: Any, keys: Callable[[], list[Key]]) -> Reconciler[Key]:
        runtime = self._runtime
        return Reconciler(name, reconcile, log=runtime.log, meter=runtime.telemetry.meter, keys=keys)

    def _is_changed(self, kind: str, key: Key, view: Any) -> bool:
        """Return whether the parts of an object that these loops read have changed.

        Every attached NIC changes annotations and statuses that they do not read.
        """
        if view is None:
            self._last_views.pop((kind, key), None)
            return True
        before, self._last_views[kind, key] = self._last_views.get((kind, key)), view
        return bool(before != view)

    def _pod_changed(self, key: Key, pod: Pod | None) -> None:
        if not self._is_changed("pod", key, _pod_view(pod)):
            return
        for loop in (self._scheduler, self._containers):
            if loop is not None:
                loop.add(key, source="watch")
        if not self._runtime.settings.vms:
            return
        owners = pod.metadata.owner_references if pod is not None else []
        owner_names = [o.name for o in owners if o.kind == "VirtualMachineInstance"]
        # A deleted pod's owner is unknown here, and its VMI waits for the deletion: trigger all VMIs of the namespace.
        candidates = [k for k in self._vmis.keys() if k[0] == key[0]] if pod is None else []  # noqa: SIM118
        for vmi in {*((key[0], name) for name in owner_names), *candidates}:
            self._vmi_loop.add(vmi, source="watch")

    def _vmi_changed(self, key: Key, vmi: VirtualMachineInstance | None) -> None:
        if self._is_changed("vmi", key, _vmi_view(vmi)):
            self._vmi_loop.add(key, source="watch")
            self._vm_loop.add(key, source="watch")

    def _guest_changed(self, vmi: Key, pod: Key) -> None:
        self._vmi_loop.add(vmi, source="watch")
        self._containers.add(pod, source="watch")


def _pod_view(pod: Pod | None) -> object:
    if pod is None:
        return None
    meta, status = pod.metadata, pod.status
    return meta.uid, meta.deletion_timestamp, pod.spec.node_name, status.phase, status.conditions


def _vmi_view(vmi: VirtualMachineInstance | None) -> object:
    if vmi is None:
        return None
    meta, status = vmi.metadata, vmi.status
    return meta.uid, meta.deletion_timestamp, status.phase, status.node_name, status.active_pods, status.conditions


async def wait_for_network(cri: PodRuntime, on_ready: Callable[[], Any], runtime: RoleRuntime[Settings]) -> None:
    """Start the kubelet once the runtime accepts pods, which it does when multus has written the CNI configuration."""
    while True:
        try:
            reason = await cri.not_ready_reason()
        except RuntimeCallError as error:
            reason = str(error)
        if not reason:
            break
        runtime.readiness.set("container-network", False, reason)
        await asyncio.sleep(POLL_INTERVAL)
    await on_ready()
    runtime.readiness.set("container-network", True)


def main(argv: list[str] | None = None) -> int:
    """Run the node until SIGTERM."""
    return run("node", Settings, start, argv)


if __name__ == "__main__":
    sys.exit(main())
