"""Checks of the hot-plug status in the key-value bucket against the status derived from the objects.

The controller writes the bucket after the objects change, so one snapshot may show a difference that a second one does
not (:func:`services.cli.doctor.examine.confirmed`).
Next: :mod:`services.controller.projector`, which writes the bucket.
"""

from collections.abc import Iterator

import msgspec

from schemas.bus.hotplug_status import InterfaceHotplugStatus, StatusEntry
from schemas.names import interface_hash
from services.cli.doctor.checks.nics import CheckedVmi
from services.cli.doctor.snapshot import Finding, NotVisible
from services.common.domain.nic import Nic
from services.common.domain.status.stage_history import with_history

PROJECTOR_REPAIR = (
    "the leading controller rewrites the stored hot-plug status at each change of the objects or of the bucket, and "
    "within two minutes; if the difference remains, check whether a controller leads and is connected to NATS"
)


def check_stored_entries(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the stored entry of each NIC equals the status derived from objects and stored stage history."""
    if isinstance(checked.vm_snapshot.hotplug_status, NotVisible):
        return
    by_hash = {stored.hash: stored for stored in checked.vm_snapshot.hotplug_status}
    for nic in checked.nics:
        stored = by_hash.get(interface_hash(nic.name))
        if stored is None:
            nic_status = checked.nic_statuses[nic.name]
            reached = f"the {nic_status.kind} has reached stage {nic_status.stage}"
            message = f"{reached}, but the stored hot-plug status has no entry for the interface"
            yield Finding("HotplugStatusMissing", checked.subject_of(nic.name), message, PROJECTOR_REPAIR)
        elif stored.entry is None:
            message = f"the stored hot-plug status under key {stored.hash} cannot be decoded"
            yield Finding("HotplugStatusDiffers", checked.subject_of(nic.name), message, PROJECTOR_REPAIR)
        else:
            for message in _differences(checked, nic, stored.entry):
                yield Finding("HotplugStatusDiffers", checked.subject_of(nic.name), message, PROJECTOR_REPAIR)


def check_stored_leftovers(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that every stored entry belongs to an interface of the spec or of the template."""
    if isinstance(checked.vm_snapshot.hotplug_status, NotVisible) or isinstance(checked.vm_snapshot.vm, NotVisible):
        return
    known = {interface_hash(interface) for interface in checked.nic_statuses}
    for stored in checked.vm_snapshot.hotplug_status:
        if stored.hash not in known:
            name = stored.entry.status.interface if stored.entry is not None else "cannot be decoded"
            message = f"the stored hot-plug status has an entry under key {stored.hash} ({name}) of no interface"
            yield Finding("HotplugStatusLeftOver", checked.vm_snapshot.subject, message, PROJECTOR_REPAIR)


def _differences(checked: CheckedVmi, nic: Nic, entry: StatusEntry) -> Iterator[str]:
    for kind, stored, derived in (
        ("VMI", entry.vmi_uid, checked.vmi.metadata.uid),
        ("pod", entry.pod_uid, checked.pod.metadata.uid),
    ):
        if stored != derived:
            yield f"the stored hot-plug status is of {kind} {stored or 'none'}, the running {kind} is {derived}"
    objects = with_history(checked.nic_statuses[nic.name], entry.history)
    for field in _compared_fields(checked):
        stored, derived = getattr(entry.status, field), getattr(objects, field)
        if stored != derived:
            name = field.replace("_", " ")
            yield f"{name}: {_shown(derived)} in the objects, {_shown(stored)} in the stored hot-plug status"


def _compared_fields(checked: CheckedVmi) -> Iterator[str]:
    for field in msgspec.structs.fields(InterfaceHotplugStatus):
        # The effect of a restart is derived from the VM.
        if field.name != "at_restart" or not isinstance(checked.vm_snapshot.vm, NotVisible):
            yield field.name


def _shown(value: str | int | tuple[str, ...] | None) -> str:
    if isinstance(value, tuple):
        value = ", ".join(value)
    return str(value) if value not in (None, "") else "none"
