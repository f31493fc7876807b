"""`addinterface --wait` and `removeinterface --wait` beside the played KubeVirt, whose steps are up to 0.5 s apart."""

import asyncio
import random
from functools import partial
from pathlib import Path

import pytest
import structlog

from lab.kubevirt.pace import Pace
from lab.kubevirt.player import PlayOptions
from schemas.kubernetes.objects import NADS, VMIS
from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.stages import OperationKind, Stage, stage_path
from services.api.apply import apply_request
from services.api.front_proxy import UserIdentity
from services.api.observe import ClusterSettings, observe
from services.api.plan import RequestTarget
from services.cli.operations.follow import follow_operation
from services.cli.operations.progress import OperationProgress, OperationResult
from services.common.domain.kubevirt.capabilities import HOTPLUG_GATE, read_capabilities
from services.common.kube.client import Kube
from services.common.runtime.installations import Installations
from services.controller.role import Controller
from tests.support.bus.memory import MemoryBus
from tests.support.contexts import role_context
from tests.support.lab.kubevirt import played_cluster, vm_without
from tests.support.sampled import LONG, sample
from tests.support.telemetry.spans import recording_telemetry

VERSIONS = ("1.0", "1.1", "1.3", "1.5", "1.6", "1.8", "1.9")
VMS_AT_ONCE, PAIRS = (10, 10) if LONG else (2, 1)
"""Each version plugs and unplugs so many times: 200 operations in the long profile."""
TIMEOUT = 60.0
"""Seconds; an operation takes 1 to 3 s alone, because the steps of KubeVirt are delayed."""
CALLER = UserIdentity("admin", ("system:masters",), {})


class User:
    """A user of the api who waits for each operation."""

    def __init__(self, kube: Kube, bus: MemoryBus, installations: Installations) -> None:
        self._kube = kube
        self._bus = bus
        self._installations = installations

    async def change(self, vm: str, kind: OperationKind) -> tuple[OperationResult | None, str, list[Stage]]:
        """Send a request and follow its operation; return how it ended, with which message, and its stages."""
        options: AddInterfaceOptions | RemoveInterfaceOptions = RemoveInterfaceOptions("blue")
        if kind is OperationKind.PLUG:
            options = AddInterfaceOptions(network_attachment_definition_name="net1", name="blue")
        cluster = ClusterSettings(False, "masquerade", read_capabilities(self._installations.items()))
        request = partial(observe, self._kube, cluster, RequestTarget.VM, "default", vm, options, CALLER)
        answer = await apply_request(request, self._kube, self._bus)
        progress = OperationProgress("blue", answer.operation.id, kind, persist=True)
        stages: list[Stage] = []
        await follow_operation(
            self._kube,
            await self._kube.get(VMIS, "default", vm),
            progress,
            with_vm=True,
            timeout=TIMEOUT,
            on_stage=stages.append,
            on_watch_error=lambda _text: None,
        )
        outcome = progress.outcome
        return (outcome.result, outcome.message, stages) if outcome is not None else (None, "", stages)


@pytest.mark.parametrize("version", sample("versions of KubeVirt", VERSIONS, 2))
async def test_every_request_ends_right(version: str, tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry("controller")
    async with (
        played_cluster(
            tmp_path, PlayOptions(version, gates=[HOTPLUG_GATE]), Pace.spread(0.5, random.Random())
        ) as cluster,
        await Kube.connect(kubeconfig=str(cluster.kubeconfig), telemetry=telemetry, user_agent="hotnic") as kube,
    ):
        installations = Installations(kube, structlog.get_logger())
        role = Controller(
            role_context("controller", kube, MemoryBus(role="controller", telemetry=telemetry), telemetry),
            is_owner=lambda: False,
            is_enabled=lambda: True,
            beside=lambda: read_capabilities(installations.items()),
        )
        watches = (installations, role.vms, role.vmis, role.pods)
        tasks = [asyncio.create_task(watch.run()) for watch in watches]
        for watch in watches:
            await watch.synced.wait()
        tasks.append(asyncio.create_task(role.lead()))
        nad = {"metadata": {"name": "net1"}, "spec": {"config": '{"cniVersion": "1.0.0", "type": "bridge"}'}}
        await kube.create(NADS, "default", {"apiVersion": "k8s.cni.cncf.io/v1", "kind": NADS.kind, **nad})
        user = User(kube, MemoryBus(role="api", telemetry=telemetry), installations)

        async def plug_and_unplug(number: int) -> None:
            vm = vm_without("v1.9.0-a-plugged", "blue")
            vm["metadata"]["name"] = name = f"va{number}"
            # KubeVirt 1.0 and 1.1 never take the last secondary interface out.
            spec = vm["spec"]["template"]["spec"]
            spec["networks"].append({"name": "other", "multus": {"networkName": "net1"}})
            spec["domain"]["devices"]["interfaces"].append({"name": "other", "bridge": {}})
            await cluster.start(vm)
            for _ in range(PAIRS):
                result, message, stages = await user.change(name, OperationKind.PLUG)
                assert (result, message) == (OperationResult.ATTACHED, "")
                assert stages == list(stage_path(OperationKind.PLUG))
                result, message, stages = await user.change(name, OperationKind.UNPLUG)
                assert (result, message) == (OperationResult.DETACHED, "")
                assert stages == list(stage_path(OperationKind.UNPLUG))

        async with asyncio.TaskGroup() as group:
            for number in range(VMS_AT_ONCE):
                group.create_task(plug_and_unplug(number))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
