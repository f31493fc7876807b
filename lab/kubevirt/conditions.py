"""The conditions of VMs and VMIs that concern interfaces, and what follows from MigrationRequired.

All functions are pure; a condition list is decoded JSON. Next: `objects.py`, the objects that the player creates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from lab.kubevirt.annotations import read_network_status
from lab.kubevirt.interfaces import DOMAIN, MULTUS_STATUS, tokens_of
from lab.kubevirt.specs import ABSENT, is_secondary, lists_of
from lab.node.objects import is_true
from schemas.names import pod_interface

Object = dict[str, Any]

MIGRATION_REQUIRED: Final = "MigrationRequired"
RESTART_REQUIRED: Final = "RestartRequired"
FAILURE: Final = "Failure"
PENDING: Final = "AutoMigrationPending"
DUE: Final = "AutoMigrationDueToLiveUpdate"
RESTART_MESSAGE: Final = "a non-live-updatable field was changed in the template spec"
HOTPLUG_ERROR: Final = "HotPlugNetworkInterfaceError"
MIRRORED: Final = ("Ready", "AgentConnected", "LiveMigratable", MIGRATION_REQUIRED)
"""The VMI's conditions that the VM shows, too."""

Need = Literal["none", "pending", "immediate"]
Consequence = Literal["migrate", "evict", "evacuate", "nothing"]


def condition(kind: str, value: bool, now: str, *, reason: str = "", message: str = "") -> Object:
    """Return a condition as KubeVirt writes it."""
    entry: Object = {"type": kind, "status": "True" if value else "False"}
    entry |= {"lastProbeTime": None, "lastTransitionTime": now}
    return entry | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})


def find_condition(conditions: Iterable[Object] | None, kind: str) -> Object | None:
    """Return the condition of that type."""
    return next((item for item in conditions or () if item.get("type") == kind), None)


def with_condition(conditions: Sequence[Object] | None, kind: str, entry: Object | None) -> list[Object]:
    """Return the conditions with one replaced at its place, appended, or removed (`None`)."""
    result, done = [], entry is None
    for item in conditions or ():
        if item.get("type") != kind:
            result.append(item)
        elif entry is not None:
            done = True
            same = {**item, "lastTransitionTime": entry["lastTransitionTime"]} == entry
            result.append(item if same else entry)
    return result if done or entry is None else [*result, entry]


def is_migrating(vmi: Object) -> bool:
    """Return whether a migration of a VMI is unfinished."""
    state = vmi.get("status", {}).get("migrationState")
    return bool(state) and not (state.get("completed") or state.get("failed"))


def migration_need(vmi: Object, pod: Object) -> Need:
    """Return whether the interfaces of a running VMI need a migration: at once, after the grace, or not."""
    lists, namespace = lists_of(vmi["spec"]), vmi["metadata"]["namespace"]
    entries = {entry.get("name"): entry for entry in vmi.get("status", {}).get("interfaces") or []}
    attached = {item.get("interface"): str(item.get("name")) for item in read_network_status(pod)}
    need: Need = "none"
    for interface in lists.interfaces:
        network, name = lists.network(interface["name"]), interface["name"]
        if network is None or not is_secondary(network):
            continue
        entry = entries.get(name)
        if interface.get("state") == ABSENT:
            tokens = tokens_of(entry or {})
            if MULTUS_STATUS in tokens and DOMAIN not in tokens:
                need = "pending"
        elif entry is None:
            if "sriov" in interface:
                return "immediate"
            need = "pending"
        elif (nad := attached.get(pod_interface(name))) is not None:
            reference = str(network["multus"]["networkName"])
            if nad != (reference if "/" in reference else f"{namespace}/{reference}"):
                return "immediate"
    return need


def migration_condition(need: Need, before: Object | None, waited: bool, now: str) -> Object | None:
    """Return the condition MigrationRequired; `None` for none.

    :param before: the present condition; once it is true it is not set to false again.
    :param waited: whether the grace is over.
    """
    if need == "none":
        return None
    if before is not None and before.get("status") == "True":
        return before
    if need == "immediate" or waited:
        return condition(MIGRATION_REQUIRED, True, now, reason=DUE)
    return before or condition(MIGRATION_REQUIRED, False, now, reason=PENDING)


def consequence(vmi: Object, methods: Sequence[str]) -> Consequence:
    """Return what the workload updater does with a VMI that needs a migration.

    :param methods: the KubeVirt object's `workloadUpdateMethods`.
    """
    if "LiveMigrate" in methods and is_true(vmi, "LiveMigratable"):
        return "migrate"
    if "Evict" not in methods:
        return "nothing"
    # The eviction webhook makes an evacuation of it.
    return "evacuate" if str(vmi["spec"].get("evictionStrategy", "")).startswith("LiveMigrate") else "evict"


def vm_conditions(vm: Object, vmi: Object | None, restart: bool, failure: str, now: str) -> list[Object]:
    """Return the conditions of a VM: the VMI's that it shows, RestartRequired and Failure. All others are dropped.

    :param failure: the text of the last failure to change the VMI; empty if there was none.
    """
    before = vm.get("status", {}).get("conditions") or []
    theirs = vmi.get("status", {}).get("conditions") if vmi is not None else None
    result: list[Object] = []
    for kind in MIRRORED:
        found = find_condition(theirs, kind)
        if found is not None:
            result = with_condition(result, kind, found)
        elif kind == "Ready":
            unready = condition(kind, False, now, reason="VMINotExists", message="VMI does not exist")
            result = with_condition(_only(before, kind), kind, unready)
    wanted = (
        (RESTART_REQUIRED, condition(RESTART_REQUIRED, True, now, message=RESTART_MESSAGE) if restart else None),
        (FAILURE, condition(FAILURE, True, now, reason=HOTPLUG_ERROR, message=failure) if failure else None),
    )
    for kind, entry in wanted:
        result += with_condition(_only(before, kind), kind, entry)
    return result


def _only(conditions: Iterable[Object], kind: str) -> list[Object]:
    return [item for item in conditions if item.get("type") == kind]
