"""Checks of the ladder that the bus keeps against the one that objects tell: a rung for each NIC at rest, and no other.

The bucket is written after the objects, so what has just changed may differ in one look, not in two. Next:
:mod:`services.controller.projector`, who writes it.
"""

from collections.abc import Iterator

import msgspec

from schemas.hotplug_status import InterfaceHotplugStatus, StatusEntry
from schemas.names import interface_hash
from services.common.domain.invariants.nics import CheckedNic, CheckedVmi, hotplug_status_of
from services.common.domain.invariants.world import Finding, NotVisible
from services.common.domain.stage_history import with_history

PROJECTOR = (
    "the controller writes the ladder anew at each change of objects or bucket, and within a minute; "
    "if it stays, see whether a controller leads and reaches the bus"
)


def nic_statuses(case: CheckedVmi) -> Iterator[Finding]:
    """The kept rung of each NIC at rest says what objects say, with the news that stand beside it."""
    if isinstance(case.machine.hotplug_status, NotVisible):
        return
    held = {stored.hash: stored for stored in case.machine.hotplug_status}
    for nic in case.nics:
        stored = held.get(interface_hash(nic.name))
        if stored is None:
            what = f"its {nic.nic_status.kind} has reached {nic.nic_status.stage}, the kept ladder has no rung for it"
            yield Finding("HotplugStatusMissing", nic.subject, what, PROJECTOR)
        elif stored.entry is None:
            what = f"what the kept ladder has under {stored.hash} cannot be read"
            yield Finding("HotplugStatusDiffers", nic.subject, what, PROJECTOR)
        else:
            for what in _differences(case, nic, stored.entry):
                yield Finding("HotplugStatusDiffers", nic.subject, what, PROJECTOR)


def left_over(case: CheckedVmi) -> Iterator[Finding]:
    """The kept ladder has no rung of an interface that neither the spec nor a wish of the template has."""
    if isinstance(case.machine.hotplug_status, NotVisible) or isinstance(case.machine.vm, NotVisible):
        return
    mine = {interface_hash(nic_status.interface) for nic_status in hotplug_status_of(case.machine, case.vmi, case.pod)}
    for stored in case.machine.hotplug_status:
        if stored.hash not in mine:
            of = stored.entry.status.interface if stored.entry is not None else "something unreadable"
            what = f"the kept ladder has a rung under {stored.hash} ({of}), which belongs to no interface"
            yield Finding("HotplugStatusLeftOver", case.machine.subject, what, PROJECTOR)


def _differences(case: CheckedVmi, nic: CheckedNic, entry: StatusEntry) -> Iterator[str]:
    for what, stored, mine in (
        ("VMI", entry.vmi_uid, case.vmi.metadata.uid),
        ("pod", entry.pod_uid, case.pod.metadata.uid),
    ):
        if stored != mine:
            yield f"the kept rung speaks of {what} {stored or 'none'}, it runs as {mine}"
    objects = with_history(nic.nic_status, entry.history)
    for field in _compared(case):
        stored, mine = getattr(entry.status, field), getattr(objects, field)
        if stored != mine:
            yield f"its {field.replace('_', ' ')} is {_shown(mine)} by objects, {_shown(stored)} in the kept ladder"


def _compared(case: CheckedVmi) -> Iterator[str]:
    for field in msgspec.structs.fields(InterfaceHotplugStatus):
        # What a restart brings is told by the VM.
        if field.name != "at_restart" or not isinstance(case.machine.vm, NotVisible):
            yield field.name


def _shown(value: str | int | tuple[str, ...] | None) -> str:
    if isinstance(value, tuple):
        value = ", ".join(value)
    return str(value) if value not in (None, "") else "none"
