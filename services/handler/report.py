"""What the VMI does not say yet of its cards, its slots and its operations: one guarded patch. Pure.

Domain and guest agent tokens follow the domain; in the same patch an unplug that is done gets ``released``, and a plug
that has ended for good ``failed``. Next: :mod:`services.handler.apply`, which writes it and publishes what it says.
"""

from collections.abc import Collection, Iterator, Mapping

import msgspec

from schemas.events import ConfirmedBy
from schemas.kube import VirtualMachineInstance
from schemas.names import device_alias
from schemas.operations import NIC_SLOTS, NicSlots, Operation, encode, nic_slots_of, operation_key
from services.common.domain.spec_patch import Op, annotate, annotation_path
from services.common.domain.status_interfaces import DOMAIN, GUEST_AGENT, Entry, tokens
from services.handler.nics import attached_nics, leaving_nics
from services.handler.plan import Observed, queues_of
from services.handler.records import Nic
from services.handler.status import entries, gained

STATUS_PATH = "/status/interfaces"


class Report(msgspec.Struct, frozen=True):
    """Patch the VMI, then publish ``guest-attached`` and ``guest-detached`` for the NICs it tells something new of.

    :ivar ops: empty where only a driver was seen: a VMI's status has no word for that.
    """

    ops: list[Op]
    confirmed: list[tuple[Nic, ConfirmedBy]]
    released: list[Nic]


def report(
    observed: Observed, released: Collection[str] = (), failed: Mapping[str, str] | None = None
) -> Report | None:
    """What the VMI does not say yet; ``None`` when it says all.

    :param released: interfaces whose wiring has been undone just now.
    :param failed: interfaces whose plug has ended for good, and the reason.
    :raises Reject: spec or annotations cannot be understood.
    """
    vmi, pod, guest = observed.vmi, observed.pod, observed.guest
    nics = {nic.name: nic for nic in attached_nics(vmi, pod)}
    networks = {network.name: network for network in vmi.spec.network_items()}
    names = [interface.name for interface in vmi.spec.interface_items()]
    primary = next((name for name in names if name in networks and networks[name].pod is not None), None)
    before = vmi.status.interfaces
    pods = {name: nic.names.nic for name, nic in nics.items()}
    after = entries(before, names, pods, guest, observed.agent, queues=queues_of(observed), primary=primary)
    ops: list[Op] = []
    if after != (before or []):
        ops += [
            {"op": "test", "path": STATUS_PATH, "value": before},
            {"op": "add", "path": STATUS_PATH, "value": after},
        ]
    slots = NicSlots(free=len(guest.free_slots), nics=len(guest.cards), pod_uid=pod.metadata.uid)
    let_go = [
        _with(nic, released=pod.metadata.uid)
        for nic in leaving_nics(vmi, pod)
        if nic.name in released and nic.operation.released != pod.metadata.uid
    ]
    ended = [_with(nics[name], failed=reason) for name, reason in (failed or {}).items() if name in nics]
    ops += _annotations(vmi, slots, [nic.operation for nic in (*let_go, *ended)])
    confirmed = [(nics[name], by) for name, by in _confirmed(before, after, observed) if name in nics]
    if ops:
        ops.insert(0, {"op": "test", "path": "/metadata/uid", "value": vmi.metadata.uid})
    return Report(ops, confirmed, let_go) if ops or confirmed else None


def _confirmed(before: list[Entry] | None, after: list[Entry], observed: Observed) -> Iterator[tuple[str, ConfirmedBy]]:
    """What is known of a card now and was not: of several things at once, only the surest."""
    by_agent, by_device = gained(before, after, GUEST_AGENT), gained(before, after, DOMAIN)
    for entry in after:
        name = entry.get("name", "")
        card = observed.guest.cards.get(device_alias(name)) if name else None
        if name in by_agent:
            yield name, ConfirmedBy.GUEST_AGENT
        elif name in observed.unconfirmed and card is not None and card.driven and GUEST_AGENT not in tokens(entry):
            yield name, ConfirmedBy.DRIVER
        elif name in by_device:
            yield name, ConfirmedBy.DEVICE


def _with(nic: Nic, *, released: str | None = None, failed: str | None = None) -> Nic:
    """The NIC with its operation as it will stand: the annotation's, or the derived one, which is written down then."""
    operation = nic.operation
    operation = msgspec.structs.replace(
        operation, released=released or operation.released, failed=failed or operation.failed
    )
    return msgspec.structs.replace(nic, operation=operation)


def _annotations(vmi: VirtualMachineInstance, slots: NicSlots, operations: list[Operation]) -> list[Op]:
    """Only over the very operations that were observed: the wish may have changed meanwhile."""
    annotations, version = vmi.metadata.annotations, vmi.metadata.resource_version
    changes: dict[str, str | None] = {}
    guards: list[Op] = []
    if slots != nic_slots_of(annotations):
        changes[NIC_SLOTS] = encode(slots)
    for operation in operations:
        key = operation_key(operation.interface)
        changes[key] = encode(operation)
        guards.append(
            {"op": "test", "path": annotation_path(key), "value": annotations[key]}
            if key in annotations
            else {"op": "test", "path": "/metadata/resourceVersion", "value": version}
        )
    return guards + annotate(annotations, version, changes) if changes else []
