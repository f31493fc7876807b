"""The stage of each interface, derived from objects."""

import msgspec
import pytest

from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import confirmed_by_agent, derive_statuses, has_reached
from tests.support.observed import objects

LINK = pod_interface("iface1")
ANNOTATED = {NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])}
ATTACHED = ANNOTATED | {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", LINK, mac="02:01")])}


@pytest.mark.parametrize(
    ("annotations", "info_source", "stage", "waiting_for"),
    [
        ({}, None, Stage.REQUESTED, Stage.POD_ANNOTATED),
        (ANNOTATED, None, Stage.POD_ANNOTATED, Stage.MULTUS_ATTACHED),
        (ATTACHED, "multus-status", Stage.MULTUS_ATTACHED, Stage.GUEST_ATTACHED),
        (ATTACHED, "domain, multus-status", Stage.GUEST_ATTACHED, None),
    ],
)
def test_stages_of_a_plug(
    annotations: dict[str, str], info_source: str | None, stage: Stage, waiting_for: Stage | None
) -> None:
    status = [{"name": "iface1", "infoSource": info_source}] if info_source else None
    vmi = objects.vmi(objects.nic("iface1"), status=status)
    (nic_status,) = derive_statuses(parse_nics(vmi, objects.pod(annotations)))
    assert (nic_status.stage, nic_status.waiting_for) == (stage, waiting_for)
    assert nic_status.complete == (waiting_for is None)
    # An id without an annotation is derived from the generation, which does not last.
    assert bool(nic_status.operation) == (waiting_for is not None)
    assert has_reached(nic_status, stage)


@pytest.mark.parametrize(
    ("released", "annotations", "stage"),
    [
        (None, ATTACHED, Stage.REQUESTED),
        ("an earlier pod", ATTACHED, Stage.REQUESTED),
        (objects.POD_UID, ATTACHED, Stage.GUEST_DETACHED),
        (objects.POD_UID, {}, Stage.MULTUS_DETACHED),
    ],
)
def test_stages_of_an_unplug(released: str | None, annotations: dict[str, str], stage: Stage) -> None:
    operation = Operation("op", OperationKind.UNPLUG, "iface1", released=released)
    vmi = objects.vmi(
        objects.nic("iface1", state="absent"), annotations={operation_key("iface1"): encode_annotation(operation)}
    )
    (nic_status,) = derive_statuses(parse_nics(vmi, objects.pod(annotations)))
    assert nic_status.stage is stage
    assert nic_status.operation == "op"


@pytest.mark.parametrize(
    ("vmi", "pod", "reason"),
    [
        (objects.vmi(objects.nic("iface1"), phase="Pending"), None, "VmiNotRunning"),
        (objects.vmi(objects.nic("iface1")), None, "NoActingPod"),
        (objects.vmi(objects.nic("iface1"), migrationState={}), objects.pod(), "Migrating"),
        (objects.vmi(objects.nic("iface1")), objects.pod(deletionTimestamp="2026-01-01T00:00:00Z"), "PodDeleting"),
        (objects.vmi(objects.nic("iface1")), msgspec.convert({}, Pod), "PodNotRunning"),
        (objects.vmi(objects.nic("iface1")), objects.pod(), "WaitingForPodAnnotated"),
    ],
)
def test_incomplete_status_has_a_reason(vmi: object, pod: object, reason: str) -> None:
    (nic_status,) = derive_statuses(parse_nics(vmi, pod))  # type: ignore[arg-type]
    assert nic_status.reason == reason


def test_fields_of_the_guest_agent_are_included() -> None:
    entry = {
        "name": "iface1",
        "infoSource": "domain, guest-agent, multus-status",
        "interfaceName": "eth1",
        "mac": "02:02",
    }
    vmi = objects.vmi(objects.nic("iface1"), status=[entry])
    (nic_status,) = derive_statuses(parse_nics(vmi, objects.pod(ATTACHED)))
    assert confirmed_by_agent(nic_status)
    assert (nic_status.guest_interface, nic_status.mac) == ("eth1", "02:02")


def test_unplug_that_undoes_a_failed_plug_has_its_reason() -> None:
    undoing = Operation("op", OperationKind.UNPLUG, "iface1", failed="NoFreeSlot")
    failed = Operation("op", OperationKind.PLUG, "iface1", failed="NoFreeSlot")
    for nic, operation in ((objects.nic("iface1", state="absent"), undoing), (objects.nic("iface1"), failed)):
        vmi = objects.vmi(nic, annotations={operation_key("iface1"): encode_annotation(operation)})
        (nic_status,) = derive_statuses(parse_nics(vmi, objects.pod(ANNOTATED)))
        assert (nic_status.reason, nic_status.failed, nic_status.kind) == ("NoFreeSlot", "NoFreeSlot", operation.kind)


def test_unplug_of_an_ordinal_name_has_a_reason() -> None:
    pod = objects.pod({NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface="net1")])})
    (nic_status,) = derive_statuses(parse_nics(objects.vmi(objects.nic("iface1", state="absent")), pod))
    assert nic_status.reason == "OrdinalInterfaceNames"


def test_listed_attachment_is_not_detached_even_if_it_was_never_attached() -> None:
    operation = Operation("op", OperationKind.UNPLUG, "iface1", released=objects.POD_UID)
    vmi = objects.vmi(
        objects.nic("iface1", state="absent"), annotations={operation_key("iface1"): encode_annotation(operation)}
    )
    (nic_status,) = derive_statuses(parse_nics(vmi, objects.pod(ANNOTATED)))
    assert nic_status.stage is Stage.GUEST_DETACHED


def test_template_changes_are_included_before_the_vmi_has_them() -> None:
    plug, unplug = Operation("p", OperationKind.PLUG, "iface2"), Operation("u", OperationKind.UNPLUG, "iface1")
    annotations_of_vm = {
        operation_key(operation.interface): encode_annotation(operation) for operation in (plug, unplug)
    }
    vm = objects.vm(objects.nic("iface1", state="absent"), objects.nic("iface2", "net2"), annotations=annotations_of_vm)
    vmi = objects.vmi(objects.nic("iface1"), owned=True, status=[{"name": "iface1", "infoSource": "domain"}])
    first, second = derive_statuses(parse_nics(vmi, objects.pod(ATTACHED)), vm)
    assert (first.operation, first.kind, first.stage, first.waiting_for) == (
        "u",
        OperationKind.UNPLUG,
        Stage.REQUESTED,
        Stage.GUEST_DETACHED,
    )
    assert first.info_source == "domain"
    assert (second.operation, second.network, second.reason) == ("p", "net2", "WaitingForController")
    (without_vm,) = derive_statuses(parse_nics(vmi, objects.pod(ATTACHED)))
    assert without_vm.complete


@pytest.mark.parametrize(
    ("vm", "vmi", "at_restart"),
    [
        (objects.vm(), objects.vmi(objects.nic("iface1"), owned=True), "gone"),
        (objects.vm(objects.nic("iface1")), objects.vmi(objects.nic("iface1"), owned=True), None),
        (objects.vm(objects.nic("iface1")), objects.vmi(objects.nic("iface1", state="absent"), owned=True), "back"),
        (objects.vm(), objects.vmi(objects.nic("iface1", state="absent"), owned=True), None),
        (objects.vm(), objects.vmi(objects.nic("iface1"), owned=False), None),
        (objects.vm(objects.nic("iface1", nad="net2")), objects.vmi(objects.nic("iface1"), owned=True), "changed"),
        (
            objects.vm(objects.nic("iface1", macAddress="02:00:00:00:00:07")),
            objects.vmi(objects.nic("iface1", macAddress="02:00:00:00:00:08"), owned=True),
            "changed",
        ),
        (objects.vm(objects.nic("iface1", state="down")), objects.vmi(objects.nic("iface1"), owned=True), None),
        # The MAC that the network's plugin chose, made permanent.
        (
            objects.vm(objects.nic("iface1", macAddress="02:00:00:00:00:07")),
            objects.vmi(objects.nic("iface1"), owned=True, status=[{"name": "iface1", "mac": "02:00:00:00:00:07"}]),
            None,
        ),
        (
            objects.vm(objects.nic("iface1", macAddress="02-00-00-00-00-0A")),
            objects.vmi(objects.nic("iface1", macAddress="02:00:00:00:00:0a"), owned=True),
            None,
        ),
        # A MAC set by a webhook and a model set by a preference are no difference (kubevirt#15881, #18955).
        (
            objects.vm(objects.nic("iface1", macAddress="")),
            objects.vmi(objects.nic("iface1", macAddress="02:00:00:00:00:07", model="virtio"), owned=True),
            None,
        ),
    ],
)
def test_difference_from_the_template_is_included(
    vm: VirtualMachine, vmi: VirtualMachineInstance, at_restart: str
) -> None:
    (nic_status,) = derive_statuses(parse_nics(vmi, objects.pod(ATTACHED)), vm)
    assert nic_status.at_restart == at_restart
