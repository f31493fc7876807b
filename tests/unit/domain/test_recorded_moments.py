"""What a user reads at each moment that was recorded of KubeVirt 1.0.1 and 1.9.0: stage, reason and remedy."""

import msgspec
import pytest

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from services.cli.operations.progress import OperationOutcome, OperationProgress, OperationResult
from services.common.domain.kubevirt.migration import LIVE_MIGRATABLE
from services.common.domain.kubevirt.reasons import REASONS
from services.common.domain.kubevirt.strays import find_stray_elements
from services.common.domain.nic import parse_nics
from services.common.domain.operations import find_acting_pod
from services.common.domain.status.hotplug_status import derive_statuses
from tests.support.observed.kubevirt import capabilities
from tests.support.recorded_kubevirt import FOLDER, recorded_pods, recorded_vm, recorded_vmi

WITHOUT_VM = {"v1.9.0-k-back-on-first-node"}
WITHOUT_VMI = {"v1.9.0-b-evicted"}
"""After the VM was shut down and started anew, the recording has the VM and its Events."""


def statuses_at(
    moment: str, *methods: str, now: str | None = None, migratable: bool = True
) -> dict[str, InterfaceHotplugStatus]:
    """Return the status of each interface at a moment, without the complete ones that have nothing to say."""
    vmi, vm = recorded_vmi(moment), None if moment in WITHOUT_VM else recorded_vm(moment)
    if not migratable:
        kept = [condition for condition in vmi.status.conditions if condition.type != LIVE_MIGRATABLE]
        vmi = msgspec.structs.replace(vmi, status=msgspec.structs.replace(vmi.status, conditions=kept))
    nics = parse_nics(vmi, find_acting_pod(vmi, recorded_pods(moment)))
    beside = capabilities(moment.partition("-")[0], *methods)
    return {
        status.interface: status
        for status in derive_statuses(nics, vm, beside, now)
        if status.reason is not None or not status.complete
    }


NOTHING: dict[str, tuple[str, str, str, str | None]] = {}
"""Every interface is attached, and nothing stands against it."""
TABLE = [
    ("v1.0.1-plugged", (), NOTHING),
    ("v1.0.1-starting", (), {"sec1": ("plug", "pod-annotated", "WaitingForMultusAttached", "virtctl migrate")}),
    (
        "v1.0.1-unplugging",
        (),
        {
            "sec1": ("unplug", "requested", "WaitingForGuestDetached", "release it"),
            "hot1": ("unplug", "requested", "LastInterfaceStays", "plug another"),
        },
    ),
    ("v1.9.0-a-plugged", (), NOTHING),
    ("v1.9.0-b-pending", (), {"blue": ("plug", "pod-annotated", "WaitingForMultusOrMigration", "nothing, if a")}),
    ("v1.9.0-b-required", (), {"blue": ("plug", "pod-annotated", "MigrationNotConfigured", "virtctl migrate")}),
    ("v1.9.0-b-required", ("LiveMigrate",), {"blue": ("plug", "pod-annotated", "WillMigrate", None)}),
    ("v1.9.0-b-required", ("Evict",), {"blue": ("plug", "pod-annotated", "WillBeShutDown", "take the change back")}),
    (
        "v1.9.0-b-unplug-required",
        (),
        {"sec1": ("unplug", "guest-detached", "MigrationNotConfigured", "virtctl migrate")},
    ),
    ("v1.9.0-b6-migrating", ("LiveMigrate",), {"slow": ("plug", "pod-annotated", "Migrating", None)}),
    ("v1.9.0-b-migrated", ("LiveMigrate",), NOTHING),
    ("v1.9.0-c-unplug-guest-holds", (), {"blue": ("unplug", "requested", "WaitingForGuestDetached", "release it")}),
    ("v1.9.0-d-last-gone", (), NOTHING),
    ("v1.9.0-f-model-changed", (), {"sec1": ("plug", "guest-attached", "RestartRequired", "take the change back")}),
    (
        "v1.9.0-f-dropped-without-absent",
        (),
        {"fp": ("plug", "guest-attached", "DroppedFromTemplate", "add it again with the same network default/net1")},
    ),
    (
        "v1.9.0-f-plugged-while-restart-required",
        (),
        {"sec1": ("plug", "guest-attached", "RestartRequired", "take the change back")},
    ),
    ("v1.9.0-g-nad-changed", (), {"sec1": ("plug", "requested", "MigrationNotConfigured", "virtctl migrate")}),
    ("v1.9.0-g-nad-changed", ("LiveMigrate",), {"sec1": ("plug", "requested", "WillMigrate", None)}),
    ("v1.9.0-g-nad-migrated", ("LiveMigrate",), NOTHING),
    ("v1.9.0-k-back-on-first-node", (), {"blue": ("plug", "multus-attached", "WaitingForGuestAttached", "SyncFailed")}),
    ("v1.9.0-k-plug-while-migrating", (), {"kplug2": ("plug", "multus-attached", "Migrating", None)}),
    (
        "v1.9.0-l-preference-plugged",
        (),
        {"blue": ("plug", "guest-attached", "RestartRequiredByPreference", "preference's model")},
    ),
    (
        "v1.9.0-m-stray-element",
        (),
        {"pod22c72aa82ce": ("plug", "multus-attached", "StrayElement", "hotnic doctor --fix")},
    ),
    (
        "v1.9.0-n-vmi-patch-refused",
        (),
        {"denyvmi": ("plug", "requested", "HotPlugNetworkInterfaceError", "remove the cause")},
    ),
    (
        "v1.9.0-s-sriov-pending",
        ("LiveMigrate",),
        {
            "sr1": ("plug", "requested", "WillMigrate", None),
            "pod22c72aa82ce": ("plug", "multus-attached", "StrayElement", "hotnic doctor --fix"),
        },
    ),
]


@pytest.mark.parametrize(("moment", "methods", "expected"), TABLE, ids=lambda value: str(value)[:40])
def test_user_reads_stage_reason_and_remedy(
    moment: str, methods: tuple[str, ...], expected: dict[str, tuple[str, str, str, str | None]]
) -> None:
    found = statuses_at(moment, *methods)
    assert {name: (status.kind, status.stage, status.reason) for name, status in found.items()} == {
        name: row[:3] for name, row in expected.items()
    }
    for name, (_, _, reason, remedy) in expected.items():
        assert found[name].message
        assert found[name].docs == f"docs/beside-kubevirt.md#{REASONS[reason].anchor}"
        assert (found[name].remedy is None) if remedy is None else (remedy in str(found[name].remedy))


REQUIRED = {
    "v1.9.0-b-required": "blue",
    "v1.9.0-b-unplug-required": "sec1",
    "v1.9.0-g-nad-changed": "sec1",
    "v1.9.0-s-sriov-pending": "sr1",
}
"""The moments with MigrationRequired, and the interface that requires it; evictionStrategy is None."""


@pytest.mark.parametrize("moment", REQUIRED)
@pytest.mark.parametrize(
    ("methods", "migratable", "reason", "remedy"),
    [
        ((), True, "MigrationNotConfigured", "virtctl migrate"),
        (("LiveMigrate",), True, "WillMigrate", None),
        (("Evict",), True, "WillBeShutDown", "remove Evict"),
        (("LiveMigrate", "Evict"), True, "WillMigrate", None),
        ((), False, "NotMigratable", "restart the VM"),
        (("LiveMigrate",), False, "NotMigratable", "restart the VM"),
        (("Evict",), False, "WillBeShutDown", "remove Evict"),
        (("LiveMigrate", "Evict"), False, "WillBeShutDown", "remove Evict"),
    ],
)
def test_user_reads_what_a_required_migration_leads_to(
    moment: str, methods: tuple[str, ...], migratable: bool, reason: str, remedy: str | None
) -> None:
    status = statuses_at(moment, *methods, migratable=migratable)[REQUIRED[moment]]
    assert (status.complete, status.reason) == (False, reason)
    assert (status.remedy is None) if remedy is None else (remedy in str(status.remedy))


def test_vm_that_was_shut_down_has_the_change_in_its_template() -> None:
    progress = OperationProgress("red", "op", persist=True)
    progress.observe(None, (), recorded_vm("v1.9.0-b-evicted"))
    assert progress.outcome == OperationOutcome(OperationResult.TEMPLATE)


def test_every_recorded_moment_is_in_the_table() -> None:
    recorded = {path.stem for path in FOLDER.glob("*.json")}
    assert {moment for moment, _, _ in TABLE} == recorded - WITHOUT_VMI


def test_messages_name_what_the_objects_say() -> None:
    pending = statuses_at("v1.9.0-b-pending", now="2026-11-28T18:51:40Z")["blue"]
    assert "KubeVirt requires a migration of the VM in 18 s" in str(pending.message)
    refused = statuses_at("v1.9.0-n-vmi-patch-refused")["denyvmi"]
    assert "policy: no NIC of that name" in str(refused.message)
    assert "model" in str(statuses_at("v1.9.0-f-model-changed")["sec1"].message)
    changed = statuses_at("v1.9.0-g-nad-changed")["sec1"]
    assert "from default/net1 to default/net2" in str(changed.message)


def test_stray_elements_belong_to_no_interface() -> None:
    vmi, pods = recorded_vmi("v1.9.0-m-stray-element"), recorded_pods("v1.9.0-m-stray-element")
    (stray,) = find_stray_elements(parse_nics(vmi, find_acting_pod(vmi, pods)))
    assert (stray.link, stray.nad, stray.attached) == ("pod22c72aa82ce", "default/net1", True)
    for moment in ("v1.9.0-a-plugged", "v1.0.1-unplugging", "v1.9.0-b-migrated"):
        vmi, pods = recorded_vmi(moment), recorded_pods(moment)
        assert find_stray_elements(parse_nics(vmi, find_acting_pod(vmi, pods))) == []
