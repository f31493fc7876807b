"""What KubeVirt will do to a VM, told before the change: version, methods, migratability and strategy decide."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.objects import VirtualMachineInstance
from services.api.plan.consequences import find_consequence, restart_warning
from services.common.domain.kubevirt.capabilities import EVICT, LIVE_MIGRATE, Capabilities
from services.common.domain.kubevirt.migration import MigrationOutcome
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities as capabilities_of
from tests.support.recorded_kubevirt import recorded_vmi

MIGRATES, DOWN, STUCK = MigrationOutcome.MIGRATES, MigrationOutcome.SHUTS_DOWN, MigrationOutcome.NOT_MIGRATABLE
BOTH = (LIVE_MIGRATE, EVICT)
NEW, OLD = capabilities_of("v1.9.0"), capabilities_of("v1.3.0")


def vmi(status: str | None = "True", strategy: str | None = None) -> VirtualMachineInstance:
    fields: dict[str, Any] = {"reason": "DisksNotLiveMigratable"} if status == "False" else {}
    conditions = [{"type": "LiveMigratable", "status": status, **fields}] if status else []
    found = objects.vmi(owned=True, conditions=conditions)
    return msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, eviction_strategy=strategy))


@pytest.mark.parametrize(
    ("capabilities", "methods", "running", "outcome", "text"),
    [
        (NEW, (LIVE_MIGRATE,), vmi(), MIGRATES, "about 25 s"),
        (NEW, (LIVE_MIGRATE,), vmi("False"), STUCK, "DisksNotLiveMigratable"),
        (NEW, (LIVE_MIGRATE,), vmi(None), STUCK, "no condition LiveMigratable"),
        (NEW, (), vmi(), MigrationOutcome.NO_METHOD, "workloadUpdateMethods in the KubeVirt object is empty"),
        (NEW, BOTH, vmi("False"), DOWN, "DisksNotLiveMigratable"),
        (NEW, BOTH, vmi("False", "None"), DOWN, "evictionStrategy is None"),
        (NEW, BOTH, vmi("False", "LiveMigrateIfPossible"), DOWN, "LiveMigrateIfPossible"),
        (NEW, BOTH, vmi("False", "LiveMigrate"), STUCK, "DisksNotLiveMigratable"),
        (NEW, (EVICT,), vmi("True"), DOWN, "LiveMigrate is not allowed"),
        (NEW, (EVICT,), vmi("True", "LiveMigrate"), MIGRATES, "evicts"),
        (OLD, BOTH, vmi(), MigrationOutcome.BY_HAND, "until the VM is migrated"),
        (OLD, BOTH, vmi("False"), STUCK, "it cannot be migrated: DisksNotLiveMigratable"),
    ],
)
def test_the_consequence_of_a_change_that_is_not_made_in_place(
    capabilities: Capabilities,
    methods: tuple[str, ...],
    running: VirtualMachineInstance,
    outcome: MigrationOutcome,
    text: str,
) -> None:
    capabilities = msgspec.structs.replace(capabilities, update_methods=frozenset(methods))
    found = find_consequence(capabilities, running, served=False)
    assert found is not None
    assert (found.outcome, text in found.sentence) == (outcome, True), found.sentence


def test_the_eviction_strategy_of_the_cluster_counts_where_the_vm_has_none() -> None:
    capabilities = msgspec.structs.replace(NEW, update_methods=frozenset(BOTH), eviction_strategy="LiveMigrate")
    found = find_consequence(capabilities, vmi("False"), served=False)
    assert found is not None
    assert found.outcome is STUCK


def test_an_interface_is_plugged_in_place_where_a_pod_attaches_it() -> None:
    assert find_consequence(NEW, vmi("False"), served=True) is None


def test_a_recorded_vmi_that_kubevirt_migrated_is_told_to_migrate() -> None:
    capabilities = msgspec.structs.replace(NEW, update_methods=frozenset(BOTH))
    found = find_consequence(capabilities, recorded_vmi("v1.9.0-b-required"), served=False)
    assert found is not None
    assert found.outcome is MIGRATES


def test_versions_that_always_set_restart_required_are_named() -> None:
    assert restart_warning(NEW) == ""
    assert "KubeVirt 1.3 sets" in restart_warning(msgspec.structs.replace(OLD, always_restart_required=True))
