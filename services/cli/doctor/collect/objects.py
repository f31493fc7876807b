"""Takes a snapshot: VMs, VMIs, pods and stored hot-plug status from the API servers, then the node's state.

Next: :mod:`services.cli.doctor.collect.node`, the node's state.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from schemas.bus.hotplug_status import HotplugStatus, StoredEntry
from schemas.kubernetes.objects import CREATED_BY_LABEL, PODS, VMIS, VMS, Pod, VirtualMachine, VirtualMachineInstance
from services.cli.cluster import find_vmi, pod_selector
from services.cli.doctor.collect.node import add_node_state
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.snapshot import NotVisible, Snapshot, VmSnapshot
from services.cli.operations.hotplug_status import NO_NATS, status_path
from services.cli.operations.owner import find_owner
from services.common.domain.nic import parse_nics
from services.common.domain.operations import belongs_to, find_acting_pod, vmi_name_of
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.kube.client import Kube
from services.common.kube.errors import Forbidden, KubeError, NotFound, Unavailable
from services.common.kube.surroundings import read_surroundings

MAX_CONCURRENT_READS = 8
"""Requests for a VM's stored hot-plug status at the same time."""
STORED_TIMEOUT = 5.0
"""Seconds for such a request."""


async def snapshot_of_vm(
    kube: Kube, namespace: str, name: str, paths: NodeSettings, node: str | None, *, for_fixes: bool = False
) -> Snapshot:
    """Take a snapshot of one VM and its node.

    :param for_fixes: as in :func:`services.cli.doctor.collect.node.add_node_state`.
    :raises RefusedByServer: the VM does not run.
    :raises KubeError: the API server does not answer.
    """
    vmi = await find_vmi(kube, namespace, name)
    vm, pods, beside = await asyncio.gather(
        _vm(kube, namespace, name), kube.list(PODS, namespace, labels=pod_selector(vmi)), find_owner(kube)
    )
    found = await with_hotplug_status(kube, [VmSnapshot(namespace, name, vm, vmi, tuple(pods.items), beside=beside)])
    found = await with_surroundings(kube, found)
    return await add_node_state(found, paths, node, for_fixes=for_fixes)


async def snapshot_of_vms(
    kube: Kube, namespace: str | None, paths: NodeSettings, node: str | None, *, for_fixes: bool = False
) -> Snapshot:
    """Take a snapshot of all VMs of a namespace and of the node.

    :param namespace: ``None`` for all namespaces.
    :param for_fixes: as in :func:`services.cli.doctor.collect.node.add_node_state`.
    :raises KubeError: the API server does not answer.
    """
    vmis, pods, vms, beside = await asyncio.gather(
        kube.list(VMIS, namespace),
        kube.list(PODS, namespace, labels=CREATED_BY_LABEL),
        _vms(kube, namespace),
        find_owner(kube),
    )
    found = await with_hotplug_status(
        kube, [msgspec.structs.replace(one, beside=beside) for one in vm_snapshots(vmis.items, pods.items, vms)]
    )
    found = await with_surroundings(kube, found)
    return await add_node_state(found, paths, node, for_fixes=for_fixes)


async def with_hotplug_status(kube: Kube, found: Sequence[VmSnapshot]) -> list[VmSnapshot]:
    """Return the snapshots with the stored hot-plug status of each VM.

    It has to be read after the objects, because the controller writes it after them.
    """
    limit = asyncio.Semaphore(MAX_CONCURRENT_READS)
    unavailable: NotVisible | None = None

    async def stored(vmi: VirtualMachineInstance) -> tuple[StoredEntry, ...] | NotVisible:
        nonlocal unavailable
        async with limit:
            if unavailable is not None:
                return unavailable
            try:
                return await read_stored_status(kube, vmi)
            except KubeError as error:
                result = NotVisible(f"hotnic's api does not return it: {error.message or error.reason}")
                if isinstance(error, Unavailable):
                    # Each further request would wait for its whole timeout.
                    unavailable = result
                return result

    async def with_stored(vm_snapshot: VmSnapshot) -> VmSnapshot:
        if vm_snapshot.vmi is None:
            return vm_snapshot
        return msgspec.structs.replace(vm_snapshot, hotplug_status=await stored(vm_snapshot.vmi))

    return await asyncio.gather(*map(with_stored, found))


async def with_surroundings(kube: Kube, found: Sequence[VmSnapshot]) -> list[VmSnapshot]:
    """Return the snapshots with what stands around each VM beside KubeVirt whose operation waits."""
    limit = asyncio.Semaphore(MAX_CONCURRENT_READS)

    async def with_around(vm_snapshot: VmSnapshot) -> VmSnapshot:
        vmi, vm, beside = vm_snapshot.vmi, vm_snapshot.vm, vm_snapshot.beside
        if vmi is None or beside is None:
            return vm_snapshot
        try:
            nics = parse_nics(vmi, find_acting_pod(vmi, vm_snapshot.pods))
            statuses = derive_statuses(nics, vm if isinstance(vm, VirtualMachine) else None, beside)
        except ValueError:
            return vm_snapshot  # the checks report what is malformed
        async with limit:
            around = await read_surroundings(kube, statuses, vmi, vm_snapshot.pods, beside)
        return msgspec.structs.replace(vm_snapshot, around=around)

    return await asyncio.gather(*map(with_around, found))


async def read_stored_status(kube: Kube, vmi: VirtualMachineInstance) -> tuple[StoredEntry, ...] | NotVisible:
    """Return the entries of a VM in the key-value bucket, not merged with the objects.

    :raises KubeError: hotnic's api does not answer.
    """
    response = await kube.request(
        "GET", status_path(vmi), query={"stored": "true"}, timeout=STORED_TIMEOUT, span="kube get interfaces"
    )
    try:
        view = msgspec.json.decode(response.body, type=HotplugStatus)
    except msgspec.DecodeError as error:
        return NotVisible(f"cannot decode the response of hotnic's api: {error}")
    if view.stored is None:
        return NotVisible(NO_NATS if view.degraded else "hotnic's api is an older version, which does not return it")
    return view.stored


def vm_snapshots(
    vmis: list[VirtualMachineInstance], pods: list[Pod], vms: dict[tuple[str, str], VirtualMachine] | NotVisible
) -> list[VmSnapshot]:
    """Group objects by VM; VMs that do not run, and pods whose VMI does not exist any more, get one without VMI."""
    found = []
    for vmi in vmis:
        key = (vmi.metadata.namespace, vmi.metadata.name)
        vm = vms if isinstance(vms, NotVisible) else vms.get(key)
        found.append(VmSnapshot(*key, vm, vmi, tuple(pod for pod in pods if belongs_to(pod, vmi))))
    known = {pod.metadata.uid for vm_snapshot in found for pod in vm_snapshot.pods}
    running = {(vm_snapshot.namespace, vm_snapshot.name) for vm_snapshot in found}
    for key, vm in () if isinstance(vms, NotVisible) else vms.items():
        if key not in running:
            found.append(VmSnapshot(*key, vm, None))
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
