"""The controller beside a played KubeVirt."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from services.common.domain.kubevirt.capabilities import Capabilities, read_capabilities
from services.common.kube.client import Kube
from services.common.runtime.installations import Installations
from services.common.telemetry import Telemetry
from services.controller.role import PERIODS, Controller, Periods
from tests.support.bus.memory import MemoryBus
from tests.support.contexts import role_context


class ObservingController:
    """A controller that leads, and the KubeVirt object that it follows.

    :ivar kube: its client.
    :ivar bus: what it publishes.
    :ivar installations: the KubeVirt object.
    :ivar role: the controller.
    """

    def __init__(self, kube: Kube, bus: MemoryBus, telemetry: Telemetry, periods: Periods) -> None:
        self.kube, self.bus, self.installations = kube, bus, Installations(kube, structlog.get_logger())
        self.role = Controller(
            role_context("controller", kube, bus, telemetry),
            is_owner=lambda: False,
            is_enabled=lambda: True,
            beside=self.beside,
            periods=periods,
        )

    def beside(self) -> Capabilities | None:
        """Return what the KubeVirt can do."""
        return read_capabilities(self.installations.items())

    async def idle(self) -> None:
        """Wait until no key is queued or runs."""
        queues = (self.role.queue, self.role.projector.queue)
        while True:
            if not any(queue.depth or queue.in_flight for queue in queues):
                return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def observing_controller(
    kubeconfig: Path, telemetry: Telemetry, periods: Periods = PERIODS
) -> AsyncIterator[ObservingController]:
    """Run a controller while the block runs; its first lists are complete."""
    bus = MemoryBus(role="controller", telemetry=telemetry)
    async with await Kube.connect(
        kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="hotnic-controller"
    ) as kube:
        found = ObservingController(kube, bus, telemetry, periods)
        role = found.role
        watches = (found.installations, role.vms, role.vmis, role.pods)
        tasks = [asyncio.create_task(watch.run()) for watch in watches]
        for watch in watches:
            await watch.synced.wait()
        tasks.append(asyncio.create_task(role.lead()))
        yield found
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
