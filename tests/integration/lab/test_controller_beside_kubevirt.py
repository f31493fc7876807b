"""What the controller writes and publishes beside the played KubeVirt, whose steps are up to half a second apart."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from lab.kubevirt.pace import Pace
from lab.kubevirt.player import PlayOptions
from lab.node.resources import VMIS
from schemas.kubernetes.operations import Operation, operation_key, unplug_key
from schemas.stages import Stage
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.controller.role import Periods
from tests.support.bus.memory import MemoryBus
from tests.support.lab.kubevirt import DEADLINE, PlayedCluster, api_server, played_cluster, vm_without
from tests.support.lab.observing import observing_controller
from tests.support.lab.resting import VERSION, create_running_vms, measure_rest
from tests.support.telemetry.spans import recording_telemetry

ATTACHED = "domain, guest-agent, multus-status"
PLUG = [Stage.REQUESTED, Stage.POD_ANNOTATED, Stage.MULTUS_ATTACHED, Stage.GUEST_ATTACHED]
UNPLUG = [Stage.REQUESTED, Stage.GUEST_DETACHED]
PLUG_KEY, UNPLUG_KEY = operation_key("blue"), unplug_key("blue")


@pytest.fixture
def quiet() -> Iterator[None]:
    """Assert that nothing logs a warning."""
    with capture_logs() as logs:
        yield
    assert [line for line in logs if line["log_level"] not in ("debug", "info")] == []


def entries(cluster: PlayedCluster) -> dict[str, Operation]:
    """Return the VMI's annotations of hotnic."""
    return decode_entries(cluster.find("virtualmachineinstances", "va"))


def decode_entries(vmi: dict[str, Any]) -> dict[str, Operation]:
    annotations = vmi["metadata"].get("annotations", {})
    return {
        key: msgspec.json.decode(text, type=Operation)
        for key, text in annotations.items()
        if key.startswith("hotnic.io/")
    }


class Writes(list[dict[str, Operation]]):
    """Hotnic's annotations of the VMI after each write to them, as the API server reports every one."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def add(self, _key: tuple[str, str], vmi: dict[str, Any] | None) -> None:
        """Add the annotations of a VMI, if they have changed."""
        found = decode_entries(vmi) if vmi is not None else {}
        if found != (self[-1] if self else {}):
            self.append(found)
            self._changed.set()

    async def until(self, count: int) -> None:
        """Wait for this number of writes."""
        async with asyncio.timeout(DEADLINE):
            while len(self) < count:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def recorded_writes(cluster: PlayedCluster) -> AsyncIterator[Writes]:
    """Record hotnic's writes to the VMI while the block runs."""
    writes = Writes()
    reflector = Reflector(cluster.kube, VMIS, on_change=writes.add, log=structlog.get_logger())
    task = asyncio.create_task(reflector.run())
    await reflector.synced.wait()
    yield writes
    task.cancel()
    await asyncio.wait([task])


def published(bus: MemoryBus) -> dict[str, list[Stage]]:
    """Return the published stages of each operation, in the order of the first ones."""
    operations: dict[str, list[Stage]] = {}
    for event in bus.published:
        operations.setdefault(event.operation.id, []).append(event.stage)
    return operations


async def set_network(cluster: PlayedCluster, nad: str) -> None:
    """Change the NAD of ``blue`` in the VM's template."""

    def change(networks: list[dict[str, Any]], _interfaces: list[dict[str, Any]]) -> None:
        next(item for item in networks if item["name"] == "blue")["multus"]["networkName"] = nad

    await cluster.edit("va", change)


@pytest.mark.usefixtures("quiet")
async def test_every_change_by_kubectl_is_one_operation_and_one_write(tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry("controller")
    pace = Pace.spread(0.5, random.Random())
    async with (
        played_cluster(tmp_path, PlayOptions("1.9"), pace) as cluster,
        observing_controller(cluster.kubeconfig, telemetry) as controller,
        recorded_writes(cluster) as writes,
    ):
        await cluster.start(vm_without("v1.9.0-a-plugged", "blue"))
        for _ in range(2):
            await cluster.plug("va", "blue", "net1")
            await cluster.has_tokens("va", "blue", ATTACHED)
            await cluster.until(lambda: len(entries(cluster)) == 1)
            await cluster.set_state("va", "blue")
            await cluster.until(lambda: entries(cluster) == {})
        await writes.until(6)
    assert list(published(controller.bus).values()) == [PLUG, UNPLUG] * 2
    # One for each operation, and one at the end of an unplug for the entries of both (ADR 32).
    assert [set(found) for found in writes] == [{PLUG_KEY}, {PLUG_KEY, UNPLUG_KEY}, set()] * 2


@pytest.mark.usefixtures("quiet")
async def test_at_rest_nothing_is_written(tmp_path: Path) -> None:
    telemetry, spans = recording_telemetry("controller")
    with api_server(tmp_path, VERSION) as (kubeconfig, account):
        async with await Kube.connect(kubeconfig=str(account), telemetry=telemetry, user_agent="test") as kube:
            await create_running_vms(kube, 20)
        spans.clear()
        rest = await measure_rest(kubeconfig, 20, 3.0, telemetry, Periods(resync=0.5, rest=1.0, reload=0.5, watch=1.0))
    assert (rest.writes, rest.messages) == (0, 0)
    # Nor anything that the API server refused.
    requests = {span.name.split()[1] for span in spans.get_finished_spans() if span.name.startswith("kube ")}
    assert requests <= {"list", "get"}


@pytest.mark.usefixtures("quiet")
async def test_every_change_of_the_network_is_one_operation_and_one_write(tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry("controller")
    async with (
        played_cluster(tmp_path, PlayOptions("1.9")) as cluster,
        observing_controller(cluster.kubeconfig, telemetry) as controller,
        recorded_writes(cluster) as writes,
    ):
        await cluster.start(vm_without("v1.9.0-a-plugged", "blue"))
        await cluster.plug("va", "blue", "net1")
        await cluster.has_tokens("va", "blue", ATTACHED)
        # The second edit comes before the migration that the first one waits for.
        for number, nad in enumerate(("net2", "net3"), start=2):
            await set_network(cluster, nad)
            await writes.until(number)
        await cluster.migrate("va")
        operation = writes[-1][PLUG_KEY].id
        async with asyncio.timeout(DEADLINE):
            await controller.bus.broker.until(lambda: published(controller.bus)[operation] == PLUG)
        # An edit that is taken back.
        await set_network(cluster, "net2")
        await writes.until(4)
        await set_network(cluster, "net3")
        await writes.until(5)
    networks = [found[PLUG_KEY].network if found else None for found in writes]
    assert networks == ["default/net1", "default/net2", "default/net3", "default/net2", None]
    assert list(published(controller.bus).values()) == [PLUG, [Stage.REQUESTED], PLUG, [Stage.REQUESTED]]
