"""The pod's networks annotation follows the VMI's spec, and the VMI's status tells what Multus has attached.

Pure. Both are guarded patches of what was observed. Next: :mod:`services.controller.plan.removal`.
"""

from typing import Any

from schemas.kube import Pod, VirtualMachineInstance
from schemas.names import interface_hash
from schemas.networks import NETWORK_STATUS, NETWORKS, encode_networks, parse_network_status, parse_networks
from schemas.operations import Operation, encode, is_hashed, operation_key, stale_operations
from schemas.stages import OperationKind
from services.common.domain.attachments import desired, pod_interface_names, secondary
from services.common.domain.operations import migrating, operation_for
from services.common.domain.spec_patch import Op, annotate, annotation_path
from services.common.domain.status_interfaces import (
    MULTUS_STATUS,
    Entry,
    entry_of,
    tokens,
    with_token,
    without_token,
)
from services.controller.plan.actions import Annotated, Patch, Target

STATUS_PATH = "/status/interfaces"


def acts(vmi: VirtualMachineInstance, pod: Pod) -> bool:
    """Whether NICs of this VMI may be changed now: both run, neither goes away, no migration is under way."""
    return (
        vmi.status.phase == "Running"
        and vmi.metadata.deletion_timestamp is None
        and pod.metadata.deletion_timestamp is None
        and pod.status.phase == "Running"
        and any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions)
        and not migrating(vmi)
    )


def annotate_pod(vmi: VirtualMachineInstance, pod: Pod) -> Patch | None:
    """The patch that makes the pod's networks annotation what the spec wishes; ``None`` when it is.

    An absent interface loses its element only when the handler of this very pod has released it. Operations of
    interfaces that neither the spec nor the pod knows any more go along.

    :raises ValueError: the spec or an annotation is malformed.
    """
    annotations = pod.metadata.annotations
    text = annotations.get(NETWORKS)
    elements = parse_networks(text)
    statuses = parse_network_status(annotations.get(NETWORK_STATUS))
    operations = {interface.name: operation_for(vmi, interface) for interface, _ in secondary(vmi.spec)}
    released = frozenset(
        name
        for name, operation in operations.items()
        if operation.kind is OperationKind.UNPLUG and operation.released == pod.metadata.uid
    )
    wanted = desired(vmi.spec, vmi.metadata.namespace, elements, statuses, released)
    links = {e.requested_interface for e in [*elements, *wanted]} | {status.interface for status in statuses}
    hashes = {interface_hash(interface.name) for interface in vmi.spec.interface_items()}
    hashes |= {link[3:] for link in links if link is not None and is_hashed(link)}
    stale = stale_operations(annotations, hashes)
    if wanted == elements and not stale:
        return None
    names = pod_interface_names(vmi.spec, elements, statuses)
    before = {element.requested_interface for element in elements}
    after = {element.requested_interface for element in wanted}
    gained = [Annotated(operations[name], link) for name, link in names.items() if link in after and link not in before]
    changed = [operations[name] for name, link in names.items() if (link in after) != (link in before)]
    changes: dict[str, str | None] = {NETWORKS: encode_networks(wanted)} if wanted != elements else {}
    changes |= {operation_key(operation.interface): encode(operation) for operation in changed}
    changes |= dict.fromkeys(stale)
    guard: list[Op] = [] if text is None else [{"op": "test", "path": annotation_path(NETWORKS), "value": text}]
    if text is None and annotations:
        guard = [{"op": "test", "path": "/metadata/resourceVersion", "value": pod.metadata.resource_version}]
    ops = [*guard, *annotate(annotations, pod.metadata.resource_version, changes)]
    return Patch(Target.POD, "annotate", ops, tuple(changed), tuple(gained))


def write_status(vmi: VirtualMachineInstance, pod: Pod) -> Patch | None:
    """The patch that makes the ``multus-status`` tokens tell what the pod has; ``None`` when they do.

    :raises ValueError: the spec or an annotation is malformed.
    """
    annotations = pod.metadata.annotations
    statuses = parse_network_status(annotations.get(NETWORK_STATUS))
    elements = parse_networks(annotations.get(NETWORKS))
    names = pod_interface_names(vmi.spec, elements, statuses)
    attached = {status.interface for status in statuses}
    before: list[Entry] | None = vmi.status.interfaces
    after = before
    operations: list[Operation] = []
    for interface, _ in secondary(vmi.spec):
        name, link = interface.name, names[interface.name]
        known = after
        if link in attached:
            fields: dict[str, Any] = {"podInterfaceName": link}
            entry = entry_of(after, name)
            if entry is None or MULTUS_STATUS not in tokens(entry) or entry.get("podInterfaceName") != link:
                after = with_token(after, name, MULTUS_STATUS, **fields)
        else:
            after = without_token(after, name, MULTUS_STATUS)
        if (after or []) != (known or []):
            operations.append(operation_for(vmi, interface))
    if not operations:
        return None
    ops: list[Op] = [
        {"op": "test", "path": STATUS_PATH, "value": before},
        {"op": "add", "path": STATUS_PATH, "value": after},
    ]
    return Patch(Target.VMI, "status", ops, tuple(operations))
