"""The progress of an unplug and of a change of the template as ``--wait`` shows it, and the messages at the end."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from schemas.stages import OperationKind, Stage, stage_path
from services.cli.errors import CommandFailed, StillInProgress
from services.cli.operations.outcome import document, error_of, success_message
from services.cli.operations.progress import OperationOutcome, OperationProgress, OperationResult, progress_message
from services.cli.operations.request import ChangeRequest, Verb
from tests.support.observed import objects

NIC = "iface1"
LINK = pod_interface(NIC)
ELEMENT = {NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])}
STATUS = {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", LINK, mac="02:01")])}
ALL = list(stage_path(OperationKind.UNPLUG))
ABSENT = objects.nic(NIC, state="absent")
PLUGGED = [{"name": NIC, "infoSource": "domain, multus-status", "mac": "02:01"}]


def operation_annotation(kind: OperationKind, operation: str = "op", **fields: Any) -> dict[str, str]:
    return {operation_key(NIC): encode_annotation(Operation(operation, kind, NIC, **fields))}


RELEASED = operation_annotation(OperationKind.UNPLUG, released=objects.POD_UID)
WAY: list[tuple[VirtualMachineInstance, Pod]] = [
    (
        objects.vmi(ABSENT, status=PLUGGED, annotations=operation_annotation(OperationKind.UNPLUG)),
        objects.pod(ELEMENT | STATUS),
    ),
    (objects.vmi(ABSENT, annotations=RELEASED), objects.pod(STATUS)),
    (objects.vmi(ABSENT, annotations=RELEASED), objects.pod()),
    (objects.vmi(), objects.pod()),
]


@given(st.lists(st.integers(0, 3), min_size=1))
def test_every_stage_is_reported_once_and_the_unplug_completes_with_the_spec(steps: list[int]) -> None:
    progress = OperationProgress(NIC, "op", OperationKind.UNPLUG)
    reported: list[Stage] = []
    for step in steps:
        vmi, pod = WAY[step]
        reported += progress.observe(vmi, [pod])
    assert reported == ALL[: max(steps) + 1]
    assert progress.outcome == (OperationOutcome(OperationResult.DETACHED) if 3 in steps else None)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (0, "reached stage requested, waiting for handler (WaitingForGuestDetached)"),
        (1, "reached stage guest-detached, waiting for networks (WaitingForMultusDetached)"),
        (2, "reached stage multus-detached, the VMI's spec still lists the interface"),
    ],
)
def test_progress_message_names_the_role_that_is_waited_for(step: int, text: str) -> None:
    progress = OperationProgress(NIC, "op", OperationKind.UNPLUG)
    vmi, pod = WAY[step]
    progress.observe(vmi, [pod])
    assert progress.nic_status is not None
    assert progress_message(progress.nic_status) == text


def test_unplug_is_complete_when_a_new_plug_has_the_same_name() -> None:
    progress = OperationProgress(NIC, "op", OperationKind.UNPLUG)
    again = objects.vmi(objects.nic(NIC), annotations=operation_annotation(OperationKind.PLUG, "next"))
    assert progress.observe(again, [objects.pod()]) == ALL
    assert progress.outcome == OperationOutcome(OperationResult.DETACHED)


@pytest.mark.parametrize("kind", OperationKind)
@pytest.mark.parametrize(("vmi", "text"), [(None, "deleted or stopped"), (objects.vmi(phase="Failed"), "phase Failed")])
def test_operation_fails_when_the_vm_stops(kind: OperationKind, vmi: VirtualMachineInstance | None, text: str) -> None:
    progress = OperationProgress(NIC, "op", kind)
    progress.observe(vmi, [])
    assert progress.outcome is not None
    assert progress.outcome.result is OperationResult.FAILED
    assert text in progress.outcome.message


def test_plug_with_persist_completes_when_the_running_vm_has_the_nic() -> None:
    progress = OperationProgress(NIC, "op", persist=True)
    vm = objects.vm(objects.nic(NIC), annotations=operation_annotation(OperationKind.PLUG))
    assert progress.observe(objects.vmi(owned=True), [objects.pod()], vm) == [Stage.REQUESTED]
    assert progress.nic_status is not None
    assert progress.nic_status.reason == "WaitingForController"
    vmi = objects.vmi(
        objects.nic(NIC), status=PLUGGED, annotations=operation_annotation(OperationKind.PLUG), owned=True
    )
    assert progress.observe(vmi, [objects.pod(ELEMENT | STATUS)], vm) == list(stage_path(OperationKind.PLUG))[1:]
    assert progress.outcome == OperationOutcome(OperationResult.ATTACHED)


def test_unplug_with_persist_completes_when_vmi_and_template_are_cleared() -> None:
    progress = OperationProgress(NIC, "op", OperationKind.UNPLUG, persist=True)
    absent = objects.vm(ABSENT, annotations=operation_annotation(OperationKind.UNPLUG))
    before = objects.vmi(
        objects.nic(NIC), status=PLUGGED, annotations=operation_annotation(OperationKind.PLUG, "old"), owned=True
    )
    assert progress.observe(before, [objects.pod(ELEMENT | STATUS)], absent) == [Stage.REQUESTED]
    assert progress.observe(objects.vmi(owned=True), [objects.pod()], absent) == ALL[1:]
    assert progress.outcome is None
    assert progress.observe(objects.vmi(owned=True), [objects.pod()], objects.vm()) == []
    assert progress.outcome == OperationOutcome(OperationResult.DETACHED)


@pytest.mark.parametrize(
    "vmi",
    [None, objects.vmi(), objects.vmi(phase="Succeeded", owned=True)],
    ids=["no VMI", "a VMI of something else", "a VMI that has ended"],
)
@pytest.mark.parametrize(
    ("kind", "vm"),
    [
        (OperationKind.PLUG, objects.vm(objects.nic(NIC))),
        (OperationKind.UNPLUG, objects.vm(ABSENT)),
        (OperationKind.UNPLUG, objects.vm()),
    ],
    ids=["plug", "unplug", "unplug that is cleared already"],
)
def test_change_of_a_stopped_vm_has_the_result_template(
    kind: OperationKind, vm: VirtualMachine, vmi: VirtualMachineInstance | None
) -> None:
    progress = OperationProgress(NIC, "op", kind, persist=True)
    assert progress.observe(vmi, [], vm) == []
    assert progress.outcome == OperationOutcome(OperationResult.TEMPLATE)


@pytest.mark.parametrize(
    ("kind", "vm", "text"),
    [
        (OperationKind.PLUG, None, "deleted"),
        (OperationKind.UNPLUG, objects.vm(deletionTimestamp="2026-01-01T00:00:00Z"), "deleted"),
        (OperationKind.PLUG, objects.vm(), "is removed"),
        (OperationKind.PLUG, objects.vm(ABSENT), "is absent"),
        (OperationKind.UNPLUG, objects.vm(objects.nic(NIC)), "is present"),
    ],
)
def test_operation_fails_when_the_template_is_changed_meanwhile(
    kind: OperationKind, vm: VirtualMachine | None, text: str
) -> None:
    progress = OperationProgress(NIC, "op", kind, persist=True)
    progress.observe(None, [], vm)
    assert progress.outcome is not None
    assert progress.outcome.result is OperationResult.FAILED
    assert text in progress.outcome.message


def changed(verb: Verb, *, persist: bool = False, result: OperationResult | None, message: str = "") -> ChangeRequest:
    change = ChangeRequest(verb, "vm1", NIC, {}, persist=persist, timeout=7)
    change.namespace, change.operation = "default", "op"
    change.progress = OperationProgress(NIC, "op", verb.kind, persist=persist)
    change.progress.outcome = OperationOutcome(result, message) if result is not None else None
    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (changed(Verb.REMOVE, result=OperationResult.DETACHED), 'interface "iface1" unplugged from default/vm1'),
        (
            changed(Verb.REMOVE, persist=True, result=OperationResult.DETACHED),
            'interface "iface1" unplugged from default/vm1 and removed from its template',
        ),
        (
            changed(Verb.REMOVE, persist=True, result=OperationResult.TEMPLATE),
            'interface "iface1" removed from the template of default/vm1; the VM is not running, '
            "the change applies at its next start",
        ),
        (
            changed(Verb.ADD, persist=True, result=OperationResult.TEMPLATE),
            'interface "iface1" added to the template of default/vm1; the VM is not running, '
            "the change applies at its next start",
        ),
    ],
)
def test_success_message_names_the_result(change: ChangeRequest, text: str) -> None:
    assert success_message(change) == text
    assert error_of(change) is None
    assert document(change)["result"] in ("detached", "template")


@pytest.mark.parametrize("verb", Verb)
def test_error_has_its_exit_code_and_the_warning_events(verb: Verb) -> None:
    failed, in_progress = changed(verb, result=OperationResult.FAILED, message="why"), changed(verb, result=None)
    failed.warnings = in_progress.warnings = ["Reason: message"]
    error = error_of(failed)
    assert isinstance(error, CommandFailed)
    assert error.message == "operation op failed: why\n  Reason: message"
    error = error_of(in_progress)
    assert isinstance(error, StillInProgress)
    assert "hotnic status vm1 -n default" in error.message
    assert document(in_progress)["result"] == "in-progress"


def test_request_without_wait_names_the_status_command() -> None:
    change = changed(Verb.REMOVE, result=None)
    change.progress = None
    assert success_message(change) == "operation op accepted; to follow it, run: hotnic status vm1 -n default"
    assert document(change) == {"operation": "op", "namespace": "default", "vmi": "vm1", "interface": NIC}
