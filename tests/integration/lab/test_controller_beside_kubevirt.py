"""What the controller writes and publishes beside the played KubeVirt, whose steps are up to half a second apart."""

import asyncio
import random
from pathlib import Path

import structlog
from structlog.testing import capture_logs

from lab.kubevirt.pace import Pace
from lab.kubevirt.player import PlayOptions
from schemas.stages import Stage
from services.common.domain.kubevirt.capabilities import read_capabilities
from services.common.kube.client import Kube
from services.common.runtime.installations import Installations
from services.controller.role import Controller
from tests.support.bus.memory import MemoryBus
from tests.support.contexts import role_context
from tests.support.lab.kubevirt import PlayedCluster, played_cluster, vm_without
from tests.support.telemetry.spans import recording_telemetry

ATTACHED = "domain, guest-agent, multus-status"
PLUG = [Stage.REQUESTED, Stage.POD_ANNOTATED, Stage.GUEST_ATTACHED]
UNPLUG = [Stage.REQUESTED, Stage.GUEST_DETACHED]


def entries(cluster: PlayedCluster) -> list[str]:
    """Return the keys of the VMI's annotations of hotnic."""
    annotations = cluster.find("virtualmachineinstances", "va")["metadata"].get("annotations", {})
    return [key for key in annotations if key.startswith("hotnic.io/")]


async def test_every_change_by_kubectl_is_one_operation_and_one_write(tmp_path: Path) -> None:
    telemetry, spans = recording_telemetry("controller")
    bus = MemoryBus(role="controller", telemetry=telemetry)
    pace = Pace.spread(0.5, random.Random())
    with capture_logs() as logs:
        async with (
            played_cluster(tmp_path, PlayOptions("1.9"), pace) as cluster,
            await Kube.connect(
                kubeconfig=str(cluster.kubeconfig), telemetry=telemetry, user_agent="hotnic-controller"
            ) as kube,
        ):
            installations = Installations(kube, structlog.get_logger())
            role = Controller(
                role_context("controller", kube, bus, telemetry),
                is_owner=lambda: False,
                is_enabled=lambda: True,
                beside=lambda: read_capabilities(installations.items()),
            )
            watches = (installations, role.vms, role.vmis, role.pods)
            tasks = [asyncio.create_task(watch.run()) for watch in watches]
            for watch in watches:
                await watch.synced.wait()
            tasks.append(asyncio.create_task(role.lead()))
            await cluster.start(vm_without("v1.9.0-a-plugged", "blue"))
            for _ in range(2):
                await cluster.plug("va", "blue", "net1")
                await cluster.has_tokens("va", "blue", ATTACHED)
                await cluster.until(lambda: len(entries(cluster)) == 1)
                await cluster.set_state("va", "blue")
                await cluster.until(lambda: entries(cluster) == [])
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    operations: dict[str, list[Stage]] = {}
    for event in bus.published:
        operations.setdefault(event.operation.id, []).append(event.stage)
    assert list(operations.values()) == [PLUG, UNPLUG] * 2
    writes = [span.name for span in spans.get_finished_spans() if span.name.startswith(("kube patch", "kube create"))]
    # One for each operation, and one at the end of an unplug for the entries of both.
    assert writes == ["kube patch virtualmachineinstances"] * 6
    assert [line for line in logs if line["log_level"] not in ("debug", "info")] == []
