"""`addinterface --wait` and `removeinterface --wait` beside the played KubeVirt, whose steps are up to 0.5 s apart."""

import asyncio
import random
from functools import partial
from pathlib import Path

import pytest

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
from services.common.domain.kubevirt.capabilities import HOTPLUG_GATE
from tests.support.bus.memory import MemoryBus
from tests.support.lab.kubevirt import played_cluster, vm_without
from tests.support.lab.observing import ObservingController, observing_controller
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

    def __init__(self, controller: ObservingController, bus: MemoryBus) -> None:
        self._kube = controller.kube
        self._bus = bus
        self._beside = controller.beside

    async def change(self, vm: str, kind: OperationKind) -> tuple[OperationResult | None, str, list[Stage]]:
        """Send a request and follow its operation; return how it ended, with which message, and its stages."""
        options: AddInterfaceOptions | RemoveInterfaceOptions = RemoveInterfaceOptions("blue")
        if kind is OperationKind.PLUG:
            options = AddInterfaceOptions(network_attachment_definition_name="net1", name="blue")
        cluster = ClusterSettings(False, "masquerade", self._beside())
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
    options = PlayOptions(version, gates=[HOTPLUG_GATE])
    async with (
        played_cluster(tmp_path, options, Pace.spread(0.5, random.Random())) as cluster,
        observing_controller(cluster.kubeconfig, telemetry) as controller,
    ):
        kube = controller.kube
        nad = {"metadata": {"name": "net1"}, "spec": {"config": '{"cniVersion": "1.0.0", "type": "bridge"}'}}
        await kube.create(NADS, "default", {"apiVersion": "k8s.cni.cncf.io/v1", "kind": NADS.kind, **nad})
        user = User(controller, MemoryBus(role="api", telemetry=telemetry))

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
