"""What the controller writes and publishes beside the played KubeVirt, whose steps are up to half a second apart."""

import random
from pathlib import Path

from structlog.testing import capture_logs

from lab.kubevirt.pace import Pace
from lab.kubevirt.player import PlayOptions
from schemas.stages import Stage
from tests.support.lab.kubevirt import PlayedCluster, played_cluster, vm_without
from tests.support.lab.observing import observing_controller
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
    pace = Pace.spread(0.5, random.Random())
    with capture_logs() as logs:
        async with (
            played_cluster(tmp_path, PlayOptions("1.9"), pace) as cluster,
            observing_controller(cluster.kubeconfig, telemetry) as controller,
        ):
            await cluster.start(vm_without("v1.9.0-a-plugged", "blue"))
            for _ in range(2):
                await cluster.plug("va", "blue", "net1")
                await cluster.has_tokens("va", "blue", ATTACHED)
                await cluster.until(lambda: len(entries(cluster)) == 1)
                await cluster.set_state("va", "blue")
                await cluster.until(lambda: entries(cluster) == [])
    operations: dict[str, list[Stage]] = {}
    for event in controller.bus.published:
        operations.setdefault(event.operation.id, []).append(event.stage)
    assert list(operations.values()) == [PLUG, UNPLUG] * 2
    writes = [span.name for span in spans.get_finished_spans() if span.name.startswith(("kube patch", "kube create"))]
    # One for each operation, and one at the end of an unplug for the entries of both.
    assert writes == ["kube patch virtualmachineinstances"] * 6
    assert [line for line in logs if line["log_level"] not in ("debug", "info")] == []
