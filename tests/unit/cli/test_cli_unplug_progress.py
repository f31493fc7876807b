"""The way of an unplug, and of a change of the template, as the one who waits sees it; and what is said of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from schemas.names import pod_interface
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.operations import Operation, encode, operation_key
from schemas.stages import OperationKind, Stage, stage_path
from services.cli.change import Change, Verb
from services.cli.errors import Failed, InProgress
from services.cli.outcome import complaint, document, success
from services.cli.progress import Outcome, Progress, Result, standing
from tests.support import objects

NIC = "iface1"
LINK = pod_interface(NIC)
ELEMENT = {NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])}
STATUS = {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", LINK, mac="02:01")])}
ALL = list(stage_path(OperationKind.UNPLUG))
ABSENT = objects.nic(NIC, state="absent")
PLUGGED = [{"name": NIC, "infoSource": "domain, multus-status", "mac": "02:01"}]


def noted(kind: OperationKind, operation: str = "op", **fields: Any) -> dict[str, str]:
    return {operation_key(NIC): encode(Operation(operation, kind, NIC, **fields))}


RELEASED = noted(OperationKind.UNPLUG, released=objects.POD_UID)
WAY: list[tuple[VirtualMachineInstance, Pod]] = [
    (
        objects.vmi(ABSENT, status=PLUGGED, annotations=noted(OperationKind.UNPLUG)),
        objects.pod(ELEMENT | STATUS),
    ),
    (objects.vmi(ABSENT, annotations=RELEASED), objects.pod(STATUS)),
    (objects.vmi(ABSENT, annotations=RELEASED), objects.pod()),
    (objects.vmi(), objects.pod()),
]


@given(st.lists(st.integers(0, 3), min_size=1))
def test_every_stage_is_told_once_and_the_end_is_when_the_spec_has_lost_it(steps: list[int]) -> None:
    progress = Progress(NIC, "op", OperationKind.UNPLUG)
    told: list[Stage] = []
    for step in steps:
        vmi, pod = WAY[step]
        told += progress.see(vmi, [pod])
    assert told == ALL[: max(steps) + 1]
    assert progress.outcome == (Outcome(Result.DETACHED) if 3 in steps else None)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (0, "reached requested, WaitingForGuestDetached: it is the turn of handler"),
        (1, "reached guest-detached, WaitingForMultusDetached: it is the turn of networks"),
        (2, "reached multus-detached, the VM's spec lists it yet"),
    ],
)
def test_who_is_waited_for_is_named(step: int, said: str) -> None:
    progress = Progress(NIC, "op", OperationKind.UNPLUG)
    vmi, pod = WAY[step]
    progress.see(vmi, [pod])
    assert progress.nic_status is not None
    assert standing(progress.nic_status) == said


def test_another_card_by_the_same_name_means_that_the_first_is_gone() -> None:
    progress = Progress(NIC, "op", OperationKind.UNPLUG)
    again = objects.vmi(objects.nic(NIC), annotations=noted(OperationKind.PLUG, "next"))
    assert progress.see(again, [objects.pod()]) == ALL
    assert progress.outcome == Outcome(Result.DETACHED)


@pytest.mark.parametrize("kind", OperationKind)
@pytest.mark.parametrize(("vmi", "said"), [(None, "deleted or stopped"), (objects.vmi(phase="Failed"), "phase Failed")])
def test_a_running_vm_that_ends_takes_the_operation_along(
    kind: OperationKind, vmi: VirtualMachineInstance | None, said: str
) -> None:
    progress = Progress(NIC, "op", kind)
    progress.see(vmi, [])
    assert progress.outcome is not None
    assert progress.outcome.result is Result.FAILED
    assert said in progress.outcome.message


def test_a_plug_through_the_template_is_awaited_until_the_running_vm_has_it() -> None:
    progress = Progress(NIC, "op", persist=True)
    vm = objects.vm(objects.nic(NIC), annotations=noted(OperationKind.PLUG))
    assert progress.see(objects.vmi(owned=True), [objects.pod()], vm) == [Stage.REQUESTED]
    assert progress.nic_status is not None
    assert progress.nic_status.reason == "WaitingForController"
    vmi = objects.vmi(objects.nic(NIC), status=PLUGGED, annotations=noted(OperationKind.PLUG), owned=True)
    assert progress.see(vmi, [objects.pod(ELEMENT | STATUS)], vm) == list(stage_path(OperationKind.PLUG))[1:]
    assert progress.outcome == Outcome(Result.ATTACHED)


def test_an_unplug_through_the_template_is_over_when_both_have_lost_it() -> None:
    progress = Progress(NIC, "op", OperationKind.UNPLUG, persist=True)
    absent = objects.vm(ABSENT, annotations=noted(OperationKind.UNPLUG))
    before = objects.vmi(objects.nic(NIC), status=PLUGGED, annotations=noted(OperationKind.PLUG, "old"), owned=True)
    assert progress.see(before, [objects.pod(ELEMENT | STATUS)], absent) == [Stage.REQUESTED]
    assert progress.see(objects.vmi(owned=True), [objects.pod()], absent) == ALL[1:]
    assert progress.outcome is None
    assert progress.see(objects.vmi(owned=True), [objects.pod()], objects.vm()) == []
    assert progress.outcome == Outcome(Result.DETACHED)


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
def test_a_vm_that_does_not_run_changes_its_template_alone(
    kind: OperationKind, vm: VirtualMachine, vmi: VirtualMachineInstance | None
) -> None:
    progress = Progress(NIC, "op", kind, persist=True)
    assert progress.see(vmi, [], vm) == []
    assert progress.outcome == Outcome(Result.TEMPLATE)


@pytest.mark.parametrize(
    ("kind", "vm", "said"),
    [
        (OperationKind.PLUG, None, "deleted"),
        (OperationKind.UNPLUG, objects.vm(deletionTimestamp="2026-01-01T00:00:00Z"), "deleted"),
        (OperationKind.PLUG, objects.vm(), "is gone"),
        (OperationKind.PLUG, objects.vm(ABSENT), "is absent"),
        (OperationKind.UNPLUG, objects.vm(objects.nic(NIC)), "is wanted"),
    ],
)
def test_a_template_that_another_changed_is_a_failure(
    kind: OperationKind, vm: VirtualMachine | None, said: str
) -> None:
    progress = Progress(NIC, "op", kind, persist=True)
    progress.see(None, [], vm)
    assert progress.outcome is not None
    assert progress.outcome.result is Result.FAILED
    assert said in progress.outcome.message


def changed(verb: Verb, *, persist: bool = False, result: Result | None, message: str = "") -> Change:
    change = Change(verb, "vm1", NIC, {}, persist=persist, timeout=7)
    change.namespace, change.operation = "default", "op"
    change.progress = Progress(NIC, "op", verb.kind, persist=persist)
    change.progress.outcome = Outcome(result, message) if result is not None else None
    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(Verb.REMOVE, result=Result.DETACHED), "iface1 is unplugged from default/vm1"),
        (
            changed(Verb.REMOVE, persist=True, result=Result.DETACHED),
            "iface1 is unplugged from default/vm1 and out of its template",
        ),
        (
            changed(Verb.REMOVE, persist=True, result=Result.TEMPLATE),
            "iface1 is taken out of the template of default/vm1, which does not run: "
            "it is without the card from its next start on",
        ),
        (
            changed(Verb.ADD, persist=True, result=Result.TEMPLATE),
            "iface1 stands in the template of default/vm1, which does not run: it gets the card at its next start",
        ),
    ],
)
def test_success_says_what_is_so_now(change: Change, said: str) -> None:
    assert success(change) == said
    assert complaint(change) is None
    assert document(change)["result"] in ("detached", "template")


@pytest.mark.parametrize("verb", Verb)
def test_trouble_has_its_exit_code_and_what_was_reported(verb: Verb) -> None:
    failed, open_ = changed(verb, result=Result.FAILED, message="why"), changed(verb, result=None)
    failed.warnings = open_.warnings = ["Reason: told"]
    last_failure = complaint(failed)
    assert isinstance(last_failure, Failed)
    assert last_failure.message == "operation op failed: why\n  Reason: told"
    last_failure = complaint(open_)
    assert isinstance(last_failure, InProgress)
    assert "hotnic status vm1 -n default" in last_failure.message
    assert document(open_)["result"] == "in-progress"


def test_a_request_that_nobody_waited_for_tells_how_to_follow_it() -> None:
    change = changed(Verb.REMOVE, result=None)
    change.progress = None
    assert success(change) == "operation op accepted; follow it with: hotnic status vm1 -n default"
    assert document(change) == {"operation": "op", "namespace": "default", "vmi": "vm1", "interface": NIC}
