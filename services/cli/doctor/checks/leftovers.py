"""Checks of a node as a whole: records, leases, network namespaces and veths that belong to no sandbox.

Anything whose sandbox the container runtime does not know is left over.
Next: :mod:`services.cli.doctor.examine`, which runs all checks.
"""

import re
from collections.abc import Iterator

from services.cli.doctor.fix import choose
from services.cli.doctor.snapshot import Finding, NodeSnapshot, NotVisible

DAEMON_REPAIR = "the multus daemon removes it within a minute; if it remains, check whether the daemon is ready"
PLUGIN_VETH = re.compile(r"veth[0-9a-f]{8}")
"""Names of the node's ends of veths that the CNI plugins create."""
CLEAN_REPAIR = "hotnic's multus daemon is not on this node any more: hotnic node clean removes its records"


def check_records(node: NodeSnapshot) -> Iterator[Finding]:
    """Check that the container runtime knows the sandbox of every record."""
    if isinstance(node.records, NotVisible) or isinstance(node.sandboxes, NotVisible):
        return
    for record in node.records:
        if record.sandbox not in node.sandboxes:
            message = (
                f"the multus daemon has a record of sandbox {record.sandbox} (pod {record.pod}), "
                "which the container runtime does not know"
            )
            repair = DAEMON_REPAIR if node.has_multus else CLEAN_REPAIR
            yield Finding("RecordOrphaned", node.name, message, repair, choose.remove_record(node, record))


def check_leases(node: NodeSnapshot) -> Iterator[Finding]:
    """Check that the container runtime knows the sandbox of every lease."""
    if isinstance(node.leases, NotVisible) or isinstance(node.sandboxes, NotVisible):
        return
    for lease in node.leases:
        if lease.container not in node.sandboxes:
            message = (
                f"host-local has a lease of {lease.ip} on network {lease.network} for link {lease.link} of sandbox "
                f"{lease.container}, which the container runtime does not know"
            )
            repair = f"remove the file {lease.ip} of network {lease.network} from host-local's directory"
            yield Finding("LeaseOrphaned", node.name, message, repair, choose.remove_lease(node, lease))


def check_namespaces(node: NodeSnapshot) -> Iterator[Finding]:
    """Check that every network namespace that a container runtime created belongs to a sandbox."""
    if (
        isinstance(node.namespaces, NotVisible)
        or isinstance(node.sandboxes, NotVisible)
        or isinstance(node.ready, NotVisible)
    ):
        return
    if node.sandboxes != node.ready:
        # The runtime does not report the namespace of a sandbox that is not ready; it may own one of these.
        return
    for namespace in node.namespaces:
        if namespace.sandbox is None:
            message = f"network namespace {namespace.path} belongs to no sandbox that the container runtime knows"
            yield Finding("NamespaceOrphaned", node.name, message, f"umount {namespace.path} && rm {namespace.path}")


def check_veths(node: NodeSnapshot) -> Iterator[Finding]:
    """Check that the other end of each plugin's veth on a bridge for pods is in a sandbox's namespace."""
    if (
        isinstance(node.links, NotVisible)
        or isinstance(node.records, NotVisible)
        or isinstance(node.namespaces, NotVisible)
    ):
        return
    used = {attached.bridge for record in node.records for attached in record.attached if attached.bridge}
    bridges = {link.index for link in node.links if link.name in used}
    ends = set()
    for namespace in node.namespaces:
        if isinstance(namespace.links, NotVisible):
            # Any veth could have its other end there.
            return
        ends |= {(link.index, link.peer) for link in namespace.links}
    for link in node.links:
        if not (link.kind == "veth" and PLUGIN_VETH.fullmatch(link.name)):
            # Where the node is a container, the bridge's uplink is a veth, too.
            continue
        if link.master in bridges and (link.peer, link.index) not in ends:
            message = f"link {link.name} is a port of a bridge for pods, but its other end is in no sandbox"
            yield Finding("HostVethOrphaned", node.name, message, f"ip link del {link.name}")
