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

from lab.apiserver.identity import pki
from lab.kubevirt.admission import ACCOUNT
from lab.kubevirt.loops.play import EVENTS, MIGRATIONS
from lab.kubevirt.pace import Pace
from lab.kubevirt.player import Player, PlayOptions, playing
from lab.kubevirt.specs import ABSENT
from lab.node.resources import PODS, VMIS, VMS
from schemas.kubernetes.objects import Resource
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict
from services.common.kube.patch import add, test
from services.common.telemetry import configure
from tests.support.recorded_kubevirt import recorded

Object = dict[str, Any]

DEADLINE = 30.0
"""Seconds until the objects are as expected; a plug takes 0.2 s alone."""

UNCOMPARED = {
    "*": {"generation": "counts writes", "resourceVersion": "counts writes", "managedFields": "not recorded"},
    "annotations": {"kubevirt.io/vm-generation": "counts edits of the VM"},
    "VirtualMachine.status": {
        "desiredGeneration": "counts edits of the VM",
        "observedGeneration": "counts edits of the VM",
        "startFailure": "not played",
        "instancetypeRef": "instance types are not played",
        "preferenceRef": "not played",
    },
    "VirtualMachineInstance.spec.domain": {"memory": "instance types are not played"},
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
    },
    "v1.0.1": {
        "AgentConnected": "the guest that was played had no agent",
        "LiveMigratable": "not played at that time",
        "default": "the primary interface was reported without an agent",
        "mac": "chosen by the guest that was played",
    },
    "network-status": {"ips": "from the played plugin", "mac": "from the played plugin"},
}
"""Fields in which player and recording may differ, with the reason."""

_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_GENERATED = re.compile(r"\b(?:virt-launcher-\w+|hand|kubevirt-(?:workload-update|evacuation))-[a-z0-9]{5}\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:Z| \+0000 UTC)")


@contextmanager
def api_server(directory: Path, version: str) -> Iterator[tuple[Path, Path]]:
    """Run the lab's API server with KubeVirt's admission; yield the administrator's kubeconfig and KubeVirt's."""
    command = [sys.executable, "-m", "lab.apiserver", "--dir", str(directory), "--kubevirt", version]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            account = pki.issue_client(directory, ACCOUNT, [], file_name="kubevirt")
            own = directory / "kubevirt-kubeconfig"
            pki.write_kubeconfig(own, ready["server"], directory, account)
            yield Path(ready["kubeconfig"]), own
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(100)


class PlayedCluster:
    """A cluster with a played KubeVirt.

    :ivar kubeconfig: the administrator's.
    :ivar kube: the user's client.
    """

    def __init__(self, kubeconfig: Path, kube: Kube, player: Player, pace: Pace) -> None:
        self.kubeconfig, self.kube, self.player, self.pace = kubeconfig, kube, player, pace
        self._changed = asyncio.Event()
        self._order: dict[str, int] = {}
        self._stores = {resource.plural: self._store(resource) for resource in (VMS, VMIS, PODS, MIGRATIONS, EVENTS)}

    def _store(self, resource: Resource[Object]) -> Reflector[Object]:
        def changed(key: tuple[str, str], _found: Object | None) -> None:
            self._order.setdefault(key[1], len(self._order))
            self._changed.set()

        return Reflector(self.kube, resource, namespace="default", on_change=changed, log=structlog.get_logger())

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

    def items(self, plural: str) -> list[Object]:
        """Return the objects of a kind, in the order in which they were seen first."""
        return sorted(self._stores[plural].items(), key=lambda obj: self._order[obj["metadata"]["name"]])

    def pods(self, vm: str) -> list[Object]:
        """Return the launcher pods of a VM, oldest first."""
        return [pod for pod in self.items("pods") if pod["metadata"]["labels"].get("vm.kubevirt.io/name") == vm]

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
        for network in vm["spec"]["template"]["spec"]["networks"]:
            tokens = "domain, guest-agent, multus-status" if "multus" in network else "domain, guest-agent"
            await self.has_tokens(name, network["name"], tokens)

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
        version = {"resourceVersion": found["metadata"]["resourceVersion"]}
        body = {"metadata": version, "spec": {"template": {"spec": spec}}}
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

    async def migrate(self, vm: str) -> None:
        """Migrate a VM to the other node and wait for the end of its source pod."""
        name = await self.start_migration(vm)
        await self.until(lambda: self.find(MIGRATIONS.plural, name).get("status", {}).get("phase") == "Succeeded")
        await self.until(lambda: sum(pod["status"]["phase"] == "Running" for pod in self.pods(vm)) == 1)

    async def start_migration(self, vm: str) -> str:
        """Create a migration as a user does; return its name."""
        meta = {"generateName": "hand-", "namespace": "default"}
        body = {"apiVersion": "kubevirt.io/v1", "kind": MIGRATIONS.kind, "metadata": meta, "spec": {"vmiName": vm}}
        return str((await self.kube.create(MIGRATIONS, "default", body))["metadata"]["name"])

    async def annotate(self, resource: Resource[Object], vm: str, moment: str, kind: str) -> None:
        """Set the annotations of a recorded object that are not KubeVirt's."""
        annotations = recorded(moment)[kind]["metadata"]["annotations"]
        own = {key: text for key, text in annotations.items() if "kubevirt.io" not in key}
        await self.kube.merge_patch(resource, "default", vm, {"metadata": {"annotations": own}})

    async def request(self, vm: str, request: Object) -> None:
        """Append a request to the queue of a VM, as virt-api of KubeVirt 1.0 does."""
        queue = (await self.kube.get(VMS, "default", vm)).get("status", {}).get("interfaceRequests")
        path = "/status/interfaceRequests"
        ops = [test(path, queue), add(path, [*(queue or []), request])]
        await self.kube.json_patch(VMS, "default", vm, ops, subresource="status")

    async def reaches(self, moment: str, vm: str, pods: slice = slice(0)) -> None:
        """Wait until the objects are those of a recorded moment, but for `UNCOMPARED`.

        :param pods: the launcher pods that the moment has, of all launcher pods of the VM.
        """
        moment_objects = recorded(moment)
        kinds = [kind for kind in ("vm", "vmi", "migration") if kind in moment_objects]
        pod_kinds = sorted(kind for kind in moment_objects if kind.startswith("pod"))
        version = moment.split("-")[0]
        expected = comparable([moment_objects[kind] for kind in [*kinds, *pod_kinds]], version)

        def found() -> list[Object]:
            last = self.items(MIGRATIONS.plural)[-1:] or [{}]
            named = {"vm": self.find(VMS.plural, vm), "vmi": self.find(VMIS.plural, vm), "migration": last[0]}
            return comparable([*(named[kind] for kind in kinds), *self.pods(vm)[pods]], version)

        try:
            await self.until(lambda: found() == expected)
        except TimeoutError:
            assert found() == expected, f"the moment {moment} is not reached"

    def events(self, vm: str) -> list[tuple[str, str, str, str]]:
        """Return kind, reason, type and message of the events, sorted."""
        found = [
            (event["involvedObject"]["kind"], event["reason"], event["type"], _GENERATED.sub("NAME", event["message"]))
            for event in self.items(EVENTS.plural)
            if event["involvedObject"]["name"].startswith((vm, "kubevirt-"))
        ]
        return sorted(found)


def recorded_events(moment: str) -> list[tuple[str, str, str, str]]:
    """Return the events of a recorded moment in the form of `PlayedCluster.events`."""
    found = [
        (e["kind"], e["reason"], e["type"], _GENERATED.sub("NAME", e["message"])) for e in recorded(moment)["events"]
    ]
    return sorted(found)


def vm_without(moment: str, *interfaces: str, **replaced: Object) -> Object:
    """Return the VM of a moment as its user created it, without these interfaces.

    :param replaced: interfaces to create in another form.
    """
    vm = recorded(moment)["vm"]
    spec = vm["spec"]["template"]["spec"]
    devices = spec["domain"]["devices"]
    spec["networks"] = [item for item in spec["networks"] if item["name"] not in interfaces]
    kept = [item for item in devices["interfaces"] if item["name"] not in interfaces]
    devices["interfaces"] = [replaced.get(item["name"], item) for item in kept]
    meta = {"name": vm["metadata"]["name"], "namespace": "default"}
    return {"apiVersion": vm["apiVersion"], "kind": vm["kind"], "metadata": meta, "spec": vm["spec"]}


def comparable(objects: list[Object], version: str) -> list[Object]:
    """Return objects in the form in which player and recording of a version are compared."""
    known = {obj["metadata"]["uid"]: f"uid-{number}" for number, obj in enumerate(objects) if obj}
    return [_plain(_without_uncompared(obj, version), known) for obj in objects if obj]


def _plain(value: Any, known: dict[str, str]) -> Any:
    """Return a value with the same text for the same UID, time or generated name on both sides."""
    if isinstance(value, dict):
        plain = {_plain(key, known): _plain(item, known) for key, item in value.items()}
        # Several pods that are not compared have the same text.
        pairs = value.get("activePods")
        if isinstance(pairs, dict):
            plain["activePods"] = sorted((_plain(uid, known), node) for uid, node in pairs.items())
        return plain
    if isinstance(value, list):
        return [_plain(item, known) for item in value]
    if not isinstance(value, str):
        return value
    text = _UID.sub(lambda match: known.get(match[0], "uid"), value)
    # Another API server refuses in other words.
    text = re.sub("^(error encountered when trying to patch vmi: ).*", r"\1REFUSAL", text)
    return _GENERATED.sub("NAME", _TIME.sub("TIME", text))


def _without_uncompared(obj: Object, version: str) -> Object:
    kind, status = obj["kind"], dict(obj.get("status") or {})
    meta = _drop(dict(obj["metadata"]), "*")
    meta["annotations"] = _drop(meta.get("annotations") or {}, "annotations")
    if kind == "Pod":
        annotations, key = meta["annotations"], "k8s.v1.cni.cncf.io/network-status"
        if key in annotations:
            annotations[key] = [_drop(item, "network-status") for item in json.loads(annotations[key])]
        return {"metadata": meta, "nodeName": obj["spec"].get("nodeName"), "phase": status.get("phase")}
    status = _drop(status, f"{kind}.status")
    ignored = UNCOMPARED.get(version, {})
    status["conditions"] = [item for item in status.get("conditions") or [] if item["type"] not in ignored]
    if "interfaces" in status:
        entries = [_drop(item, version) for item in status["interfaces"] if item.get("name") not in ignored]
        status["interfaces"] = [_drop(item, f"{kind}.status.interfaces") for item in entries]
    if "migrationState" in status:
        status["migrationState"] = _drop(status["migrationState"], "migrationState")
    spec = dict(obj["spec"])
    if "domain" in spec:
        spec["domain"] = _drop(spec["domain"], f"{kind}.spec.domain")
    return {"kind": kind, "metadata": meta, "spec": spec, "status": status}


def _drop(fields: Object, place: str) -> Object:
    return {key: value for key, value in fields.items() if key not in UNCOMPARED.get(place, {})}


@asynccontextmanager
async def played_cluster(
    directory: Path, options: PlayOptions, pace: Pace | None = None
) -> AsyncIterator[PlayedCluster]:
    """Run an API server with a played KubeVirt while the block runs."""
    pace = pace or Pace()
    telemetry = configure("test", environ={})
    with api_server(directory, options.version) as (kubeconfig, account):
        try:
            async with (
                playing(account, options, pace) as player,
                await Kube.connect(kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="test") as kube,
                PlayedCluster(kubeconfig, kube, player, pace).watching() as cluster,
            ):
                yield cluster
        finally:
            telemetry.shutdown()
