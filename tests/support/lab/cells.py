"""Carries out a row of the table of situations beside the played KubeVirt: what a user does, and what the user reads.

Each row has a VM of its own. The requests are the api's and the wait is the CLI's; the controller runs beside them.
Next: ``tests/integration/lab/situations.py``, the table.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from lab.kubevirt.loops.play import INSTALLATIONS, PREFERENCES
from lab.kubevirt.pace import Step
from lab.node.resources import PODS as RAW_PODS
from lab.node.resources import VMIS as RAW_VMIS
from lab.node.resources import VMS as RAW_VMS
from lab.tools import PAUSE_IMAGE
from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.kubevirt import KubeVirt
from schemas.kubernetes.objects import CREATED_BY_LABEL, NADS, PODS, VMIS, Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.api.apply import apply_request
from services.api.front_proxy import UserIdentity
from services.api.hotplug_status.read import derive_vmi_statuses
from services.api.observe import ClusterSettings, observe
from services.api.plan import ChangeObject, RequestTarget
from services.api.plan.checks import find_mode_obstacle
from services.cli.operations.follow import follow_operation
from services.cli.operations.progress import OperationProgress
from services.common.domain.kubevirt.capabilities import read_capabilities
from services.common.http.server import StatusError
from services.common.kube.cache.vmi_watch import WatchedVmi
from services.common.kube.errors import AlreadyExists, KubeError, NotFound
from tests.support.bus.memory import MemoryBus
from tests.support.lab.kubevirt import DEADLINE, PlayedCluster, vm_without
from tests.support.lab.observing import ObservingController

Object = dict[str, Any]

CALLER = UserIdentity("admin", ("system:masters",), {})
TIMEOUT = 60.0
"""Seconds that ``--wait`` waits; a row takes 2 s alone."""
ACCEPTED = "accepted"
NO_VM = "the VM does not run"
NOT_LISTED = "not listed"
PREFERENCE, MODEL = "model", "e1000e"
"""The preference of some VMs, and the interface model that it names."""


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table: the cluster, the VM, and what its user does and reads.

    :ivar versions: the first and the last version of KubeVirt that it holds for.
    :ivar steps: what the user does, or what happens, and what the user reads then. ``{vm}``, ``{nic}``, ``{link}`` and
        ``{version}`` stand for names.
    :ivar nics: the secondary interfaces that the VM has from its start: ``nic``, which the row is about, and ``other``.
    :ivar thick: whether the nodes attach networks to running pods.
    :ivar methods: ``workloadUpdateMethods`` of the KubeVirt object.
    :ivar gates: whether the feature gates of hot-plug are enabled.
    :ivar migratable: whether the VM can be migrated.
    :ivar eviction: the VM's evictionStrategy.
    :ivar preference: whether the VM has a preference that names an interface model.
    :ivar alone: whether the VMI has no VM.
    """

    name: str
    versions: tuple[str, str]
    steps: tuple[tuple[str, str], ...]
    nics: tuple[str, ...] = ()
    thick: bool = True
    methods: tuple[str, ...] = ()
    gates: bool = True
    migratable: bool = True
    eviction: str = "None"
    preference: bool = False
    alone: bool = False

    @property
    def cluster(self) -> tuple[bool, tuple[str, ...], bool]:
        """The settings of the cluster: rows that share them run at once."""
        return self.gates, self.methods, self.thick


class Cell:
    """One row in one version.

    :param number: makes names unique.
    :ivar row: the row.
    """

    def __init__(
        self, cluster: PlayedCluster, controller: ObservingController, bus: MemoryBus, row: Situation, number: int
    ) -> None:
        self._cluster, self._controller, self._bus, self.row = cluster, controller, bus, row
        self._pace, self._play = cluster.pace, cluster.player.play
        self._vm, self._nic = f"vm{number}", f"blue{number}"
        self._waits: list[asyncio.Task[str]] = []

    async def run(self, limit: asyncio.Semaphore) -> None:
        """Start the VM, take the steps, and compare what the user reads with the row."""
        async with limit:
            await self._run()

    async def _run(self) -> None:
        await self._start()
        try:
            for number, (step, expected) in enumerate(self.row.steps):
                text = self._filled(expected)
                found = await self._action(step)(text)
                assert found == text, f"{self.row.name}, step {number + 1}, {step}: {found!r} instead of {text!r}"
        finally:
            for wait in self._waits:
                wait.cancel()
            await asyncio.gather(*self._waits, return_exceptions=True)
            # Whatever changes, the player looks at every VM that there is.
            for resource in (RAW_VMS, RAW_VMIS):
                with suppress(NotFound):
                    await self._cluster.kube.delete(resource, "default", self._vm)

    def _filled(self, text: str) -> str:
        names = {"vm": self._vm, "nic": self._nic, "link": pod_interface(self._nic)}
        return text.format(**names, version=".".join(self._play.version.split(".")[:2]))

    def _action(self, step: str) -> Callable[[str], Awaitable[str]]:
        holds: dict[str, tuple[Step, str]] = {
            "Multus": ("network-status", self._nic),
            "virt-controller": ("vmi-spec", self._vm),
            "the guest": ("detach", self._nic),
            "the grace": ("grace", self._vm),
            "the workload update": ("workload-update", self._vm),
            "the hand-over": ("hand-over", self._vm),
        }
        for name, held in holds.items():
            if step == f"{name} waits":
                return partial(self._hold, held)
            if step == f"{name} goes on":
                return partial(self._release, held)
        actions: dict[str, Callable[[str], Awaitable[str]]] = {
            "hotnic addinterface": partial(self._request, OperationKind.PLUG),
            "hotnic addinterface --allow-eviction": partial(self._request, OperationKind.PLUG, allow_eviction=True),
            "hotnic removeinterface": partial(self._request, OperationKind.UNPLUG),
            "hotnic removeinterface --allow-eviction": partial(
                self._request, OperationKind.UNPLUG, allow_eviction=True
            ),
            "--wait": self._wait,
            "hotnic status": self._status,
            "hotnic status, of the pod interface": partial(self._status, stray=True),
            "operations": self._operations,
            "kubectl edit vm: add the interface": partial(self._edit, partial(_added, "bridge")),
            "kubectl edit vm: add an SR-IOV interface": partial(self._edit, partial(_added, "sriov")),
            "kubectl edit vm: state absent": partial(self._edit, partial(_with_state, "absent")),
            "kubectl edit vm: state down": partial(self._edit, partial(_with_state, "down")),
            "kubectl edit vm: state up": partial(self._edit, partial(_with_state, "up")),
            "kubectl edit vm: no state": partial(self._edit, partial(_with_state, "")),
            "kubectl edit vm: network net2": partial(self._edit, _with_network),
            "kubectl edit vm: take the interface out": partial(self._edit, _dropped),
            "virtctl restart": self._restart,
            "the VM is started anew": self._restarted,
            "virtctl migrate": self._migrate,
            "virtctl migrate begins": self._begin_migration,
            "the migration ends": self._end_migration,
        }
        return actions[step]

    async def _start(self) -> None:
        vm = vm_without("v1.9.0-a-plugged", "blue")
        vm["metadata"]["name"] = self._vm
        spec = vm["spec"]["template"]["spec"]
        spec["evictionStrategy"] = self.row.eviction
        for nic in self.row.nics:
            _added(
                "bridge", self._nic if nic == "nic" else nic, spec["networks"], spec["domain"]["devices"]["interfaces"]
            )
        if self.row.preference:
            vm["spec"]["preference"] = {"kind": PREFERENCES.kind, "name": PREFERENCE}
        if not self.row.migratable:
            self._play.not_migratable.add(("default", self._vm))
        # With a networks controller a plug is attached before the grace is over, however busy the machine is.
        self._pace.hold(*(("grace", self._vm) if self.row.thick else ("network-status", self._nic)))
        if not self.row.alone:
            await self._cluster.start(vm)
            return
        vmi = {**vm, "kind": "VirtualMachineInstance", "spec": spec}
        await self._cluster.kube.create(RAW_VMIS, "default", vmi)
        await self._cluster.until(lambda: self._vmi().get("status", {}).get("phase") == "Running")

    # What the user does.

    async def _request(self, kind: OperationKind, _expected: str, *, allow_eviction: bool = False) -> str:
        options: AddInterfaceOptions | RemoveInterfaceOptions = RemoveInterfaceOptions(self._nic)
        if kind is OperationKind.PLUG:
            options = AddInterfaceOptions(network_attachment_definition_name="net1", name=self._nic)
        settings = ClusterSettings(False, "masquerade", self._controller.beside())
        kube = self._controller.kube
        target = RequestTarget.VMI if self.row.alone else RequestTarget.VM
        request = partial(
            observe, kube, settings, target, "default", self._vm, options, CALLER, allow_eviction=allow_eviction
        )
        if (obstacle := find_mode_obstacle(settings.beside, enabled=True)) is not None:
            return "{} {}: {}".format(*obstacle)
        try:
            answer = await apply_request(request, kube, self._bus)
        except StatusError as error:
            return f"{error.code} {error.reason}: {error.message}"
        follow = partial(OperationProgress, self._nic, answer.operation.id, kind, persist=True)
        vmi = await kube.get(VMIS, "default", self._vm)
        self._waits.append(asyncio.create_task(self._follow(vmi, follow())))
        warnings = answer.warnings if isinstance(answer, ChangeObject) else ()
        return f"Warning: {'; '.join(warnings)}" if warnings else ACCEPTED

    async def _follow(self, vmi: VirtualMachineInstance, progress: OperationProgress) -> str:
        await follow_operation(
            self._controller.kube,
            vmi,
            progress,
            with_vm=True,
            timeout=TIMEOUT,
            on_stage=lambda _stage: None,
            on_watch_error=lambda _text: None,
        )
        outcome = progress.outcome
        if outcome is None:
            return "the timeout has ended"
        return f"{outcome.result}: {outcome.message}" if outcome.message else str(outcome.result)

    async def _wait(self, _expected: str) -> str:
        return await self._waits.pop(0)

    async def _edit(self, change: Callable[[str, list[Object], list[Object]], None], _expected: str) -> str:
        try:
            await self._cluster.edit(self._vm, partial(change, self._nic))
        except KubeError as error:
            return f"{error.status}: {error.message.partition('denied the request: ')[2]}"
        return ""

    async def _restart(self, expected: str) -> str:
        before = self._vmi()["metadata"]["uid"]
        await self._cluster.kube.delete(RAW_VMIS, "default", self._vm)
        await self._cluster.until(lambda: self._vmi().get("metadata", {}).get("uid", before) != before)
        return await self._restarted(expected)

    async def _restarted(self, _expected: str) -> str:
        def ready() -> bool:
            vm, vmi = self._cluster.find(RAW_VMS.plural, self._vm), self._vmi()
            running = vmi.get("status", {}).get("phase") == "Running" and not vmi["metadata"].get("deletionTimestamp")
            return running and bool(vm["status"].get("ready"))

        await self._cluster.until(ready)
        return ""

    async def _migrate(self, _expected: str) -> str:
        await self._cluster.migrate(self._vm)
        return ""

    async def _begin_migration(self, _expected: str) -> str:
        self._pace.hold("hand-over", self._vm)
        await self._cluster.start_migration(self._vm)
        await self._cluster.until(lambda: "targetPod" in self._vmi()["status"].get("migrationState", {}))
        return ""

    async def _end_migration(self, _expected: str) -> str:
        self._pace.release("hand-over", self._vm)
        await self._cluster.until(lambda: sum(pod["status"]["phase"] == "Running" for pod in self._pods()) == 1)
        return ""

    async def _hold(self, held: tuple[Step, str], _expected: str) -> str:
        self._pace.hold(*held)
        return ""

    async def _release(self, held: tuple[Step, str], _expected: str) -> str:
        self._pace.release(*held)
        return ""

    # What the user reads.

    async def _status(self, expected: str, *, stray: bool = False) -> str:
        """Wait until the status is as expected; return it in any case.

        What follows an arrow is a part of the remedy.
        """
        name, remedy = pod_interface(self._nic) if stray else self._nic, expected.partition(" → ")[2]

        def read() -> str:
            status = self._find_status(name)
            text = status if isinstance(status, str) else _text_of(status)
            if remedy and not isinstance(status, str) and remedy in str(status.remedy):
                text += f" → {remedy}"
            return text

        with suppress(TimeoutError):
            await self._cluster.until(lambda: read() == expected)
        return read()

    def _find_status(self, name: str) -> InterfaceHotplugStatus | str:
        raw = self._vmi()
        if not raw:
            return NO_VM
        vm, vmi = self._cluster.find(RAW_VMS.plural, self._vm), msgspec.convert(raw, VirtualMachineInstance)
        pods = [msgspec.convert(pod, Pod) for pod in self._pods() if _belongs(pod, vmi)]
        watched = WatchedVmi(vmi, pods, msgspec.convert(vm, VirtualMachine) if vm else None)
        found = derive_vmi_statuses(watched, self._controller.beside())
        return next((status for status in found if status.interface == name), NOT_LISTED)

    async def _operations(self, expected: str) -> str:
        """Wait until the events of the bus name these operations; each id counts once."""

        def read() -> str:
            kinds: dict[str, str] = {}
            for event in sorted(self._events(), key=lambda one: one.operation.requested_at or ""):
                kinds.setdefault(event.operation.id, str(event.operation.kind))
            return ", ".join(kinds.values())

        with suppress(TimeoutError):
            await self._cluster.until(lambda: read() == expected)
        return read()

    def _events(self) -> list[Any]:
        published = [*self._bus.published, *self._controller.bus.published]
        return [
            event
            for event in published
            if event.vmi is not None and (event.vmi.name, event.operation.interface) == (self._vm, self._nic)
        ]

    def _vmi(self) -> Object:
        return self._cluster.find(RAW_VMIS.plural, self._vm)

    def _pods(self) -> list[Object]:
        return self._cluster.pods(self._vm)


async def create_common_objects(cluster: PlayedCluster) -> None:
    """Create the networks, and the preference that some VMs have."""
    for name in ("net1", "net2"):
        nad = {"metadata": {"name": name}, "spec": {"config": '{"cniVersion": "1.0.0", "type": "bridge"}'}}
        await cluster.kube.create(NADS, "default", {"apiVersion": "k8s.cni.cncf.io/v1", "kind": NADS.kind, **nad})
    preference = {
        "apiVersion": "instancetype.kubevirt.io/v1beta1",
        "kind": PREFERENCES.kind,
        "metadata": {"name": PREFERENCE, "namespace": "default"},
        "spec": {"devices": {"preferredInterfaceModel": MODEL}},
    }
    await cluster.kube.create(PREFERENCES, "default", preference)


async def set_up(cluster: PlayedCluster, controller: ObservingController, row: Situation) -> None:
    """Give the cluster the settings of a row, and wait until the api sees them."""
    gates = ["HotplugNICs", "LiveUpdateNADRef"] if row.gates else []
    spec = {
        "configuration": {"developerConfiguration": {"featureGates": gates, "useEmulation": True}},
        "workloadUpdateStrategy": {"workloadUpdateMethods": list(row.methods)},
    }
    kube = cluster.kube
    patched = await kube.merge_patch(INSTALLATIONS, "kubevirt", "kubevirt", {"spec": spec})
    wanted = read_capabilities([msgspec.convert(patched, KubeVirt)])
    async with asyncio.timeout(DEADLINE):
        while True:
            if controller.beside() == wanted:
                break
            await asyncio.sleep(0.01)
    cluster.player.play.installation = patched
    for node in cluster.player.play.nodes:
        name = f"networks-{node}"
        if not row.thick:
            with suppress(NotFound):
                await kube.delete(PODS, "kubevirt", name, grace=0)
            continue
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "kubevirt", "labels": {"app": "dynamic-networks-controller"}},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "networks", "image": PAUSE_IMAGE}],
                "volumes": [{"name": "run", "hostPath": {"path": "/run"}}],
            },
        }
        with suppress(AlreadyExists):
            await kube.create(RAW_PODS, "kubevirt", pod)
            status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
            await kube.merge_patch(RAW_PODS, "kubevirt", name, {"status": status}, subresource="status")


Lists = list[dict[str, Any]]


def _added(binding: str, name: str, networks: Lists, interfaces: Lists) -> None:
    networks.append({"name": name, "multus": {"networkName": "net1"}})
    interfaces.append({"name": name, binding: {}})


def _with_state(state: str, name: str, _networks: Lists, interfaces: Lists) -> None:
    interface = next(item for item in interfaces if item["name"] == name)
    interface.pop("state", None)
    interface.update({"state": state} if state else {})


def _with_network(name: str, networks: Lists, _interfaces: Lists) -> None:
    next(item for item in networks if item["name"] == name)["multus"]["networkName"] = "net2"


def _dropped(name: str, networks: Lists, interfaces: Lists) -> None:
    for items in (networks, interfaces):
        items[:] = [item for item in items if item["name"] != name]


def _belongs(pod: Object, vmi: VirtualMachineInstance) -> bool:
    return bool(pod["metadata"]["labels"].get(CREATED_BY_LABEL) == vmi.metadata.uid)


def _text_of(status: InterfaceHotplugStatus) -> str:
    words = [
        str(status.kind),
        str(status.stage),
        status.reason or "",
        "(link down)" if status.link_state == "down" else "",
    ]
    return " ".join(word for word in words if word)
