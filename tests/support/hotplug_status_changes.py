"""Every way in which the kept ladder alone can say something else than the objects of a consistent world.

Part of `tests.support.world_changes`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from schemas.hotplug_status import InterfaceHotplugStatus, StatusEntry, StoredEntry
from schemas.names import interface_hash
from schemas.stages import OperationKind, Stage
from services.common.domain.invariants.world import NotVisible, Snapshot, VmSnapshot
from tests.support.worlds import NAD

Change = Callable[[Snapshot], Snapshot]

FIELDS: dict[str, Any] = {
    "stage": Stage.MULTUS_ATTACHED,
    "kind": OperationKind.UNPLUG,
    "failed": "NoFreeSlot",
    "operation": "other",
    "interface": "other",
    "network": "other",
    "waiting_for": Stage.GUEST_ATTACHED,
    "requested_at": None,
    "since": "2026-01-01T00:00:09.000Z",
    "reason": "WaitingForGuestAttached",
    "pod_interface": "net1",
    "mac": "02:ff:00:00:00:01",
    "ips": ("192.0.2.1",),
    "info_source": "multus-status",
    "at_restart": "gone",
}
"""Fields of a rung, and what they are not where a NIC is at rest."""


def of_nic(m: int, interface: str) -> Iterator[tuple[str, Change]]:
    """What may become of one NIC's rung, by what it does."""
    h = interface_hash(interface)
    yield "kept rung gone", hotplug_status(m, lambda kept: [x for x in kept if x.hash != h])
    yield "kept rung unreadable", hotplug_status(m, lambda kept: [StoredEntry(h) if x.hash == h else x for x in kept])
    yield "kept rung of another VMI", hotplug_status(m, _entry(h, vmi_uid="other"))
    yield "kept rung of another pod", hotplug_status(m, _entry(h, pod_uid=""))
    for field, value in FIELDS.items():
        yield f"kept rung with another {field}", hotplug_status(m, _rung(h, field, value))


def left_over(m: int) -> Change:
    """A rung of an interface that nobody knows."""
    nic_status = InterfaceHotplugStatus("stranger", NAD, OperationKind.PLUG, Stage.GUEST_ATTACHED, "x")
    return hotplug_status(
        m, lambda kept: [*kept, StoredEntry(interface_hash("stranger"), StatusEntry("x", "y", nic_status))]
    )


def hotplug_status(m: int, change: Callable[[list[StoredEntry]], list[StoredEntry]]) -> Change:
    """A world with the kept ladder of one machine changed."""

    def on(x: VmSnapshot) -> VmSnapshot:
        assert not isinstance(x.hotplug_status, NotVisible)
        return msgspec.structs.replace(x, hotplug_status=tuple(change(list(x.hotplug_status))))

    return machine_alone(m, on)


def machine_alone(m: int, change: Callable[[VmSnapshot], VmSnapshot]) -> Change:
    """A world with one machine changed, and nothing that would follow from it."""
    return lambda w: msgspec.structs.replace(
        w, machines=tuple(change(x) if i == m else x for i, x in enumerate(w.machines))
    )


def _entry(h: str, **fields: Any) -> Callable[[list[StoredEntry]], list[StoredEntry]]:
    return lambda kept: [
        StoredEntry(h, msgspec.structs.replace(x.entry, **fields)) if x.hash == h and x.entry is not None else x
        for x in kept
    ]


def _rung(h: str, field: str, value: Any) -> Callable[[list[StoredEntry]], list[StoredEntry]]:
    return lambda kept: [
        StoredEntry(
            h, msgspec.structs.replace(x.entry, status=msgspec.structs.replace(x.entry.status, **{field: value}))
        )
        if x.hash == h and x.entry is not None
        else x
        for x in kept
    ]
