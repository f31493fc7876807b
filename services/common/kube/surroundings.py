"""Reads what stands around a VM beside KubeVirt: only what its reasons ask for, live, and never for a VM at rest.

A part that cannot be read is left out; the reason is then the one that the objects of the VM give.
:mod:`services.common.domain.kubevirt.surroundings.refine` says what is asked for, and what it means.
"""

import asyncio
import datetime
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.kubevirt import MIGRATIONS, VirtualMachineInstanceMigration
from schemas.kubernetes.objects import EVENTS, LEASES, PODS, Lease, Pod, VirtualMachineInstance
from schemas.kubernetes.pod_volumes import PODS_WITH_VOLUMES, PodWithVolumes
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.owner import COMPONENT_LABEL, CONTROLLER, HANDLER
from services.common.domain.kubevirt.surroundings.judge import ATTACHER_SELECTORS, TARGET_LABEL, parse_event
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ, ReportedEvent, Source, Surroundings
from services.common.domain.kubevirt.surroundings.refine import find_sources
from services.common.domain.operations import find_acting_pod
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError

T = TypeVar("T")

VMI_LABEL = "kubevirt.io/vmi-name"
"""Label of a migration: the name of its VMI."""
DEADLINE = 2.0
"""Seconds for all reads of one VM: a status does not wait longer for a better reason."""


async def derive_with_surroundings(
    kube: Kube,
    derive: Callable[[Surroundings], list[InterfaceHotplugStatus]],
    vmi: VirtualMachineInstance,
    launchers: Sequence[Pod],
    beside: Capabilities | None,
) -> list[InterfaceHotplugStatus]:
    """Return the statuses of a VM, derived once more if they ask for what stands around it.

    :param derive: returns the statuses.
    :param launchers: as for :func:`read_surroundings`.
    :param beside: as for :func:`read_surroundings`.
    """
    found = derive(NOTHING_READ)
    around = await read_surroundings(kube, found, vmi, launchers, beside)
    return found if around is NOTHING_READ else derive(around)


async def read_surroundings(
    kube: Kube,
    nic_statuses: Iterable[InterfaceHotplugStatus],
    vmi: VirtualMachineInstance,
    launchers: Sequence[Pod],
    beside: Capabilities | None,
) -> Surroundings:
    """Return what stands around a VM, as far as its statuses ask for it; never raise.

    :param nic_statuses: derived without surroundings.
    :param launchers: the launcher pods of the VMI.
    :param beside: what the KubeVirt that owns the VMs can do; where hotnic owns them, nothing is read.
    """
    sources = find_sources(nic_statuses) if beside is not None else frozenset()
    if not sources or beside is None:
        return NOTHING_READ
    node, kubevirt = vmi.status.node_name, beside.namespace
    wants_attachers = bool(node) and Source.ATTACHERS in sources
    wants_controller = bool(kubevirt) and Source.VIRT_CONTROLLER in sources
    wants_handler = bool(kubevirt and node) and Source.VIRT_HANDLER in sources
    migrations, events, attachers, controllers, lease, handlers = await asyncio.gather(
        _attempt(_read_migrations(kube, vmi) if Source.MIGRATIONS in sources else None),
        _attempt(_read_events(kube, vmi, launchers, sources)),
        _attempt(read_attachers(kube, node) if wants_attachers else None),
        _attempt(_read_component(kube, kubevirt, CONTROLLER) if wants_controller else None),
        _attempt(_read_lease(kube, kubevirt) if wants_controller else None),
        _attempt(_read_component(kube, kubevirt, HANDLER, f"spec.nodeName={node}") if wants_handler else None),
    )
    return Surroundings(
        migrations=migrations or (),
        launchers=tuple(launchers),
        events=events or (),
        attachers=attachers,
        controllers=controllers,
        controller_lease=lease,
        handlers=handlers,
        read_at=datetime.datetime.now(datetime.UTC).isoformat(),
    )


async def read_attachers(kube: Kube, node: str) -> tuple[PodWithVolumes, ...]:
    """Return the pods on a node that belong to a networks controller or a Multus daemon.

    :raises KubeError: the API server does not answer, or refuses.
    """
    on_node = f"spec.nodeName={node}"
    lists = await asyncio.gather(
        *(kube.list(PODS_WITH_VOLUMES, labels=labels, fields=on_node) for labels in ATTACHER_SELECTORS)
    )
    return tuple(pod for found in lists for pod in found.items)


async def _attempt(work: Awaitable[T] | None) -> T | None:
    """Return what can be read in time; ``None`` for the rest, and for what is not wanted."""
    if work is None:
        return None
    try:
        async with asyncio.timeout(DEADLINE):
            return await work
    except (KubeError, TimeoutError):
        return None


async def _read_migrations(kube: Kube, vmi: VirtualMachineInstance) -> tuple[VirtualMachineInstanceMigration, ...]:
    name = vmi.metadata.name
    found = await kube.list(MIGRATIONS, vmi.metadata.namespace, labels=f"{VMI_LABEL}={name}")
    return tuple(one for one in found.items if one.spec.vmi_name == name)


async def _read_events(
    kube: Kube, vmi: VirtualMachineInstance, launchers: Sequence[Pod], sources: frozenset[Source]
) -> tuple[ReportedEvent, ...]:
    acting = find_acting_pod(vmi, launchers)
    acting_uid = acting.metadata.uid if acting is not None else ""
    uids: list[str] = []
    if Source.EVENTS in sources:
        uids += [vmi.metadata.uid, *([acting_uid] if acting_uid else [])]
    if Source.MIGRATIONS in sources:
        targets = (pod.metadata for pod in launchers if TARGET_LABEL in pod.metadata.labels and _may_start(pod))
        uids += [meta.uid for meta in targets if meta.uid != acting_uid]
    lists = await asyncio.gather(
        *(kube.list(EVENTS, vmi.metadata.namespace, fields=f"involvedObject.uid={uid},type=Warning") for uid in uids)
    )
    return tuple(parse_event(event) for found in lists for event in found.items)


def _may_start(pod: Pod) -> bool:
    return pod.status.phase in ("", "Pending", "Running")


async def _read_lease(kube: Kube, namespace: str) -> Lease:
    return await kube.get(LEASES, namespace, CONTROLLER)


async def _read_component(kube: Kube, namespace: str, component: str, fields: str | None = None) -> tuple[Pod, ...]:
    return tuple((await kube.list(PODS, namespace, labels=f"{COMPONENT_LABEL}={component}", fields=fields)).items)
