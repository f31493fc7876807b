"""What a node knows of its pods, looked at from the node as root: sandboxes, links, taps that guests hold.

Only reads. Files (multus' records, ``host-local``'s leases) are read by :mod:`services.cli.node_files`, guests are
asked by :mod:`services.cli.guest`.
"""

import os
from collections.abc import Iterable

import msgspec

from services.cli import guest, node_files
from services.cli.node_files import Paths
from services.cli.tracing import NoTraces
from services.common.cri.client import Cri
from services.common.cri.errors import CriError, SandboxMissing
from services.common.cri.sandbox import ListedSandbox
from services.common.domain.invariants.world import (
    NetnsPath,
    NodeSnapshot,
    NotVisible,
    PodOnNode,
    SeenLink,
    Snapshot,
    VmSnapshot,
)
from services.common.netlink.errors import NetlinkFailure
from services.common.netlink.pool import NetnsPool

HOST_NETNS = "/proc/1/ns/net"


async def look(machines: list[VmSnapshot], paths: Paths, node: str | None) -> Snapshot:
    """The world: these machines, and this node's part of them where it is theirs.

    :param node: the name of this node; ``None``: told by the pods whose sandboxes run here.
    """
    if os.geteuid() != 0:
        return Snapshot(tuple(machines), NotVisible("only root of the node can look at it"))
    cri, pool = Cri(paths.cri_socket, NoTraces()), NetnsPool(paths.host_root)
    try:
        known = await cri.known()
        node = node or _node_of(machines, known)
        if node is None:
            why = "no pod of these VMs runs here; on the node itself, --node tells its name"
            return Snapshot(tuple(machines), NotVisible(why))
        looker = _Looker(cri, pool, paths, known, node)
        looked = [await looker.machine(machine) for machine in machines]
        return Snapshot(tuple(looked), await looker.node())
    except CriError as error:
        return Snapshot(tuple(machines), NotVisible(str(error)))
    finally:
        pool.close()
        await cri.close()


def _node_of(machines: list[VmSnapshot], known: list[ListedSandbox]) -> str | None:
    """The node that these sandboxes are of, by the pods that they run."""
    here = {sandbox.pod_uid for sandbox in known}
    found = {pod.spec.node_name for machine in machines for pod in machine.pods if pod.metadata.uid in here}
    return found.pop() if len(found) == 1 else None


class _Looker:
    def __init__(self, cri: Cri, pool: NetnsPool, paths: Paths, known: list[ListedSandbox], node: str) -> None:
        self._cri = cri
        self._pool = pool
        self._paths = paths
        self._known = known
        self._node = node

    async def machine(self, machine: VmSnapshot) -> VmSnapshot:
        """The machine with the inside of those of its pods that run here."""
        inside: dict[str, PodOnNode | NotVisible] = {}
        for pod in machine.pods:
            if pod.spec.node_name == self._node:
                inside[pod.metadata.uid] = await self._inside(pod.metadata.uid, machine)
            else:
                inside[pod.metadata.uid] = NotVisible(f"it runs on node {pod.spec.node_name}, this is {self._node}")
        return msgspec.structs.replace(machine, inside=inside)

    async def node(self) -> NodeSnapshot:
        """What belongs to the node as a whole."""
        records = node_files.records(self._paths)
        configs = () if isinstance(records, NotVisible) else records
        return NodeSnapshot(
            name=self._node,
            sandboxes=frozenset(one.id for one in self._known),
            ready=frozenset(one.id for one in self._known if one.ready),
            records=tuple(one.record for one in configs) if not isinstance(records, NotVisible) else records,
            links=await self._links(HOST_NETNS),
            leases=node_files.leases(self._paths, {folder for one in configs for folder in one.lease_dirs}),
            namespaces=await self._namespaces([(one.record.sandbox, one.record.netns) for one in configs]),
        )

    async def _inside(self, pod_uid: str, machine: VmSnapshot) -> PodOnNode | NotVisible:
        try:
            sandbox = await self._cri.sandbox_of(pod_uid)
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
            await guest.cards(self._paths, self._cri, machine, pod_uid),
        )

    async def _links(self, netns: str) -> tuple[SeenLink, ...] | NotVisible:
        try:
            opened = await self._pool.open(netns)
            links, addresses = await opened.links(), await opened.addresses()
        except NetlinkFailure as error:
            return NotVisible(str(error))
        return tuple(
            SeenLink(
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
        """The namespaces that runtimes have made here, and whose they are."""
        owners: dict[tuple[int, int], str] = {}
        netns = [*recorded]
        for one in self._known:
            if one.ready:
                try:
                    netns.append((one.id, (await self._cri.sandbox(one.id)).netns))
                except SandboxMissing:
                    continue
                except CriError as error:
                    return NotVisible(str(error))
        for sandbox, path in netns:
            identity = node_files.identity(self._paths, path)
            if identity is not None:
                owners[identity] = sandbox
        found = []
        for path in node_files.namespace_paths(self._paths):
            identity = node_files.identity(self._paths, path)
            if identity is not None:
                found.append(NetnsPath(path, owners.get(identity), await self._links(path)))
        return tuple(found)
