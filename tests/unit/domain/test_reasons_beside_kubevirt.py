"""Reasons beside KubeVirt that no recording has: versions, settings of KubeVirt, and the requests of 1.0."""

from typing import Any

import msgspec
import pytest

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, NetworkStatus, encode_network_status
from schemas.kubernetes.objects import Condition, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.migration import MigrationOutcome, find_migration_outcome
from services.common.domain.kubevirt.reasons import TABLE, explain
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities

NIC, ABSENT = objects.nic("iface1"), objects.nic("iface1", state="absent")
NEWEST = capabilities("v1.9.0")
QUEUE = [
    {"addInterfaceOptions": {"networkAttachmentDefinitionName": "net1", "name": "poison"}},
    {"addInterfaceOptions": {"networkAttachmentDefinitionName": "net2", "name": "iface1"}},
    {"removeInterfaceOptions": {"name": "iface2"}},
]
FAILURE = Condition("Failure", "True", "HotPlugNetworkInterfaceError", "the webhook refuses it")
LINKS = {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", pod_interface("iface1"))])}


def with_status(
    vm: VirtualMachine, *conditions: Condition, queue: list[dict[str, Any]] | None = None
) -> VirtualMachine:
    status = msgspec.structs.replace(vm.status, conditions=list(conditions), interface_requests=queue)
    return msgspec.structs.replace(vm, status=status)


def derive(
    vmi: VirtualMachineInstance, vm: VirtualMachine | None, beside: Capabilities, **annotations: str
) -> dict[str, InterfaceHotplugStatus]:
    pod = objects.pod(LINKS | annotations)
    return {found.interface: found for found in derive_statuses(parse_nics(vmi, pod), vm, beside)}


def attached(*nics: Any, **fields: Any) -> VirtualMachineInstance:
    status = [{"name": "iface1", "infoSource": "domain, multus-status"}]
    return objects.vmi(*(nics or (NIC,)), status=status, owned=True, **fields)


RESTART = Condition("RestartRequired", "True")
BINDING = ({"name": "iface1", "macvtap": {}}, NIC[1])
TEMPLATE_AND_KUBEVIRT = [
    (objects.vm(NIC), NEWEST, "WaitingForKubeVirt", "copy the change"),
    (objects.vm(NIC), msgspec.structs.replace(NEWEST, installing=True), "KubeVirtInstalling", "being installed"),
    (objects.vm(NIC), msgspec.structs.replace(NEWEST, gate="HotplugNICs"), "HotplugGateOff", "HotplugNICs"),
    (objects.vm(NIC), capabilities("v1.0.1"), "TemplateNotFollowed", "follows requests"),
    (objects.vm(BINDING), NEWEST, "BindingNeedsRestart", "bridge binding"),
    (with_status(objects.vm(NIC), FAILURE), NEWEST, "HotPlugNetworkInterfaceError", "the webhook refuses it"),
]


@pytest.mark.parametrize(("vm", "beside", "reason", "words"), TEMPLATE_AND_KUBEVIRT, ids=lambda value: str(value)[:24])
def test_change_that_only_the_template_has(vm: VirtualMachine, beside: Capabilities, reason: str, words: str) -> None:
    entry = Operation("plug", OperationKind.PLUG, "iface1", requested_at="2026-01-01T00:00:00Z", vm=objects.VM_UID)
    vmi = objects.vmi(owned=True, annotations={operation_key("iface1"): encode_annotation(entry)})
    found = derive(vmi, vm, beside)["iface1"]
    assert (found.reason, found.operation, found.requested_at) == (reason, "plug", "2026-01-01T00:00:00Z")
    assert words in str(found.message)


def test_queue_of_requests_is_shown_and_a_failing_request_blocks_the_later_ones() -> None:
    beside, vmi = capabilities("v1.0.1"), objects.vmi(objects.nic("iface2"), owned=True)
    vm = objects.vm(objects.nic("iface2"))
    waiting = derive(vmi, with_status(vm, queue=QUEUE), beside)
    assert {name: (one.kind, one.reason) for name, one in waiting.items()} == {
        "iface2": (OperationKind.UNPLUG, "RequestQueued"),
        "poison": (OperationKind.PLUG, "RequestQueued"),
        "iface1": (OperationKind.PLUG, "RequestQueued"),
    }
    blocked = derive(vmi, with_status(vm, FAILURE, queue=QUEUE), beside)
    assert {name: one.reason for name, one in blocked.items()} == {
        "iface2": "RequestQueueBlocked",
        "poison": "HotPlugNetworkInterfaceError",
        "iface1": "RequestQueueBlocked",
    }
    assert "about interface poison" in str(blocked["iface1"].message)
    assert blocked["iface1"].network == "net2"
    followed = objects.vmi(objects.nic("iface2", state="absent"), NIC, owned=True)
    assert [one.reason for one in derive(followed, with_status(vm, queue=QUEUE[1:]), beside).values()] == [
        "WaitingForKubeVirt",
        "WaitingForGuestAttached",
    ]


@pytest.mark.parametrize(
    ("vmi", "vm", "beside", "reason"),
    [
        (attached(), objects.vm(NIC), NEWEST, None),
        (attached(), with_status(objects.vm(NIC), RESTART), NEWEST, None),
        (attached(), objects.vm(), NEWEST, "DroppedFromTemplate"),
        (attached(ABSENT), objects.vm(NIC), NEWEST, "ComesBack"),
        (attached(ABSENT), objects.vm(ABSENT), capabilities("v1.1.0"), "WaitingForGuestDetached"),
        (attached(phase="Succeeded"), objects.vm(NIC), NEWEST, None),
        (objects.vmi(NIC, phase="Scheduled", owned=True), objects.vm(NIC), NEWEST, "VmiNotRunning"),
    ],
    ids=["at rest", "restart for another field", "dropped", "comes back", "guest holds", "ended", "starting"],
)
def test_interface_of_the_vmi(
    vmi: VirtualMachineInstance, vm: VirtualMachine, beside: Capabilities, reason: str | None
) -> None:
    assert derive(vmi, vm, beside)["iface1"].reason == reason


def test_changed_network_is_pending_until_the_vmi_has_it() -> None:
    vm = objects.vm(objects.nic("iface1", "net2"))
    found = derive(attached(), vm, NEWEST)["iface1"]
    assert (found.network, found.complete, found.reason) == ("net2", False, "WaitingForKubeVirt")
    without = derive(attached(), vm, capabilities("v1.7.0"))["iface1"]
    assert (without.network, without.complete, without.at_restart) == ("net1", True, "changed")


def test_every_change_requires_a_restart_of_some_versions() -> None:
    entry = Operation("plug", OperationKind.PLUG, "iface1", vm=objects.VM_UID)
    vmi = attached(annotations={operation_key("iface1"): encode_annotation(entry)})
    vm = with_status(objects.vm(NIC), RESTART)
    assert derive(vmi, vm, capabilities("v1.3.0"))["iface1"].reason == "RestartRequiredAlways"
    assert derive(vmi, vm, capabilities("v1.5.1"))["iface1"].reason is None


def test_unplug_before_any_interface_has_a_name_in_the_pod_waits_for_one() -> None:
    vmi, vm = objects.vmi(NIC, owned=True), objects.vm(ABSENT)
    named = objects.vmi(NIC, owned=True, status=[{"name": "iface1", "podInterfaceName": "pod7e0055a6880"}])
    assert derive(vmi, vm, capabilities("v1.4.0"))["iface1"].reason == "PodNamesUnknown"
    assert derive(vmi, vm, capabilities("v1.3.0"))["iface1"].reason == "WaitingForKubeVirt"
    assert derive(named, vm, NEWEST)["iface1"].reason == "WaitingForKubeVirt"


def test_ordinal_names_are_not_unplugged() -> None:
    entry = Operation("unplug", OperationKind.UNPLUG, "iface1", vm=objects.VM_UID)
    vmi = attached(annotations={unplug_key("iface1"): encode_annotation(entry)})
    status = encode_network_status([NetworkStatus("default/net1", "net1")])
    annotations = {NETWORKS: "default/net1@net1", NETWORK_STATUS: status}
    found = derive(vmi, objects.vm(ABSENT), NEWEST, **annotations)["iface1"]
    assert (found.operation, found.reason) == ("unplug", "OrdinalInterfaceNames")


def test_hashed_name_of_an_interface_is_no_stray_in_a_pod_with_ordinal_names() -> None:
    elements = f"default/net1@net1,default/net1@{pod_interface('iface1')},default/net1@{pod_interface('gone')}"
    found = derive(attached(), objects.vm(NIC), NEWEST, **{NETWORKS: elements})
    assert [name for name, one in found.items() if one.reason == "StrayElement"] == [pod_interface("gone")]


def test_interface_that_was_plugged_during_a_migration_is_not_in_the_new_pod_yet() -> None:
    entry = Operation("plug", OperationKind.PLUG, "iface1", requested_at="2026-01-01T00:00:05Z", vm=objects.VM_UID)
    migration = {"completed": True, "targetPod": objects.pod().metadata.name, "endTimestamp": "2026-01-01T00:00:09Z"}
    vmi = attached(annotations={operation_key("iface1"): encode_annotation(entry)}, migrationState=migration)
    (found,) = derive_statuses(parse_nics(vmi, objects.pod()), objects.vm(NIC), NEWEST)
    assert (found.operation, found.stage, found.reason) == ("plug", Stage.REQUESTED, "Migrated")


YES, NO = Condition("LiveMigratable", "True"), Condition("LiveMigratable", "False", message="a host device")


@pytest.mark.parametrize(
    ("version", "methods", "condition", "strategy", "outcome"),
    [
        ("v1.9.0", ("LiveMigrate",), YES, None, MigrationOutcome.MIGRATES),
        ("v1.9.0", ("LiveMigrate", "Evict"), YES, None, MigrationOutcome.MIGRATES),
        ("v1.9.0", ("LiveMigrate",), NO, None, MigrationOutcome.NOT_MIGRATABLE),
        ("v1.9.0", ("LiveMigrate",), None, None, MigrationOutcome.NOT_MIGRATABLE),
        ("v1.9.0", (), YES, None, MigrationOutcome.NO_METHOD),
        ("v1.9.0", (), NO, None, MigrationOutcome.NOT_MIGRATABLE),
        ("v1.9.0", ("Evict",), YES, None, MigrationOutcome.SHUTS_DOWN),
        ("v1.9.0", ("Evict",), YES, "LiveMigrate", MigrationOutcome.MIGRATES),
        ("v1.9.0", ("Evict",), YES, "LiveMigrateIfPossible", MigrationOutcome.MIGRATES),
        ("v1.9.0", ("LiveMigrate", "Evict"), NO, "None", MigrationOutcome.SHUTS_DOWN),
        ("v1.9.0", ("LiveMigrate", "Evict"), NO, "LiveMigrateIfPossible", MigrationOutcome.SHUTS_DOWN),
        ("v1.9.0", ("LiveMigrate", "Evict"), NO, "LiveMigrate", MigrationOutcome.NOT_MIGRATABLE),
        ("v1.5.0", ("LiveMigrate", "Evict"), YES, None, MigrationOutcome.BY_HAND),
        ("v1.5.0", ("Evict",), NO, None, MigrationOutcome.NOT_MIGRATABLE),
    ],
)
def test_outcome_of_a_vm_that_has_to_be_migrated(
    version: str, methods: tuple[str, ...], condition: Condition | None, strategy: str | None, outcome: MigrationOutcome
) -> None:
    vmi = objects.vmi(conditions=msgspec.to_builtins([condition] if condition is not None else []))
    vmi = msgspec.structs.replace(vmi, spec=msgspec.structs.replace(vmi.spec, eviction_strategy=strategy))
    assert find_migration_outcome(vmi, capabilities(version, *methods)) is outcome


def test_eviction_strategy_of_the_cluster_counts_for_a_vm_without_one() -> None:
    vmi = objects.vmi(conditions=[{"type": "LiveMigratable", "status": "True"}])
    beside = capabilities("v1.9.0", "Evict", eviction_strategy="LiveMigrate")
    assert find_migration_outcome(vmi, beside) is MigrationOutcome.MIGRATES


def test_table_has_one_section_for_each_reason() -> None:
    assert len({row.code for row in TABLE}) == len({row.anchor for row in TABLE}) == len(TABLE)
    assert explain("Migrating").docs == "docs/beside-kubevirt.md#migrating"
