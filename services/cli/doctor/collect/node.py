"""Reads the state of a node and of its pods for the snapshot: sandboxes, links, taps. Requires root on the node.

Changes nothing. Next: :mod:`services.cli.doctor.collect.node_files` (multus records, ``host-local`` leases) and
:mod:`services.cli.doctor.collect.guest` (devices of a guest).
"""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from schemas.multus import SHIM_NAME, SOCKET_NAME
from services.cli.doctor.collect import guest, node_files
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.snapshot import (
    NetnsPath,
    NodeSnapshot,
    NotVisible,
    ObservedLink,
    PodOnNode,
    Snapshot,
    VmSnapshot,
)
from services.cli.node.observe import NodeDirectories
from services.cli.tracing.tracer import NoTraces
from services.common.cri.client import CriClient
from services.common.cri.discovery import find_socket
from services.common.cri.errors import CriError, SandboxMissing
from services.common.cri.sandbox import ListedSandbox
from services.common.netlink.errors import NetlinkFailure, NetnsGone
from services.common.netlink.pool import NetnsPool
from services.common.node.daemon_socket import DaemonKind, probe_daemon
from services.common.runtime.settings import SettingsError


async def add_node_state(
    vms: list[VmSnapshot], paths: NodeSettings, node: str | None, *, for_fixes: bool = False
) -> Snapshot:
    """Return a snapshot of VMs with the state of this node and of the pods on it.

    :param vms: without the state of their pods on the node.
    :param node: name of this node; ``None`` derives it from the pods whose sandboxes run here.
    :param for_fixes: whether to read what only the decision depends on whether a leftover may be removed, which opens
        every network namespace of the node.
    """
    if os.geteuid() != 0:
        return Snapshot(tuple(vms), NotVisible("root on the node is required"))
    try:
        cri_socket = await find_socket(paths.cri_socket, NoTraces(), host_root=paths.host_root)
    except SettingsError as error:
        return Snapshot(tuple(vms), NotVisible(str(error)))
    cri, pool = CriClient(cri_socket, NoTraces()), NetnsPool(paths.host_root)
    try:
        known = await cri.list_sandboxes()
        node = node or _node_of(vms, known)
        if node is None:
            message = "no pod of these VMs runs on this machine; if it is a node, set its name with --node"
            return Snapshot(tuple(vms), NotVisible(message))
        reader = _NodeReader(cri, pool, paths, known, node)
        found = [await reader.read_vm(vm_snapshot) for vm_snapshot in vms]
        return Snapshot(tuple(found), await reader.read_node(for_fixes=for_fixes))
    except CriError as error:
        return Snapshot(tuple(vms), NotVisible(str(error)))
    finally:
        pool.close()
        await cri.close()


def _node_of(vms: list[VmSnapshot], known: list[ListedSandbox]) -> str | None:
    """Return the name of the node that the sandboxes run on, from the pods that they belong to."""
    here = {sandbox.pod_uid for sandbox in known}
    found = {pod.spec.node_name for vm_snapshot in vms for pod in vm_snapshot.pods if pod.metadata.uid in here}
    return found.pop() if len(found) == 1 else None


class _NodeReader:
    def __init__(
        self, cri: CriClient, pool: NetnsPool, paths: NodeSettings, known: list[ListedSandbox], node: str
    ) -> None:
        self._cri = cri
        self._pool = pool
        self._paths = paths
        self._known = known
        self._node = node

    async def read_vm(self, vm_snapshot: VmSnapshot) -> VmSnapshot:
        """Return the snapshot with the state of those of its pods that run on this node."""
        pods_on_node: dict[str, PodOnNode | NotVisible] = {}
        for pod in vm_snapshot.pods:
            if pod.spec.node_name == self._node:
                pods_on_node[pod.metadata.uid] = await self._read_pod(pod.metadata.uid, vm_snapshot)
            else:
                pods_on_node[pod.metadata.uid] = NotVisible(
                    f"the pod runs on node {pod.spec.node_name}, this is node {self._node}"
                )
        return msgspec.structs.replace(vm_snapshot, pods_on_node=pods_on_node)

    async def read_node(self, *, for_fixes: bool) -> NodeSnapshot:
        """Return the state of the node as a whole."""
        records = node_files.read_records(self._paths)
        readable = () if isinstance(records, NotVisible) else records
        leases = node_files.read_leases(self._paths, {folder for one in readable for folder in one.lease_dirs})
        sandboxes = frozenset(one.id for one in self._known)
        found = () if isinstance(leases, NotVisible) else leases
        lease_orphaned = for_fixes and any(one.container not in sandboxes for one in found)
        orphaned = lease_orphaned or (for_fixes and any(one.record.sandbox not in sandboxes for one in readable))
        return NodeSnapshot(
            name=self._node,
            sandboxes=sandboxes,
            ready=frozenset(one.id for one in self._known if one.ready),
            records=tuple(one.record for one in readable) if not isinstance(records, NotVisible) else records,
            links=await self._links(f"{self._paths.host_process}/ns/net"),
            leases=leases,
            namespaces=await self._namespaces([(one.record.sandbox, one.record.netns) for one in readable]),
            has_multus=not orphaned or await asyncio.to_thread(has_multus, self._paths),
            addresses=await used_addresses(self._pool, self._paths) if lease_orphaned else NotVisible("not read"),
        )

    async def _read_pod(self, pod_uid: str, vm_snapshot: VmSnapshot) -> PodOnNode | NotVisible:
        try:
            sandbox = await self._cri.find_sandbox(pod_uid)
        except SandboxMissing:
            return PodOnNode(None)
        except CriError as error:
            return NotVisible(str(error))
        processes = node_files.processes_in(self._paths, sandbox.netns)
        return PodOnNode(
            sandbox.id,
            sandbox.netns,
            await self._links(sandbox.netns),
            processes if isinstance(processes, NotVisible) else node_files.taps_held(self._paths, processes),
            await guest.guest_devices(self._paths, self._cri, vm_snapshot, pod_uid),
        )

    async def _links(self, netns: str) -> tuple[ObservedLink, ...] | NotVisible:
        try:
            opened = await self._pool.open(netns)
            links, addresses = await opened.links(), await opened.addresses()
        except NetlinkFailure as error:
            return NotVisible(str(error))
        return tuple(
            ObservedLink(
                index=link.index,
                name=link.name,
                kind=link.kind,
                mac=link.mac,
                up=link.up,
                master=link.master,
                peer=link.link,
                addresses=tuple(a.cidr for a in addresses if a.index == link.index and not a.link_local),
            )
            for link in links
        )

    async def _namespaces(self, recorded: Iterable[tuple[str, str]]) -> tuple[NetnsPath, ...] | NotVisible:
        """Return the network namespaces that container runtimes created on this node, with their sandboxes."""
        owners: dict[tuple[int, int], str] = {}
        # The runtime does not report the namespace of a sandbox that is not ready, but its record does.
        netns = [*recorded]
        for one in self._known:
            if one.ready:
                try:
                    netns.append((one.id, (await self._cri.get_sandbox(one.id)).netns))
                except SandboxMissing:
                    continue
                except CriError as error:
                    return NotVisible(str(error))
        for sandbox, path in netns:
            identity = node_files.netns_identity(self._paths, path)
            if identity is not None:
                owners[identity] = sandbox
        found = []
        for path in node_files.runtime_netns_paths(self._paths):
            identity = node_files.netns_identity(self._paths, path)
            if identity is not None:
                found.append(NetnsPath(path, owners.get(identity), await self._links(path)))
        return tuple(found)


def has_multus(paths: NodeSettings) -> bool:
    """Return whether hotnic's multus daemon runs on the node, or may run again."""
    kind = probe_daemon(Path(paths.socket_dir) / SOCKET_NAME)
    if kind is not DaemonKind.NONE:
        return kind is not DaemonKind.OTHER
    directories = NodeDirectories(host_root=paths.host_root)
    return os.path.lexists(directories.entry(f"{directories.cni_bin_dir}/{SHIM_NAME}"))


async def used_addresses(pool: NetnsPool, paths: NodeSettings) -> frozenset[str] | NotVisible:
    """Return the addresses of all links in all network namespaces of the node, without prefix length."""
    found: set[str] = set()
    try:
        for identity, candidates in (await asyncio.to_thread(node_files.all_netns_paths, paths)).items():
            found |= await _addresses_in(pool, identity, candidates)
    except (NetlinkFailure, OSError) as error:
        return NotVisible(str(error))
    return frozenset(found)


async def _addresses_in(pool: NetnsPool, identity: tuple[int, int], candidates: Iterable[str]) -> set[str]:
    """Return the addresses in a network namespace; none if it is gone."""
    for path in candidates:
        # A process may end meanwhile, and another one get its number, while the namespace lives on.
        try:
            netns = await pool.open(path)
            if netns.identity == identity:
                return {address.cidr.partition("/")[0] for address in await netns.addresses()}
        except NetnsGone:
            continue
        finally:
            pool.drop(path)
    return set()
