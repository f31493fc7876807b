"""Decide which files of a node are hotnic's and may go, in which order, and what stays for which reason. Pure.

The configuration goes first: from then on the runtime creates pods with the primary network alone, and does not call a
shim that is no longer there. What a running pod has stays: cleaning a node takes no network away from a pod.
Next: :mod:`services.cli.node.apply`.
"""

from collections.abc import Collection
from typing import Final

import msgspec

from schemas.multus import CONF_NAME, SHIM_NAME
from services.common.node.cni_conf import PluginTypes
from services.common.node.daemon_socket import DaemonKind

CLUSTER_NETWORK: Final = "cluster"


class RecordedLink(msgspec.Struct, frozen=True):
    """An attachment in a sandbox's record.

    :ivar origin: where it comes from; ``cluster`` for the primary network, which the runtime deletes itself.
    """

    ifname: str
    network: str
    origin: str = msgspec.field(default="", name="owner")


class RecordedSandbox(msgspec.Struct, frozen=True):
    """What is recorded of a sandbox.

    :ivar alive: whether its network namespace exists.
    :ivar files: the files of its records.
    """

    pod: str
    alive: bool
    attachments: tuple[RecordedLink, ...]
    files: tuple[str, ...]


class ObservedNode(msgspec.Struct, frozen=True):
    """What there is of hotnic on a node; paths are the node's own.

    :ivar daemon: who serves the daemon's socket.
    :ivar plugin_types: the plugin types of each configuration of the runtime.
    :ivar shim: path of the installed shim; empty if there is none.
    :ivar shim_log: path of its log settings; empty if there are none.
    :ivar unfinished: temporary files that killed processes have left beside the shim and the configuration.
    :ivar socket_files: the daemon's socket and its unsettled records.
    :ivar record_files: the records on disk.
    :ivar directories: the directories of both, the innermost first.
    :ivar foreign: other files in these directories.
    :ivar sandboxes: the recorded sandboxes.
    :ivar crio: whether CRI-O is the node's runtime.
    """

    daemon: DaemonKind
    conf_dir: str
    plugin_types: PluginTypes
    shim: str
    shim_log: str
    unfinished: tuple[str, ...]
    socket_files: tuple[str, ...]
    record_files: tuple[str, ...]
    directories: tuple[str, ...]
    foreign: tuple[str, ...]
    sandboxes: tuple[RecordedSandbox, ...]
    crio: bool


class NodeItem(msgspec.Struct, frozen=True):
    """A file or directory, and why it is removed or left."""

    path: str
    reason: str


class CleaningPlan(msgspec.Struct, frozen=True):
    """What to do.

    :ivar remove: in this order.
    :ivar left: what stays.
    :ivar blocked: why nothing may be removed yet; empty if it may.
    :ivar refused: why the node calls the shim until somebody has changed what is not hotnic's; empty if it does not.
    :ivar later: why a later attempt removes more; empty if it does not.
    """

    remove: tuple[NodeItem, ...]
    left: tuple[NodeItem, ...]
    blocked: str = ""
    refused: str = ""
    later: str = ""


def plan(node: ObservedNode) -> CleaningPlan:
    """Return what to remove from the node."""
    if node.daemon in (DaemonKind.HOTNIC, DaemonKind.SILENT):
        blocked = "the multus daemon still runs and would write its files again; delete its DaemonSet, then try again"
        return CleaningPlan((), (), blocked)
    remove: list[NodeItem] = []
    left: list[NodeItem] = []
    callers = _plan_configurations(node, remove, left)
    refused, later, kept_records = "", "", set[str]()
    alive = [sandbox for sandbox in node.sandboxes if sandbox.alive]
    if callers:
        refused = (
            f"{', '.join(callers)}: hotnic did not generate this configuration, and it calls {SHIM_NAME}; "
            "delete it, then clean this node again"
        )
    if node.shim and node.crio and alive:
        # CRI-O deletes a sandbox by the configuration with which it was created. containerd uses the current one.
        later = (
            f"CRI-O deletes the running pods that it created with {node.shim} ({len(alive)}) by it; clean this node "
            "again when they are gone"
        )
        # The next attempt finds these pods by their records.
        kept_records = {path for sandbox in alive for path in sandbox.files}
    remove += [NodeItem(path, "a file that was never completed") for path in node.unfinished]
    if node.shim and (callers or later):
        left.append(NodeItem(node.shim, f"called by {', '.join(callers)}" if callers else later))
    elif node.shim:
        remove.append(NodeItem(node.shim, "the CNI shim"))
    if node.shim_log and not (callers or later):
        remove.append(NodeItem(node.shim_log, "the log settings of the CNI shim"))
    foreign_socket = node.socket_files if node.daemon is DaemonKind.OTHER else ()
    left += [NodeItem(path, "another multus daemon serves in this directory") for path in foreign_socket]
    left += [
        NodeItem(path, "the record of a pod that needs the shim") for path in sorted(kept_records - {*foreign_socket})
    ]
    kept = {*node.foreign, *foreign_socket, *kept_records}
    for files, reason in (
        (node.socket_files, "the daemon's socket or a record"),
        (node.record_files, "the record of a sandbox"),
    ):
        remove += [NodeItem(path, reason) for path in files if path not in kept]
    remove += [NodeItem(path, "a directory of the daemon") for path in node.directories if not _is_used(path, kept)]
    left += [NodeItem(path, "not a file of hotnic") for path in node.foreign]
    for sandbox in node.sandboxes:
        left += _leases(sandbox)
    return CleaningPlan(tuple(remove), tuple(left), refused=refused, later=later)


def _plan_configurations(node: ObservedNode, remove: list[NodeItem], left: list[NodeItem]) -> list[str]:
    """Sort the configurations; return those that call the shim and stay."""
    callers: list[str] = []
    for name, types in node.plugin_types.items():
        path = f"{node.conf_dir}/{name}"
        if name == CONF_NAME and types == (SHIM_NAME,):
            remove.append(NodeItem(path, "the configuration that makes the runtime call the shim"))
        elif name == CONF_NAME and SHIM_NAME not in types:
            left.append(NodeItem(path, f"it calls {', '.join(types) or 'no plugin'} and is not hotnic's"))
        elif SHIM_NAME in types:
            left.append(NodeItem(path, f"it calls {SHIM_NAME}, but hotnic did not generate it; delete it by hand"))
            callers.append(path)
    return callers


def _is_used(directory: str, kept: Collection[str]) -> bool:
    return any(path.startswith(f"{directory}/") for path in kept)


def _leases(sandbox: RecordedSandbox) -> list[NodeItem]:
    """Return the attachments whose addresses stay reserved, because nobody runs DEL for them any more."""
    reason = (
        "it stays in the running pod; its address stays reserved by the network's IPAM after the pod's end"
        if sandbox.alive
        else "the pod has ended, but no DEL has run; its address stays reserved by the network's IPAM"
    )
    return [
        NodeItem(f"pod {sandbox.pod}, link {link.ifname}, network {link.network}", reason)
        for link in sandbox.attachments
        if link.origin != CLUSTER_NETWORK
    ]
