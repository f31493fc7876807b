"""Takes the snapshot that the invariants are checked on: VMs, VMIs, pods and the kept ladders by API, then the node.

No judgement here (:mod:`services.common.domain.invariants`). Next: :mod:`services.cli.node`, the node's own parts.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from schemas.hotplug_status import StoredEntry
from schemas.kube import CREATED_BY_LABEL, PODS, VMIS, VMS, Pod, VirtualMachine, VirtualMachineInstance
from services.cli import hotplug_status
from services.cli.cluster import find_vmi, pod_selector
from services.cli.node import look
from services.cli.node_files import Paths
from services.common.domain.invariants.world import NotVisible, Snapshot, VmSnapshot
from services.common.domain.operations import belongs_to, vmi_name_of
from services.common.kube.client import Kube
from services.common.kube.errors import Forbidden, KubeError, NotFound, Unavailable

AT_ONCE = 8
"""Ladders that are asked for at once."""


async def one(kube: Kube, namespace: str, name: str, paths: Paths, node: str | None) -> Snapshot:
    """One VM and its node.

    :raises Refused: it does not run. :raises KubeError: the API server does not answer.
    """
    vmi = await find_vmi(kube, namespace, name)
    vm, pods = await asyncio.gather(_vm(kube, namespace, name), kube.list(PODS, namespace, labels=pod_selector(vmi)))
    found = await with_ladders(kube, [VmSnapshot(namespace, name, vm, vmi, tuple(pods.items))])
    return await look(found, paths, node)


async def many(kube: Kube, namespace: str | None, paths: Paths, node: str | None) -> Snapshot:
    """All VMs of a namespace, or of all (``None``), and the node.

    :raises KubeError: the API server does not answer.
    """
    vmis, pods, vms = await asyncio.gather(
        kube.list(VMIS, namespace), kube.list(PODS, namespace, labels=CREATED_BY_LABEL), _vms(kube, namespace)
    )
    found = await with_ladders(kube, machines(vmis.items, pods.items, vms))
    return await look(found, paths, node)


async def with_ladders(kube: Kube, found: Sequence[VmSnapshot]) -> list[VmSnapshot]:
    """The machines with what the bus keeps of their ladders. After the objects, as it is written after them."""
    room = asyncio.Semaphore(AT_ONCE)
    away: NotVisible | None = None

    async def stored(vmi: VirtualMachineInstance) -> tuple[StoredEntry, ...] | NotVisible:
        nonlocal away
        async with room:
            if away is not None:
                return away
            try:
                return await hotplug_status.stored(kube, vmi)
            except KubeError as error:
                why = NotVisible(f"hotnic's api does not show it: {error.message or error.reason}")
                if isinstance(error, Unavailable):
                    away = why  # the others would wait as long
                return why

    async def with_ladder(machine: VmSnapshot) -> VmSnapshot:
        if machine.vmi is None:
            return machine
        return msgspec.structs.replace(machine, hotplug_status=await stored(machine.vmi))

    return await asyncio.gather(*map(with_ladder, found))


def machines(
    vmis: list[VirtualMachineInstance], pods: list[Pod], vms: dict[tuple[str, str], VirtualMachine] | NotVisible
) -> list[VmSnapshot]:
    """Objects by machine; one whose VMI is gone is there for its pods' sake."""
    found = []
    for vmi in vmis:
        key = (vmi.metadata.namespace, vmi.metadata.name)
        vm = vms if isinstance(vms, NotVisible) else vms.get(key)
        found.append(VmSnapshot(*key, vm, vmi, tuple(pod for pod in pods if belongs_to(pod, vmi))))
    known = {pod.metadata.uid for machine in found for pod in machine.pods}
    for pod in pods:
        name = vmi_name_of(pod)
        if pod.metadata.uid not in known and name is not None:
            found.append(VmSnapshot(pod.metadata.namespace, name, None, None, (pod,)))
    return found


async def _vm(kube: Kube, namespace: str, name: str) -> VirtualMachine | NotVisible | None:
    try:
        return await kube.get(VMS, namespace, name)
    except NotFound:
        return None
    except Forbidden as error:
        return NotVisible(error.message)


async def _vms(kube: Kube, namespace: str | None) -> dict[tuple[str, str], VirtualMachine] | NotVisible:
    try:
        listing = await kube.list(VMS, namespace)
    except Forbidden as error:
        return NotVisible(error.message)
    return {(vm.metadata.namespace, vm.metadata.name): vm for vm in listing.items}
