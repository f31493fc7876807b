"""The KubeVirt objects of the cluster, followed live; a cluster without KubeVirt's CRD has none.

What they mean is decided in :mod:`services.common.domain.kubevirt`.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated

import msgspec

from schemas.kubevirt import KUBEVIRTS, KubeVirt
from services.common.domain.kubevirt import GateSetting, OwnerSetting
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError, NotFound
from services.common.kube.reflector import Reflector
from services.common.logs import Log
from services.common.settings import Common

LOOK_AGAIN = 60.0
"""Seconds between two looks for a CRD that is not there."""
RETRY = 1.0


class OwnerSettings(Common, frozen=True, kw_only=True):
    """What roles that change VMs can be told about the cluster they are in."""

    vm_owner: Annotated[
        OwnerSetting,
        msgspec.Meta(description="who drives the NICs of VMs; auto: kubevirt where a KubeVirt object exists"),
    ] = "auto"
    hotplug_gate: Annotated[
        GateSetting,
        msgspec.Meta(description="feature gate HotplugNICs; auto: as the KubeVirt object says, on without one"),
    ] = "auto"


class Installations:
    """The cluster's KubeVirt objects.

    :param changed: called after each change, with no argument.
    :ivar known: set once it is known whether there are any.
    """

    def __init__(self, kube: Kube, log: Log, changed: Callable[[], None] = lambda: None) -> None:
        self._kube = kube
        self._log = log
        self._reflector: Reflector[KubeVirt] = Reflector(
            kube, KUBEVIRTS, on_change=lambda _key, _found: changed(), log=log
        )
        self.known = asyncio.Event()

    def items(self) -> list[KubeVirt]:
        """The objects as last seen."""
        return list(self._reflector.items())

    async def run(self) -> None:
        """Follow them until cancelled."""
        await self._served()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reflector.run())
            await self._reflector.synced.wait()
            self.known.set()

    async def _served(self) -> None:
        """Wait for the CRD, quietly: a cluster may well do without it."""
        while True:
            try:
                await self._kube.list_raw(KUBEVIRTS)
            except NotFound:
                self.known.set()
                await asyncio.sleep(LOOK_AGAIN)
            except KubeError as error:
                self._log.warning("KubeVirt objects cannot be read", error=str(error), again_in=RETRY)
                await asyncio.sleep(RETRY)
            else:
                return
