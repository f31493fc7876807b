"""What KubeVirt will do to a VM, told before the change: version, methods, migratability and strategy decide."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.objects import VirtualMachineInstance
from services.api.plan.consequences import ChangeKind, ConsequenceKind, find_consequence, restart_warning
from services.common.domain.kubevirt.capabilities import EVICT, LIVE_MIGRATE, Capabilities
from tests.support.observed import objects
from tests.support.recorded_kubevirt import recorded_vmi

BRIDGE, SRIOV, NAD = ChangeKind.BRIDGE, ChangeKind.SRIOV, ChangeKind.NAD
MIGRATES, WAITS, DOWN = ConsequenceKind.MIGRATES, ConsequenceKind.WAITS, ConsequenceKind.SHUTS_DOWN
BOTH = (LIVE_MIGRATE, EVICT)
NEW = Capabilities(
    version=(1, 9, 0),
    installing=False,
    gate="",
    request_queue=False,
    link_state=True,
    automatic_migration=True,
    nad_change=True,
    removes_last_interface=True,
    always_restart_required=False,
    pod_interface_name=True,
    update_methods=frozenset(),
)
OLD = msgspec.structs.replace(NEW, version=(1, 3, 0), automatic_migration=False, nad_change=False)


def vmi(status: str | None = "True", strategy: str | None = None) -> VirtualMachineInstance:
    fields: dict[str, Any] = {"reason": "DisksNotLiveMigratable"} if status == "False" else {}
    conditions = [{"type": "LiveMigratable", "status": status, **fields}] if status else []
    found = objects.vmi(owned=True, conditions=conditions)
    return msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, eviction_strategy=strategy))


@pytest.mark.parametrize(
    ("capabilities", "methods", "running", "change", "kind", "text"),
    [
        (NEW, (LIVE_MIGRATE,), vmi(), BRIDGE, MIGRATES, "about 25 s"),
        (NEW, (LIVE_MIGRATE,), vmi(), SRIOV, MIGRATES, "about 5 s"),
        (NEW, BOTH, vmi(), NAD, MIGRATES, "about 5 s"),
        (NEW, (LIVE_MIGRATE,), vmi("False"), BRIDGE, WAITS, "DisksNotLiveMigratable"),
        (NEW, (LIVE_MIGRATE,), vmi(None), BRIDGE, WAITS, "no condition LiveMigratable"),
        (NEW, (), vmi(), BRIDGE, WAITS, "workloadUpdateMethods in the KubeVirt object is empty"),
        (NEW, BOTH, vmi("False"), BRIDGE, DOWN, "DisksNotLiveMigratable"),
        (NEW, BOTH, vmi("False", "None"), NAD, DOWN, "evictionStrategy is None"),
        (NEW, BOTH, vmi("False", "LiveMigrateIfPossible"), SRIOV, DOWN, "LiveMigrateIfPossible"),
        (NEW, BOTH, vmi("False", "LiveMigrate"), BRIDGE, WAITS, "DisksNotLiveMigratable"),
        (NEW, (EVICT,), vmi("True"), BRIDGE, DOWN, "Evict only"),
        (NEW, (EVICT,), vmi("True", "LiveMigrate"), BRIDGE, MIGRATES, "evicts"),
        (OLD, BOTH, vmi(), BRIDGE, WAITS, "until the VM is migrated"),
        (OLD, BOTH, vmi("False"), SRIOV, WAITS, "which it cannot be: DisksNotLiveMigratable"),
        (OLD, BOTH, vmi(), NAD, WAITS, "after a restart"),
    ],
)
def test_the_consequence_of_a_change_that_is_not_made_in_place(
    capabilities: Capabilities,
    methods: tuple[str, ...],
    running: VirtualMachineInstance,
    change: ChangeKind,
    kind: ConsequenceKind,
    text: str,
) -> None:
    capabilities = msgspec.structs.replace(capabilities, update_methods=frozenset(methods))
    found = find_consequence(capabilities, running, change, served=change is not BRIDGE)
    assert found is not None
    assert (found.kind, text in found.sentence) == (kind, True), found.sentence


def test_a_bridge_interface_is_plugged_in_place_where_a_pod_attaches_it() -> None:
    assert find_consequence(NEW, vmi("False"), BRIDGE, served=True) is None


def test_a_recorded_vmi_that_kubevirt_migrated_is_told_to_migrate() -> None:
    capabilities = msgspec.structs.replace(NEW, update_methods=frozenset(BOTH))
    found = find_consequence(capabilities, recorded_vmi("v1.9.0-b-required"), BRIDGE, served=False)
    assert found is not None
    assert found.kind is MIGRATES


def test_versions_that_always_set_restart_required_are_named() -> None:
    assert restart_warning(NEW) == ""
    assert "KubeVirt 1.3 sets" in restart_warning(msgspec.structs.replace(OLD, always_restart_required=True))
