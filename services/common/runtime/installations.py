"""Watch of the cluster's KubeVirt objects; a cluster without KubeVirt's CRD has none until the CRD is installed.

:mod:`services.common.domain.kubevirt.owner` decides what they mean.
Next: :mod:`services.common.runtime.owner`, which uses them to decide whether hotnic owns the interfaces.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated

import msgspec

from schemas.kubernetes.kubevirt import CRDS, KUBEVIRTS, CustomResourceDefinition, KubeVirt
from services.common.domain.kubevirt.owner import (
    KUBEVIRT_NAMESPACES,
    GateSetting,
    OwnerSetting,
    find_installations,
)
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.kube.denials import Denials, describe_error
from services.common.kube.errors import Forbidden, KubeError, NotFound
from services.common.runtime.settings import CommonSettings
from services.common.telemetry.logs import Log

CRD = "kubevirts.kubevirt.io"
POLL_INTERVAL = 60.0
"""Seconds between two checks for a CRD that does not exist, in case that its watch is forbidden or broken."""
RETRY_INTERVAL = 1.0
"""Seconds between two attempts to list the objects of a CRD that exists."""

KubeVirtNamespaces = Annotated[
    tuple[str, ...],
    msgspec.Meta(
        description="comma-separated namespaces where KubeVirt may be installed; its objects in others do not count",
        min_length=1,
    ),
]
"""The setting ``HOTNIC_KUBEVIRT_NAMESPACES``."""


class OwnerSettings(CommonSettings, frozen=True, kw_only=True):
    """Settings of the roles that change VMs."""

    vm_owner: Annotated[
        OwnerSetting,
        msgspec.Meta(description="who hot-plugs interfaces of VMs; auto: kubevirt if it is installed"),
    ] = "auto"
    kubevirt_namespaces: KubeVirtNamespaces = KUBEVIRT_NAMESPACES
    hotplug_gate: Annotated[
        GateSetting,
        msgspec.Meta(description="feature gate HotplugNICs; auto: as in the KubeVirt object, on without one"),
    ] = "auto"


class Installations:
    """The cluster's KubeVirt objects.

    :param on_change: called after each change.
    :param denials: told when the API server forbids to read them.
    :param namespaces: where KubeVirt may be installed.
    :ivar synced: set after the first list, or when the CRD was found missing.
    """

    def __init__(
        self,
        kube: Kube,
        log: Log,
        on_change: Callable[[], None] = lambda: None,
        denials: Denials | None = None,
        namespaces: Sequence[str] = KUBEVIRT_NAMESPACES,
    ) -> None:
        self._kube = kube
        self._namespaces = namespaces
        self._denials = denials or Denials()
        self._log = log
        # Those of other namespaces, which tenants may create at will, are not even read.
        self._reflectors: list[Reflector[KubeVirt]] = [
            Reflector(
                kube,
                KUBEVIRTS,
                namespace=namespace,
                on_change=lambda _key, _found: on_change(),
                log=log,
                denials=denials,
            )
            for namespace in namespaces
        ]
        self._crd_changed = asyncio.Event()
        self._crds: Reflector[CustomResourceDefinition] = Reflector(
            kube,
            CRDS,
            # RBAC restricts list and watch to a name only if the request selects it.
            fields=f"metadata.name={CRD}",
            on_change=lambda _key, _found: self._crd_changed.set(),
            log=log,
            denials=denials,
        )
        self.synced = asyncio.Event()

    def items(self) -> list[KubeVirt]:
        """Return the objects that count, as last seen (:func:`find_installations`)."""
        return find_installations((one for objects in self._reflectors for one in objects.items()), self._namespaces)

    async def run(self) -> None:
        """Watch the objects until cancelled."""
        served = await self._is_served()
        if not served:
            self.synced.set()
            async with asyncio.TaskGroup() as group:
                # Without the watch, hotnic would act as the owner beside a new KubeVirt until the next check.
                watching = group.create_task(self._crds.run())
                while not served:
                    await self._wait_for_crd()
                    served = await self._is_served()
                watching.cancel()
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run())
            for reflector in self._reflectors:
                await reflector.synced.wait()
            self.synced.set()

    async def _is_served(self) -> bool:
        """Return whether the API server knows the type, without logging that it does not: many clusters have none."""
        while True:
            try:
                await self._kube.list(KUBEVIRTS, self._namespaces[0])
            except NotFound:
                self._denials.set(self, "")
                return False
            except KubeError as error:
                why = describe_error(error)
                if isinstance(error, Forbidden):
                    self._denials.set(self, why)
                self._log.warning("cannot list KubeVirt objects", error=why, again_in=RETRY_INTERVAL)
                await asyncio.sleep(RETRY_INTERVAL)
            else:
                self._denials.set(self, "")
                return True

    async def _wait_for_crd(self) -> None:
        """Wait until the CRD appears; if it is there, until the API server may serve its objects."""
        wait = RETRY_INTERVAL if self._crds.keys() else POLL_INTERVAL
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._crd_changed.wait()
        self._crd_changed.clear()
