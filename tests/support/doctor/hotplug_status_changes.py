"""Changes of the stored hot-plug status alone, each of which makes a consistent snapshot inconsistent.

Part of `tests.support.doctor.snapshot_changes`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from schemas.bus.hotplug_status import InterfaceHotplugStatus, StatusEntry, StoredEntry
from schemas.names import interface_hash
from schemas.stages import OperationKind, Stage
from services.cli.doctor.snapshot import NotVisible, Snapshot, VmSnapshot
from tests.support.doctor.snapshots import NAD

SnapshotChange = Callable[[Snapshot], Snapshot]

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
"""Fields of an interface's status, with values that differ from those of every settled NIC."""


def nic_changes(m: int, interface: str) -> Iterator[tuple[str, SnapshotChange]]:
    """Yield a description and a function for every change of one NIC's entry."""
    h = interface_hash(interface)
    yield "stored entry gone", change_stored_status(m, lambda entries: [x for x in entries if x.hash != h])
    yield (
        "stored entry unreadable",
        change_stored_status(m, lambda entries: [StoredEntry(h) if x.hash == h else x for x in entries]),
    )
    yield "stored entry of another VMI", change_stored_status(m, _change_entry(h, vmi_uid="other"))
    yield "stored entry of another pod", change_stored_status(m, _change_entry(h, pod_uid=""))
    for field, value in FIELDS.items():
        yield f"stored entry with another {field}", change_stored_status(m, _change_entry_field(h, field, value))


def add_leftover_entry(m: int) -> SnapshotChange:
    """Add an entry of an unknown interface."""
    nic_status = InterfaceHotplugStatus("unknown", NAD, OperationKind.PLUG, Stage.GUEST_ATTACHED, "x")
    return change_stored_status(
        m, lambda entries: [*entries, StoredEntry(interface_hash("unknown"), StatusEntry("x", "y", nic_status))]
    )


def change_stored_status(m: int, change: Callable[[list[StoredEntry]], list[StoredEntry]]) -> SnapshotChange:
    """Change the stored hot-plug status of one VM."""

    def apply(x: VmSnapshot) -> VmSnapshot:
        assert not isinstance(x.hotplug_status, NotVisible)
        return msgspec.structs.replace(x, hotplug_status=tuple(change(list(x.hotplug_status))))

    return change_vm_only(m, apply)


def change_vm_only(m: int, change: Callable[[VmSnapshot], VmSnapshot]) -> SnapshotChange:
    """Change one VM without updating its stored hot-plug status."""
    return lambda w: msgspec.structs.replace(w, vms=tuple(change(x) if i == m else x for i, x in enumerate(w.vms)))


def _change_entry(h: str, **fields: Any) -> Callable[[list[StoredEntry]], list[StoredEntry]]:
    return lambda entries: [
        StoredEntry(h, msgspec.structs.replace(x.entry, **fields)) if x.hash == h and x.entry is not None else x
        for x in entries
    ]


def _change_entry_field(h: str, field: str, value: Any) -> Callable[[list[StoredEntry]], list[StoredEntry]]:
    return lambda entries: [
        StoredEntry(
            h, msgspec.structs.replace(x.entry, status=msgspec.structs.replace(x.entry.status, **{field: value}))
        )
        if x.hash == h and x.entry is not None
        else x
        for x in entries
    ]
