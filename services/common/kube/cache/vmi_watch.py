"""Watch of one VMI with its pods and its VM.

Next: :mod:`services.common.kube.cache.reflector`, which keeps each of them in sync.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from schemas.kubernetes.objects import CREATED_BY_LABEL, PODS, VMIS, VMS, ObjectMeta, Pod, Resource, VirtualMachine
from schemas.kubernetes.objects import VirtualMachineInstance as Vmi
from services.common.domain.operations import find_acting_pod
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.telemetry.logs import Log

T = TypeVar("T")

MAX_PODS = 16
"""Pods of a VMI after which no further page of them is read. They fit into one response, unless somebody has created
large ones with the VMI's label."""


class WatchedVmi(NamedTuple):
    """A VMI, its pods and its VM as last seen.

    :ivar vmi: ``None`` if it is gone, or if another VMI has its name.
    :ivar vm: ``None`` if there is none, or if it is not watched.
    """

    vmi: Vmi | None
    pods: list[Pod]
    vm: VirtualMachine | None

    @property
    def pod(self) -> Pod | None:
        """The VMI's acting launcher pod."""
        return find_acting_pod(self.vmi, self.pods) if self.vmi is not None else None


class VmiWatch:
    """The reflectors of one VMI; created by :func:`watch_vmi`.

    :ivar changed: set by every change. The caller clears it.
    :ivar listeners: the events that every change sets, :attr:`changed` among them.
    """

    def __init__(
        self, kube: Kube, meta: ObjectMeta, *, with_vm: bool, log: Log, on_state: Callable[[bool, str], None]
    ) -> None:
        self._meta = meta
        self.changed = asyncio.Event()
        self.listeners = {self.changed}

        def reflector(resource: Resource[T], *, fields: str | None = None, labels: str | None = None) -> Reflector[T]:
            return Reflector(
                kube,
                resource,
                namespace=meta.namespace,
                on_change=lambda _key, _found: self._on_change(),
                on_state=on_state,
                log=log,
                fields=fields,
                labels=labels,
            )

        by_name = f"metadata.name={meta.name}"
        self._vmis = reflector(VMIS, fields=by_name)
        self._pods = reflector(PODS, labels=f"{CREATED_BY_LABEL}={meta.uid}")
        self._vms = reflector(VMS, fields=by_name) if with_vm else None

    def _on_change(self) -> None:
        for event in self.listeners:
            event.set()

    @property
    def reflectors(self) -> list[Reflector[Any]]:
        """The reflectors of all watched objects."""
        return [self._vmis, self._pods, *([self._vms] if self._vms is not None else [])]

    async def wait_synced(self) -> None:
        """Wait until every reflector has its first list."""
        for reflector in self.reflectors:
            await reflector.synced.wait()

    def read(self) -> WatchedVmi:
        """Return the objects as last seen."""
        meta = self._meta
        found = self._vmis.get(meta.namespace, meta.name)
        # A VMI that was deleted and created again under its name is another one.
        vmi = found if found is not None and found.metadata.uid == meta.uid else None
        vm = self._vms.get(meta.namespace, meta.name) if self._vms is not None else None
        return WatchedVmi(vmi, list(self._pods.items()), vm)


async def read_pods(kube: Kube, vmi: ObjectMeta) -> list[Pod]:
    """Return the pods of a VMI, live; if they do not fit into one response, the first ``MAX_PODS``.

    :param vmi: metadata of the VMI.
    :raises KubeError: the API server does not answer.
    """
    return (await kube.list(PODS, vmi.namespace, labels=f"{CREATED_BY_LABEL}={vmi.uid}", most=MAX_PODS)).items


@asynccontextmanager
async def watch_vmi(
    kube: Kube,
    meta: ObjectMeta,
    *,
    with_vm: bool,
    log: Log,
    on_state: Callable[[bool, str], None] = lambda _ok, _why: None,
) -> AsyncIterator[VmiWatch]:
    """Watch a VMI and its pods while the context is open.

    :param meta: metadata of the VMI.
    :param with_vm: watch the VM of the same name, too.
    :param on_state: see :class:`services.common.kube.cache.reflector.Reflector`.
    """
    watched = VmiWatch(kube, meta, with_vm=with_vm, log=log, on_state=on_state)
    tasks = [asyncio.create_task(reflector.run()) for reflector in watched.reflectors]
    try:
        yield watched
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
