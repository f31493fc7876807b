"""Plan the patches of the pod's networks annotation and of the ``multus-status`` tokens in the VMI's status.

The annotation follows the VMI's spec; the tokens follow the pod's network status. Each patch is guarded by the state it
was planned on. Pure: no I/O. Next: :mod:`services.controller.plan.removal`.
"""

from collections.abc import Iterator

from schemas.kubernetes.networks import NETWORKS, encode_networks
from schemas.kubernetes.operations import Operation, is_hashed, stale_operation_keys
from schemas.names import interface_hash
from services.common.domain.attachments import desired_elements
from services.common.domain.nic import VmiNics
from services.common.domain.operations import is_migrating
from services.common.domain.spec_patch import PatchOp, annotation_path, build_annotation_ops, operation_annotations
from services.common.domain.status_interfaces import MULTUS_STATUS, Entry, with_token, without_token
from services.controller.plan.actions import AddedAttachment, PatchObject, PatchTarget

STATUS_PATH = "/status/interfaces"


def is_eligible(nics: VmiNics) -> bool:
    """Return whether interfaces of the VMI may change now.

    They may while VMI and pod run, neither is being deleted, and no migration is in progress. The pod need not be
    ready: the NIC may be what the guest needs for that.
    """
    vmi, pod = nics.vmi, nics.pod
    return (
        pod is not None
        and vmi.status.phase == "Running"
        and vmi.metadata.deletion_timestamp is None
        and pod.metadata.deletion_timestamp is None
        and pod.status.phase == "Running"
        and not is_migrating(vmi)
    )


def annotate_pod(nics: VmiNics) -> Iterator[PatchObject]:
    """Plan the patch that makes the pod's networks annotation follow the VMI's spec.

    An absent interface loses its element only after the handler has torn down its network in this same pod. The patch
    also removes the operations of interfaces that are in neither the spec nor the pod.
    """
    assert nics.pod is not None
    annotations, version = nics.pod.metadata.annotations, nics.pod.metadata.resource_version
    before, desired = list(nics.elements), desired_elements(nics)
    links_before = {element.requested_interface for element in before}
    links_after = {element.requested_interface for element in desired}
    links = links_before | links_after | {status.interface for status in nics.statuses}
    used = {interface_hash(name) for name in nics.interfaces}
    # The hash in `pod<h>` shows that an operation is in use even if its interface has left the spec.
    used |= {link[3:] for link in links if link is not None and is_hashed(link)}
    stale = stale_operation_keys(annotations, used)
    changed = [nic for nic in nics if (nic.link in links_after) != (nic.link in links_before)]
    # An empty list is written, too: before 1.2, KubeVirt left it out, and the only NIC could not be unplugged.
    changes: dict[str, str | None] = {}
    if desired != before:
        changes[NETWORKS] = encode_networks(desired, annotations.get(NETWORKS))
    # networks reads the operation from the pod, so it joins the trace without an event as well.
    changes |= operation_annotations((nic.operation for nic in changed), nics.pod.metadata.uid)
    changes |= dict.fromkeys(stale)
    # A pod without annotations needs no guard here: build_annotation_ops then tests the resource version.
    guard: list[PatchOp] = []
    if NETWORKS in annotations:
        guard = [{"op": "test", "path": annotation_path(NETWORKS), "value": annotations[NETWORKS]}]
    elif annotations:
        # Without the networks annotation there is no value to test, so the object's version guards the patch.
        guard = [{"op": "test", "path": "/metadata/resourceVersion", "value": version}]
    if changes:
        yield PatchObject(
            PatchTarget.POD,
            "annotate",
            [*guard, *build_annotation_ops(annotations, version, changes)],
            tuple(nic.operation for nic in changed),
            tuple(AddedAttachment(nic.operation, nic.link) for nic in changed if nic.link in links_after),
        )


def write_status(nics: VmiNics) -> Iterator[PatchObject]:
    """Plan the patch that makes the ``multus-status`` tokens match the pod's network status."""
    before: list[Entry] | None = nics.vmi.status.interfaces
    after = before
    operations: list[Operation] = []
    for nic in nics:
        previous = after
        # Only the controller's own token: in KubeVirt 1.0.0 one writer dropped what the other wrote (kubevirt#10063).
        if nic.status is None:
            after = without_token(after, nic.name, MULTUS_STATUS)
        # KubeVirt has `podInterfaceName` in the entry since 1.4.
        elif MULTUS_STATUS not in nic.tokens or nic.entry.get("podInterfaceName") != nic.link:
            after = with_token(after, nic.name, MULTUS_STATUS, podInterfaceName=nic.link)
        # A missing list and an empty one are the same status.
        if (after or []) != (previous or []):
            operations.append(nic.operation)
    if operations:
        # The VMI has no status subresource, so the status is patched on the object, guarded as in KubeVirt's own patch.
        ops: list[PatchOp] = [
            {"op": "test", "path": STATUS_PATH, "value": before},
            {"op": "add", "path": STATUS_PATH, "value": after},
        ]
        yield PatchObject(PatchTarget.VMI, "status", ops, tuple(operations))
