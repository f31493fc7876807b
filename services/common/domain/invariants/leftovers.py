"""Checks of a node as a whole: records, leases, network namespaces and veths that belong to no sandbox any more.

What the runtime does not know cannot be anybody's. Next: :mod:`services.common.domain.invariants`, which runs them all.
"""

from collections.abc import Iterator

from services.common.domain.invariants.world import Finding, NodeSnapshot, NotVisible

SWEEP = "the multus daemon undoes it within a minute; if it stays, see whether the daemon is ready"


def records(node: NodeSnapshot) -> Iterator[Finding]:
    """Every record is of a sandbox that the runtime knows."""
    if isinstance(node.records, NotVisible) or isinstance(node.sandboxes, NotVisible):
        return
    for record in node.records:
        if record.sandbox not in node.sandboxes:
            what = (
                f"the multus daemon has a record of sandbox {record.sandbox} (pod {record.pod}), "
                "which the container runtime does not know"
            )
            yield Finding("RecordOrphaned", node.name, what, SWEEP)


def leases(node: NodeSnapshot) -> Iterator[Finding]:
    """Every lease is kept for a sandbox that the runtime knows."""
    if isinstance(node.leases, NotVisible) or isinstance(node.sandboxes, NotVisible):
        return
    for lease in node.leases:
        if lease.container not in node.sandboxes:
            what = (
                f"host-local keeps {lease.ip} of {lease.network} for {lease.link} of sandbox {lease.container}, "
                "which the container runtime does not know"
            )
            repair = f"remove the file {lease.ip} of network {lease.network} from host-local's directory"
            yield Finding("LeaseOrphaned", node.name, what, repair)


def namespaces(node: NodeSnapshot) -> Iterator[Finding]:
    """Every network namespace that a runtime made is of a sandbox."""
    if (
        isinstance(node.namespaces, NotVisible)
        or isinstance(node.sandboxes, NotVisible)
        or isinstance(node.ready, NotVisible)
    ):
        return
    if node.sandboxes != node.ready:
        # A sandbox that is going away does not tell where its namespace is; one of these may be its.
        return
    for namespace in node.namespaces:
        if namespace.sandbox is None:
            what = f"network namespace {namespace.path} belongs to no sandbox that the container runtime knows"
            yield Finding("NamespaceOrphaned", node.name, what, f"umount {namespace.path} && rm {namespace.path}")


def veths(node: NodeSnapshot) -> Iterator[Finding]:
    """The other end of every veth on a bridge that multus' plugins use stands in a namespace of a sandbox."""
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
            return
        ends |= {(link.index, link.peer) for link in namespace.links}
    for link in node.links:
        if link.kind == "veth" and link.master in bridges and (link.peer, link.index) not in ends:
            what = f"link {link.name} is a port of a bridge of the pods, its other end is in no sandbox"
            yield Finding("HostVethOrphaned", node.name, what, f"ip link del {link.name}")
