"""A played KubeVirt on an API server of its own, and the recorded moments that it is compared with."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import structlog

from lab.kubevirt.loops.play import MIGRATIONS
from lab.kubevirt.pace import Pace
from lab.kubevirt.player import Player, PlayOptions, playing
from lab.kubevirt.specs import ABSENT
from lab.node.resources import PODS, VMIS, VMS
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict
from services.common.telemetry import configure

Object = dict[str, Any]

FOLDER = Path(__file__).parents[1] / "kubevirt_objects"
DEADLINE = 30.0
"""Seconds until the objects are as expected; a plug takes 0.2 s alone."""

UNCOMPARED = {
    "*": {"generation": "counts writes", "resourceVersion": "counts writes", "managedFields": "not recorded"},
    "VirtualMachine.status": {"desiredGeneration": "counts writes", "startFailure": "not played"},
    "VirtualMachineInstance.status": {
        "launcherContainerImageVersion": "no virt-launcher runs",
        "currentCPUTopology": "not played",
        "memory": "not played",
        "selinuxContext": "not played",
    },
    "VirtualMachineInstance.status.interfaces": {"interfaceName": "chosen by the guest that was played"},
    "migrationState": {
        "migrationConfiguration": "not played",
        "targetDirectMigrationNodePorts": "not played",
        "targetMemoryOverhead": "not played",
        "targetNodeAddress": "not played",
        "sourcePod": "generated name",
        "targetPod": "generated name",
    },
    "network-status": {"ips": "from the played plugin", "mac": "from the played plugin"},
}
"""Fields in which player and recording may differ, with the reason."""

LAUNCHER_ONLY = re.compile(r"(descheduler|istio|sidecar\.istio|velero)\.|memory-overhead")
"""Annotations of launcher pods for other programs, and for virt-launcher itself; the player writes none of them."""

_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:Z| \+0000 UTC)")


@contextmanager
def api_server(directory: Path) -> Iterator[Path]:
    """Run the lab's API server as a process; yield the administrator's kubeconfig."""
    command = [sys.executable, "-m", "lab.apiserver", "--dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Path(json.loads(process.stdout.readline())["kubeconfig"])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


class PlayedCluster:
    """A cluster with a played KubeVirt.

    :ivar kube: the user's client.
    """

    def __init__(self, kube: Kube, player: Player, pace: Pace) -> None:
        self.kube, self.player, self.pace = kube, player, pace
        self._changed = asyncio.Event()
        self._stores = {
            resource.plural: Reflector(
                kube,
                resource,
                namespace="default",
                on_change=lambda *_: self._changed.set(),
                log=structlog.get_logger(),
            )
            for resource in (VMS, VMIS, PODS, MIGRATIONS)
        }

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["PlayedCluster"]:
        """Watch the objects while the block runs."""
        tasks = [asyncio.create_task(store.run()) for store in self._stores.values()]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def find(self, plural: str, name: str) -> Object:
        """Return an object as last seen; it is empty if there is none."""
        return self._stores[plural].get("default", name) or {}

    def pods(self) -> list[Object]:
        """Return the launcher pods, oldest first."""
        return sorted(self._stores["pods"].items(), key=lambda pod: int(pod["metadata"]["resourceVersion"]))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something is true of the objects."""
        async with asyncio.timeout(DEADLINE):
            while not holds():
                self._changed.clear()
                if not holds():
                    await self._changed.wait()

    async def start(self, vm: Object) -> None:
        """Create a VM and wait until its guest runs and every attachment is reported."""
        await self.kube.create(VMS, "default", vm)
        name = vm["metadata"]["name"]
        await self.until(lambda: self.find("virtualmachines", name).get("status", {}).get("ready", False))
        for interface in vm["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"]:
            await self.until(
                lambda interface=interface: bool(self.entry(name, interface["name"]).get("podInterfaceName", True))
            )

    def entry(self, vm: str, interface: str) -> Object:
        """Return an entry of the VMI's `status.interfaces`; it is empty if there is none."""
        entries = self.find("virtualmachineinstances", vm).get("status", {}).get("interfaces") or []
        return next((entry for entry in entries if entry.get("name") == interface), {})

    async def has_tokens(self, vm: str, interface: str, tokens: str) -> None:
        """Wait until the entry of an interface has this `infoSource`."""
        await self.until(lambda: self.entry(vm, interface).get("infoSource", "") == tokens)

    async def edit(self, vm: str, change: Callable[[list[Object], list[Object]], None]) -> None:
        """Change networks and interfaces of a VM's template, as `kubectl edit` does."""
        found = await self.kube.get(VMS, "default", vm)
        spec = found["spec"]["template"]["spec"]
        change(spec["networks"], spec["domain"]["devices"]["interfaces"])
        body = {
            "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
            "spec": {"template": {"spec": spec}},
        }
        try:
            await self.kube.merge_patch(VMS, "default", vm, body)
        except Conflict:
            await self.edit(vm, change)

    async def plug(self, vm: str, name: str, nad: str, **fields: Any) -> None:
        """Add an interface with bridge binding to a VM's template."""

        def change(networks: list[Object], interfaces: list[Object]) -> None:
            networks.append({"name": name, "multus": {"networkName": nad}})
            interfaces.append({"name": name, **(fields or {"bridge": {}})})

        await self.edit(vm, change)

    async def set_state(self, vm: str, name: str, state: str = ABSENT) -> None:
        """Set the state of an interface in a VM's template."""

        def change(_networks: list[Object], interfaces: list[Object]) -> None:
            next(item for item in interfaces if item["name"] == name)["state"] = state

        await self.edit(vm, change)

    async def reaches(self, moment: str, vm: str, *pods: str) -> None:
        """Wait until VM, VMI and pods are those of a recorded moment, but for `UNCOMPARED`.

        :param pods: names of the recorded pods, in the order of all launcher pods; none compares no pod.
        """
        recorded = load(moment)

        def expected() -> list[Object]:
            return comparable([recorded[kind] for kind in ("vm", "vmi", *pods) if kind in recorded])

        def found() -> list[Object]:
            objects = []
            if "vm" in recorded:
                objects.append(self.find("virtualmachines", vm))
            if "vmi" in recorded:
                objects.append(self.find("virtualmachineinstances", vm))
            everything = [item for item in [*objects, *self.pods()[: len(pods)]] if item]
            return comparable(json.loads(json.dumps(everything)))

        try:
            await self.until(lambda: found() == expected())
        except TimeoutError:
            assert found() == expected(), f"the moment {moment} is not reached"


def load(moment: str) -> Object:
    """Return the objects of a recorded moment by kind."""
    found: Object = json.loads((FOLDER / f"{moment}.json").read_text())
    return found


def vm_without(moment: str, *interfaces: str, **replaced: Object) -> Object:
    """Return the VM of a moment as its user created it, without these interfaces.

    :param replaced: interfaces to create in another form.
    """
    vm = load(moment)["vm"]
    spec = vm["spec"]["template"]["spec"]
    devices = spec["domain"]["devices"]
    spec["networks"] = [item for item in spec["networks"] if item["name"] not in interfaces]
    kept = [item for item in devices["interfaces"] if item["name"] not in interfaces]
    devices["interfaces"] = [replaced.get(item["name"], item) for item in kept]
    meta = {"name": vm["metadata"]["name"], "namespace": "default"}
    return {"apiVersion": vm["apiVersion"], "kind": vm["kind"], "metadata": meta, "spec": vm["spec"]}


def comparable(objects: list[Object]) -> list[Object]:
    """Return objects in the form in which player and recording are compared."""
    text = json.dumps([_without_uncompared(obj) for obj in objects], sort_keys=True)
    for number, obj in enumerate(objects):
        text = text.replace(obj["metadata"]["uid"], f"uid-{number}")
        if obj["kind"] in ("Pod", "VirtualMachineInstanceMigration"):
            text = text.replace(obj["metadata"]["name"], f"name-{number}")
    found: list[Object] = json.loads(_TIME.sub("TIME", text))
    return found


def _without_uncompared(obj: Object) -> Object:
    kind, status = obj["kind"], dict(obj.get("status") or {})
    meta = _drop(dict(obj["metadata"]), "*")
    if kind == "Pod":
        annotations = {key: text for key, text in meta["annotations"].items() if not LAUNCHER_ONLY.search(key)}
        key = "k8s.v1.cni.cncf.io/network-status"
        if key in annotations:
            annotations[key] = [_drop(item, "network-status") for item in json.loads(annotations[key])]
        meta["annotations"] = annotations
        return {"metadata": meta, "nodeName": obj["spec"].get("nodeName"), "phase": status.get("phase")}
    status = _drop(status, f"{kind}.status")
    if "interfaces" in status:
        status["interfaces"] = [_drop(item, f"{kind}.status.interfaces") for item in status["interfaces"]]
    if "migrationState" in status:
        status["migrationState"] = _drop(status["migrationState"], "migrationState")
    return {"kind": kind, "metadata": meta, "spec": obj["spec"], "status": status}


def _drop(fields: Object, place: str) -> Object:
    return {key: value for key, value in fields.items() if key not in UNCOMPARED.get(place, {})}


@asynccontextmanager
async def played_cluster(
    directory: Path, options: PlayOptions, pace: Pace | None = None
) -> AsyncIterator[PlayedCluster]:
    """Run an API server with a played KubeVirt while the block runs."""
    pace = pace or Pace()
    telemetry = configure("test", environ={})
    with api_server(directory) as kubeconfig:
        try:
            async with (
                playing(kubeconfig, options, pace) as player,
                await Kube.connect(kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="test") as kube,
                PlayedCluster(kube, player, pace).watching() as cluster,
            ):
                yield cluster
        finally:
            telemetry.shutdown()
