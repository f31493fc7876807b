"""Checks of the ladder that the bus keeps against the one that objects tell: a rung for each NIC at rest, and no other.

The bucket is written after the objects, so what has just changed may differ in one look, not in two. Next:
:mod:`services.controller.projector`, who writes it.
"""

from collections.abc import Iterator

import msgspec

from schemas.ladder import Entry, Rung
from schemas.names import interface_hash
from services.common.domain.invariants.nics import Case, Nic, rungs_of
from services.common.domain.invariants.world import Disagreement, Unknown
from services.common.domain.news import told

PROJECTOR = (
    "the controller writes the ladder anew at each change of objects or bucket, and within a minute; "
    "if it stays, see whether a controller leads and reaches the bus"
)


def rungs(case: Case) -> Iterator[Disagreement]:
    """The kept rung of each NIC at rest says what objects say, with the news that stand beside it."""
    if isinstance(case.machine.ladder, Unknown):
        return
    held = {kept.hash: kept for kept in case.machine.ladder}
    for nic in case.nics:
        kept = held.get(interface_hash(nic.name))
        if kept is None:
            what = f"its {nic.rung.kind} has reached {nic.rung.stage}, the kept ladder has no rung for it"
            yield Disagreement("RungMissing", nic.subject, what, PROJECTOR)
        elif kept.entry is None:
            what = f"what the kept ladder has under {kept.hash} cannot be read"
            yield Disagreement("RungDiffers", nic.subject, what, PROJECTOR)
        else:
            for what in _differences(case, nic, kept.entry):
                yield Disagreement("RungDiffers", nic.subject, what, PROJECTOR)


def left_over(case: Case) -> Iterator[Disagreement]:
    """The kept ladder has no rung of an interface that neither the spec nor a wish of the template has."""
    if isinstance(case.machine.ladder, Unknown) or isinstance(case.machine.vm, Unknown):
        return
    mine = {interface_hash(rung.interface) for rung in rungs_of(case.machine, case.vmi, case.pod)}
    for kept in case.machine.ladder:
        if kept.hash not in mine:
            of = kept.entry.rung.interface if kept.entry is not None else "something unreadable"
            what = f"the kept ladder has a rung under {kept.hash} ({of}), which belongs to no interface"
            yield Disagreement("RungLeftOver", case.machine.subject, what, PROJECTOR)


def _differences(case: Case, nic: Nic, entry: Entry) -> Iterator[str]:
    for what, kept, mine in (
        ("VMI", entry.vmi_uid, case.vmi.metadata.uid),
        ("pod", entry.pod_uid, case.pod.metadata.uid),
    ):
        if kept != mine:
            yield f"the kept rung speaks of {what} {kept or 'none'}, it runs as {mine}"
    objects = told(nic.rung, entry.news)
    for field in _compared(case):
        kept, mine = getattr(entry.rung, field), getattr(objects, field)
        if kept != mine:
            yield f"its {field.replace('_', ' ')} is {_shown(mine)} by objects, {_shown(kept)} in the kept ladder"


def _compared(case: Case) -> Iterator[str]:
    for field in msgspec.structs.fields(Rung):
        # What a restart brings is told by the VM.
        if field.name != "at_restart" or not isinstance(case.machine.vm, Unknown):
            yield field.name


def _shown(value: str | int | tuple[str, ...] | None) -> str:
    if isinstance(value, tuple):
        value = ", ".join(value)
    return str(value) if value not in (None, "") else "none"
