"""The lab's node as a process: settings, caches, four loops.

`python -m services.lab.node`, started by the lab's supervisor inside its namespaces. Ready once the Node object is
registered, containerd's network is up (multus has written its configuration) and guests of an earlier run are
adopted. A restart leaves sandboxes and guests as they are.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from schemas.kube import PODS, VMIS, VMS, Pod, Resource, VirtualMachineInstance
from services.common.kube.client import Kube
from services.common.kube.reflector import Reflector
from services.common.reconcile import Reconciler
from services.common.runtime import RoleRuntime
from services.common.runtime import main as run
from services.common.settings import Common
from services.lab.layout import Guests
from services.lab.node.cri import PodRuntime, RuntimeFailureError
from services.lab.node.kubelet import Kubelet
from services.lab.node.launcher import Launcher
from services.lab.node.registration import Registration, node_labels
from services.lab.node.resources import Key
from services.lab.node.scheduler import Scheduler
from services.lab.node.virt import VmiLoop, VmLoop
from services.lab.tools import Tools

T = TypeVar("T")

POLL = 0.02
"""Seconds between two looks at a runtime that is not ready yet."""


class Settings(Common, frozen=True, kw_only=True):
    """What the lab's node can be told."""

    cri_socket: Annotated[str, msgspec.Meta(description="containerd's socket")] = "/run/containerd/containerd.sock"
    cgroup_parent: Annotated[str, msgspec.Meta(description="cgroup that holds all sandboxes")] = "/hotnic-lab"
    guests_dir: Annotated[str, msgspec.Meta(description="folder of the guests' sockets and consoles")] = (
        "/run/hotnic/guests"
    )
    guests: Annotated[
        Guests, msgspec.Meta(description="what guests are; a VMI's annotation lab.hotnic.io/guest goes before it")
    ] = "qemu"
    tools: Annotated[str | None, msgspec.Meta(description="folder of kernel, image and binaries")] = None


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Wire the node's loops and start them."""
    settings, log = runtime.settings, runtime.log
    tools = Tools.find(Path(settings.tools) if settings.tools else None)
    kube = await Kube.connect(kubeconfig=settings.kubeconfig, telemetry=runtime.telemetry, user_agent="hotnic-lab-node")
    runtime.stack.push_async_callback(kube.close)
    cri = PodRuntime(settings.cri_socket, settings.cgroup_parent)
    runtime.stack.push_async_callback(cri.close)
    loops = Loops(runtime, kube, cri, tools)
    await loops.launcher.adopt()
    runtime.stack.push_async_callback(loops.launcher.release)
    registration = Registration(kube, settings.node_name, await cri.version(), log)
    await registration.register()
    runtime.spawn("heartbeat", registration.run)
    await loops.run()
    runtime.readiness.set("container-network", False, "containerd's network is not ready")
    runtime.spawn("container-network", network_ready(cri, loops.start_kubelet, runtime))


class Loops:
    """Scheduler, kubelet, VM and VMI loop with the caches that drive them."""

    def __init__(self, runtime: RoleRuntime[Settings], kube: Kube, cri: PodRuntime, tools: Tools) -> None:
        node, log = runtime.settings.node_name, runtime.log
        self._runtime = runtime
        self._kube = kube
        self._seen: dict[tuple[str, Key], Any] = {}
        guests, folder = runtime.settings.guests, Path(runtime.settings.guests_dir)
        self.launcher = Launcher(cri, tools, folder, self._guest_changed, log, guests=guests)
        self._pods = self._reflector(PODS, self._pod_changed)
        self._vmis = self._reflector(VMIS, self._vmi_changed)
        self._vms = self._reflector(VMS, lambda key, _vm: self._vm_loop.add(key, source="watch"))
        scheduler = Scheduler(kube, node, node_labels(node))
        kubelet = Kubelet(kube, cri, self.launcher, node, self._pods.items, log)
        vms, vmis = VmLoop(kube, log), VmiLoop(kube, self.launcher, node, log)
        self._scheduler = self._reconciler("scheduler", scheduler.reconcile, self._pods.keys)
        self._kubelet = self._reconciler("kubelet", kubelet.reconcile, self._pods.keys)
        self._vm_loop = self._reconciler("vm", vms.reconcile, self._vms.keys)
        self._vmi_loop = self._reconciler("vmi", vmis.reconcile, self._vmis.keys)
        self._sweep = kubelet.sweep

    async def run(self) -> None:
        """Start everything but the kubelet, which waits for the runtime's network."""
        for name, reflector in (("pods", self._pods), ("vmis", self._vmis), ("vms", self._vms)):
            self._runtime.spawn(f"watch {name}", reflector.run)
        for reflector in (self._pods, self._vmis, self._vms):
            await reflector.synced.wait()
        for name, loop in (
            ("scheduler", self._scheduler),
            ("vm", self._vm_loop),
            ("vmi", self._vmi_loop),
        ):
            self._runtime.spawn(name, loop.run)

    async def start_kubelet(self) -> None:
        """Remove sandboxes that belong to no pod, then look after the pods."""
        await self._sweep()
        self._runtime.spawn("kubelet", self._kubelet.run)

    def _reflector(self, resource: Resource[T], changed: Callable[[Key, T | None], None]) -> Reflector[T]:
        return Reflector(self._kube, resource, on_change=changed, log=self._runtime.log)

    def _reconciler(self, name: str, reconcile: Any, keys: Callable[[], list[Key]]) -> Reconciler[Key]:
        runtime = self._runtime
        return Reconciler(name, reconcile, log=runtime.log, meter=runtime.telemetry.meter, keys=keys)

    def _new(self, kind: str, key: Key, seen: Any) -> bool:
        """Return whether an object has changed where these loops look; every NIC changes much that they do not."""
        if seen is None:
            self._seen.pop((kind, key), None)
            return True
        before, self._seen[kind, key] = self._seen.get((kind, key)), seen
        return bool(before != seen)

    def _pod_changed(self, key: Key, pod: Pod | None) -> None:
        if not self._new("pod", key, _pod_view(pod)):
            return
        self._scheduler.add(key, source="watch")
        self._kubelet.add(key, source="watch")
        owners = pod.metadata.owner_references if pod is not None else []
        named = [o.name for o in owners if o.kind == "VirtualMachineInstance"]
        # A pod that is gone no longer says whose it was; its VMI waits for exactly that.
        going = [k for k in self._vmis.keys() if k[0] == key[0]] if pod is None else []  # noqa: SIM118
        for vmi in {*((key[0], name) for name in named), *going}:
            self._vmi_loop.add(vmi, source="watch")

    def _vmi_changed(self, key: Key, vmi: VirtualMachineInstance | None) -> None:
        if self._new("vmi", key, _vmi_view(vmi)):
            self._vmi_loop.add(key, source="watch")
            self._vm_loop.add(key, source="watch")

    def _guest_changed(self, vmi: Key, pod: Key) -> None:
        self._vmi_loop.add(vmi, source="watch")
        self._kubelet.add(pod, source="watch")


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


async def network_ready(cri: PodRuntime, then: Callable[[], Any], runtime: RoleRuntime[Settings]) -> None:
    """Start the kubelet once the runtime takes pods: the CNI configuration comes from multus."""
    while True:
        try:
            why = await cri.not_ready_because()
        except RuntimeFailureError as error:
            why = str(error)
        if not why:
            break
        runtime.readiness.set("container-network", False, why)
        await asyncio.sleep(POLL)
    await then()
    runtime.readiness.set("container-network", True)


def main(argv: list[str] | None = None) -> int:
    """Run the node until SIGTERM."""
    return run("node", Settings, start, argv)


if __name__ == "__main__":
    sys.exit(main())
