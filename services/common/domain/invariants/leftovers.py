"""Checks of a node as a whole: records, leases, network namespaces and veths that belong to no sandbox any more.

What the runtime does not know cannot be anybody's. Next: :mod:`services.common.domain.invariants`, which runs them all.
"""

from collections.abc import Iterator

from services.common.domain.invariants.world import Disagreement, Node, Unknown

SWEEP = "the multus daemon undoes it within a minute; if it stays, see whether the daemon is ready"


def records(node: Node) -> Iterator[Disagreement]:
    """Every record is of a sandbox that the runtime knows."""
    if isinstance(node.records, Unknown) or isinstance(node.sandboxes, Unknown):
        return
    for record in node.records:
        if record.sandbox not in node.sandboxes:
            what = (
                f"the multus daemon has a record of sandbox {record.sandbox} (pod {record.pod}), "
                "which the container runtime does not know"
            )
            yield Disagreement("RecordOrphaned", node.name, what, SWEEP)


def leases(node: Node) -> Iterator[Disagreement]:
    """Every lease is kept for a sandbox that the runtime knows."""
    if isinstance(node.leases, Unknown) or isinstance(node.sandboxes, Unknown):
        return
    for lease in node.leases:
        if lease.container not in node.sandboxes:
            what = (
                f"host-local keeps {lease.ip} of {lease.network} for {lease.link} of sandbox {lease.container}, "
                "which the container runtime does not know"
            )
            repair = f"remove the file {lease.ip} of network {lease.network} from host-local's directory"
            yield Disagreement("LeaseOrphaned", node.name, what, repair)


def namespaces(node: Node) -> Iterator[Disagreement]:
    """Every network namespace that a runtime made is of a sandbox."""
    if isinstance(node.namespaces, Unknown) or isinstance(node.sandboxes, Unknown) or isinstance(node.ready, Unknown):
        return
    if node.sandboxes != node.ready:
        # A sandbox that is going away does not tell where its namespace is; one of these may be its.
        return
    for namespace in node.namespaces:
        if namespace.sandbox is None:
            what = f"network namespace {namespace.path} belongs to no sandbox that the container runtime knows"
            yield Disagreement("NamespaceOrphaned", node.name, what, f"umount {namespace.path} && rm {namespace.path}")


def veths(node: Node) -> Iterator[Disagreement]:
    """The other end of every veth on a bridge that multus' plugins use stands in a namespace of a sandbox."""
    if isinstance(node.links, Unknown) or isinstance(node.records, Unknown) or isinstance(node.namespaces, Unknown):
        return
    used = {attached.bridge for record in node.records for attached in record.attached if attached.bridge}
    bridges = {link.index for link in node.links if link.name in used}
    ends = set()
    for namespace in node.namespaces:
        if isinstance(namespace.links, Unknown):
            return
        ends |= {(link.index, link.peer) for link in namespace.links}
    for link in node.links:
        if link.kind == "veth" and link.master in bridges and (link.peer, link.index) not in ends:
            what = f"link {link.name} is a port of a bridge of the pods, its other end is in no sandbox"
            yield Disagreement("HostVethOrphaned", node.name, what, f"ip link del {link.name}")
