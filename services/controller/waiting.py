"""The VMs that have waited for long beside KubeVirt, and what stands around each.

An operation that goes on is never asked about: its reasons follow each other within seconds. One that waits costs some
reads every :data:`INTERVAL`, whatever the size of the cluster.
Next: :mod:`services.common.kube.surroundings`, which reads.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ, Source, Surroundings
from services.common.domain.kubevirt.surroundings.refine import find_sources
from services.common.kube.client import Kube
from services.common.kube.surroundings import read_surroundings
from services.common.telemetry.stores import STORES

Key = tuple[str, str]

PATIENCE = 5.0
"""Seconds that a VM waits for the same until what stands around it is read."""
INTERVAL = 15.0
"""Seconds between two reads."""


class Wait(msgspec.Struct):
    """One VM that waits.

    :ivar sources: what its reasons ask for.
    :ivar due: loop time of the next read.
    :ivar around: as last read.
    """

    sources: frozenset[Source]
    due: float
    timer: asyncio.TimerHandle
    around: Surroundings = NOTHING_READ


class Waiting:
    """The VMs that wait.

    :param requeue: queues a VM, so that its surroundings are read when they are due.
    :param patience: seconds that a VM waits for the same until they are read.
    """

    def __init__(self, kube: Kube, requeue: Callable[[Key], None], patience: float = PATIENCE) -> None:
        self._kube = kube
        self._requeue = requeue
        self._patience = patience
        self._waits: dict[Key, Wait] = {}
        STORES.watch("waiting-vms", self, lambda waiting: len(waiting._waits))

    async def read(
        self,
        key: Key,
        nic_statuses: Sequence[InterfaceHotplugStatus],
        vmi: VirtualMachineInstance,
        launchers: Sequence[Pod],
        beside: Capabilities | None,
    ) -> Surroundings:
        """Return what stands around a VM: nothing before it has waited for a while; never raise.

        :param nic_statuses: derived without surroundings.
        """
        sources = find_sources(nic_statuses) if beside is not None else frozenset()
        wait = self._waits.get(key)
        if wait is not None and wait.sources != sources:
            self.forget(key)
            wait = None
        if not sources:
            return NOTHING_READ
        now = asyncio.get_running_loop().time()
        if wait is None:
            self._waits[key] = Wait(sources, now + self._patience, self._start_timer(key, self._patience))
            return NOTHING_READ
        if now >= wait.due:
            wait.around = await read_surroundings(self._kube, nic_statuses, vmi, launchers, beside)
            wait.due = now + INTERVAL
            wait.timer.cancel()
            wait.timer = self._start_timer(key, INTERVAL)
        return wait.around

    def forget(self, key: Key) -> None:
        """Forget a VM that does not wait any more."""
        wait = self._waits.pop(key, None)
        if wait is not None:
            wait.timer.cancel()

    def close(self) -> None:
        """Forget all VMs."""
        for key in list(self._waits):
            self.forget(key)

    def _start_timer(self, key: Key, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._requeue, key)
