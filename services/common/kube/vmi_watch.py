"""One VMI with its pods and its VM, kept in step for as long as somebody looks.

Next: :mod:`services.common.kube.reflector`, by which each of them is.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from schemas.kube import CREATED_BY_LABEL, PODS, VMIS, VMS, ObjectMeta, Pod, Resource, VirtualMachine
from schemas.kube import VirtualMachineInstance as Vmi
from services.common.domain.operations import acting_pod
from services.common.kube.client import Kube
from services.common.kube.reflector import Reflector
from services.common.logs import Log

T = TypeVar("T")


class WatchedVmi(NamedTuple):
    """What is there. :ivar vmi: ``None`` when it is gone, or another one has its name."""

    vmi: Vmi | None
    pods: list[Pod]
    vm: VirtualMachine | None

    @property
    def pod(self) -> Pod | None:
        """The pod that acts for the VMI."""
        return acting_pod(self.vmi, self.pods) if self.vmi is not None else None


class VmiWatch:
    """Made by :func:`watch_vmi`. :ivar changed: set with every change; the caller clears it."""

    def __init__(
        self, kube: Kube, meta: ObjectMeta, *, with_vm: bool, log: Log, on_state: Callable[[bool, str], None]
    ) -> None:
        self._meta = meta
        self.changed = asyncio.Event()

        def reflector(resource: Resource[T], *, fields: str | None = None, labels: str | None = None) -> Reflector[T]:
            return Reflector(
                kube,
                resource,
                namespace=meta.namespace,
                on_change=lambda _key, _found: self.changed.set(),
                on_state=on_state,
                log=log,
                fields=fields,
                labels=labels,
            )

        by_name = f"metadata.name={meta.name}"
        self._vmis = reflector(VMIS, fields=by_name)
        self._pods = reflector(PODS, labels=f"{CREATED_BY_LABEL}={meta.uid}")
        self._vms = reflector(VMS, fields=by_name) if with_vm else None

    @property
    def reflectors(self) -> list[Reflector[Any]]:
        """What keeps it in step."""
        return [self._vmis, self._pods, *([self._vms] if self._vms is not None else [])]

    async def synced(self) -> None:
        """Wait for the first lists."""
        for reflector in self.reflectors:
            await reflector.synced.wait()

    def look(self) -> WatchedVmi:
        """What is there now."""
        meta = self._meta
        found = self._vmis.get(meta.namespace, meta.name)
        vmi = found if found is not None and found.metadata.uid == meta.uid else None
        vm = self._vms.get(meta.namespace, meta.name) if self._vms is not None else None
        return WatchedVmi(vmi, list(self._pods.items()), vm)


@asynccontextmanager
async def watch_vmi(
    kube: Kube,
    meta: ObjectMeta,
    *,
    with_vm: bool,
    log: Log,
    on_state: Callable[[bool, str], None] = lambda _ok, _why: None,
) -> AsyncIterator[VmiWatch]:
    """Watch a VMI, its pods and (``with_vm``) the VM of its name while the context is open.

    :param meta: the VMI's. :param on_state: as of a reflector.
    """
    watched = VmiWatch(kube, meta, with_vm=with_vm, log=log, on_state=on_state)
    tasks = [asyncio.create_task(reflector.run()) for reflector in watched.reflectors]
    try:
        yield watched
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
