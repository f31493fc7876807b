"""A world at rest has nothing to find; any single change in it is found; what is under way is not judged."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.names import colliding
from schemas.operations import Operation, encode, operation_key
from schemas.stages import OperationKind
from services.common.domain.invariants import confirmed, examine
from services.common.domain.invariants.world import DoctorReport, NotVisible, PodOnNode, Snapshot, VmSnapshot
from tests.support import hotplug_status_changes, world_changes, worlds

TWO = (("blue", "green"), ("red",))

interface_names = st.text("aB3_-", min_size=1, max_size=4)
names = st.lists(
    st.lists(interface_names, max_size=4, unique=True).filter(lambda found: colliding(found) is None),
    min_size=1,
    max_size=3,
)


def codes(report: DoctorReport) -> set[str]:
    return {one.code for one in report.disagreements}


def test_a_world_at_rest_agrees() -> None:
    report = examine(worlds.world(TWO))
    assert report == DoctorReport((), (), (), 3)


@given(names)
def test_every_world_at_rest_agrees(found: list[list[str]]) -> None:
    assert examine(worlds.world(found)) == DoctorReport((), (), (), sum(map(len, found)))


@pytest.mark.parametrize(("what", "change"), [pytest.param(w, c, id=w) for w, c in world_changes.changes(TWO)])
def test_every_single_change_is_found(what: str, change: world_changes.Change) -> None:
    report = examine(change(worlds.world(TWO)))
    assert report.disagreements, what
    assert all(one.repair and one.what and one.subject for one in report.disagreements)


@given(names, st.data())
def test_every_single_change_of_every_world_is_found(found: list[list[str]], data: st.DataObject) -> None:
    what, change = data.draw(st.sampled_from(list(world_changes.changes(found))))
    assert examine(change(worlds.world(found))).disagreements, what


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("vm0/blue: link tap", "TapMissing"),
        ("vm0/blue: element taken out", "ElementMissing"),
        ("vm0/blue: status taken out", "StatusEntryMissing"),
        ("vm0/blue: recorded attachment gone", "AttachmentMissing"),
        ("vm0/blue: record of the pod NIC taken out", "PodNicRecordMissing"),
        ("vm0/blue: tap not held", "TapNotHeld"),
        ("vm0/blue: card gone", "GuestDeviceMissing"),
        ("vm0/blue: lease gone", "LeaseMissing"),
        ("vm0/blue: node's end of the veth off", "HostVethOffBridge"),
        ("vm0/blue: veth with another peer", "HostVethMissing"),
        ("vm0: no sandbox", "SandboxMissing"),
        ("vm0: no acting pod", "NoActingPod"),
        ("vm0: record gone", "RecordMissing"),
        ("vm0: operation left over on the VM", "OperationLeftOver"),
        ("vm0: networks annotation malformed", "Malformed"),
        ("vm0/blue: kept rung gone", "HotplugStatusMissing"),
        ("vm0/blue: kept rung unreadable", "HotplugStatusDiffers"),
        ("vm0/blue: kept rung with another stage", "HotplugStatusDiffers"),
        ("vm0: kept rung left over", "HotplugStatusLeftOver"),
        ("record orphaned", "RecordOrphaned"),
        ("lease orphaned", "LeaseOrphaned"),
        ("namespace orphaned", "NamespaceOrphaned"),
        ("veth orphaned", "HostVethOrphaned"),
    ],
)
def test_a_change_has_its_code(change: str, code: str) -> None:
    found = [apply for what, apply in world_changes.changes(TWO) if what.startswith(change)]
    assert found
    assert code in codes(examine(found[0](worlds.world(TWO))))


def test_a_disagreement_names_the_interface() -> None:
    (change,) = [c for what, c in world_changes.changes(TWO) if what == "vm0/green: tap not held"]
    (one,) = examine(change(worlds.world(TWO))).disagreements
    assert one.subject == "default/vm0/green"
    assert "hotnic removeinterface vm0 --name green -n default" in one.repair


def test_a_rung_that_differs_says_in_what_and_who_writes_it() -> None:
    (change,) = [c for what, c in world_changes.changes(TWO) if what == "vm0/blue: kept rung with another stage"]
    (one,) = examine(change(worlds.world(TWO))).disagreements
    assert (one.subject, one.what) == (
        "default/vm0/blue",
        "its stage is guest-attached by objects, multus-attached in the kept ladder",
    )
    assert "controller" in one.repair


def test_what_a_restart_brings_is_judged_only_by_who_may_read_the_vm() -> None:
    (change,) = [c for what, c in world_changes.changes(TWO) if what == "vm0/blue: kept rung with another at_restart"]

    def forbidden(machine: VmSnapshot) -> VmSnapshot:
        return msgspec.structs.replace(machine, vm=NotVisible("forbidden"))

    world = hotplug_status_changes.machine_alone(0, forbidden)(change(worlds.world(TWO)))
    assert examine(world).disagreements == ()
    # A rung of an interface that only the template wishes for may be right.
    assert examine(hotplug_status_changes.left_over(0)(world)).disagreements == ()


def under_way(kind: str) -> world_changes.Change:
    """The NIC ``blue`` of vm0 half-way in, or on its way out."""

    def plug(world: Snapshot) -> Snapshot:
        return world_changes.entry(0, "blue", infoSource="multus-status")(world)

    def unplug(world: Snapshot) -> Snapshot:
        def ask(machine: VmSnapshot) -> VmSnapshot:
            document = msgspec.to_builtins(machine.vmi)
            for interface in document["spec"]["domain"]["devices"]["interfaces"]:
                if interface["name"] == "blue":
                    interface["state"] = "absent"
            return msgspec.structs.replace(machine, vmi=msgspec.convert(document, type(machine.vmi)))

        return world_changes.machine(0, ask)(world)

    return plug if kind == "plug" else unplug


@pytest.mark.parametrize("kind", ["plug", "unplug"])
def test_what_is_under_way_is_listed_and_not_judged(kind: str) -> None:
    report = examine(under_way(kind)(worlds.world(TWO)))
    assert report.disagreements == ()
    (busy,) = report.in_progress
    assert busy.subject == "default/vm0/blue"
    assert kind in busy.what
    assert busy.since == ("2026-01-01T00:00:00Z" if kind == "plug" else None)
    assert report.looked_at == 2


@pytest.mark.parametrize("kind", ["plug", "unplug"])
def test_whatever_one_that_is_under_way_has_not_yet_is_no_disagreement(kind: str) -> None:
    at_rest = {"taken out of the spec of the VMI", "status.interfaces without multus-status"}
    for what, change in world_changes.changes(TWO):
        where, _, done = what.partition(": ")
        if where == "vm0/blue" and done not in at_rest and "status.interfaces" not in done:
            report = examine(under_way(kind)(change(worlds.world(TWO))))
            assert not report.disagreements, what
            assert report.in_progress


def test_a_machine_that_starts_stops_or_migrates_is_not_judged() -> None:
    for fields in (
        {"phase": "Scheduling"},
        {"migrationState": {"targetNode": "other"}},
    ):

        def change(machine: VmSnapshot, fields: dict[str, Any] = fields) -> VmSnapshot:
            document = msgspec.to_builtins(machine.vmi)
            document["status"] |= fields
            return msgspec.structs.replace(machine, vmi=msgspec.convert(document, type(machine.vmi)))

        report = examine(world_changes.machine(0, change)(worlds.world(TWO)))
        assert (report.disagreements, len(report.in_progress)) == ((), 1)


def test_parts_that_nobody_could_look_at_are_named_and_judged_by_nobody() -> None:
    blind = world_changes.inside(0, lambda _: PodOnNode("sandbox-of-vm0", "/var/run/netns/cni-vm0"))(worlds.world(TWO))
    report = examine(blind)
    assert report.disagreements == ()
    assert {part.part for part in report.not_seen} == {
        "the links in the pod",
        "the taps that the guest holds",
        "the cards in the domain",
    }
    apiless = hotplug_status_changes.machine_alone(
        1, lambda x: msgspec.structs.replace(x, hotplug_status=NotVisible("no api"))
    )
    report = examine(apiless(worlds.world(TWO)))
    assert report.disagreements == ()
    assert [(part.subject, part.part, part.why) for part in report.not_seen] == [
        ("default/vm1", "the kept ladder", "no api")
    ]
    report = examine(msgspec.structs.replace(worlds.world(TWO), node=NotVisible("not root")))
    assert report.disagreements == ()
    assert [(part.subject, part.why) for part in report.not_seen] == [("node", "not root")]


def test_what_belongs_to_no_machine_is_judged_only_when_asked_for() -> None:
    (orphan,) = [change for what, change in world_changes.changes(TWO) if what == "lease orphaned"]
    assert codes(examine(orphan(worlds.world(TWO)))) == {"LeaseOrphaned"}
    assert codes(examine(orphan(worlds.world(TWO)), node=False)) == set()


def test_only_what_two_looks_have_seen_counts() -> None:
    changes = dict(world_changes.changes(TWO))
    first = examine(changes["vm0/blue: tap not held"](changes["lease orphaned"](worlds.world(TWO))))
    second = examine(changes["vm0/blue: card gone"](changes["lease orphaned"](worlds.world(TWO))))
    assert codes(confirmed(first, second)) == {"LeaseOrphaned"}


def test_the_mark_of_an_unplug_from_the_running_vm_alone_is_no_leftover() -> None:
    # The template lists the NIC for the next start; the operation keeps it from coming back before that.
    def template_only(machine: VmSnapshot) -> VmSnapshot:
        document = msgspec.to_builtins(machine.vm)
        spec = document["spec"]["template"]["spec"]
        spec["domain"]["devices"]["interfaces"].append({"name": "stranger", "bridge": {}})
        spec["networks"].append({"name": "stranger", "multus": {"networkName": worlds.NAD}})
        return msgspec.structs.replace(machine, vm=msgspec.convert(document, type(machine.vm)))

    mark = encode(Operation("x", OperationKind.UNPLUG, "stranger"))
    world = world_changes.vmi_note(0, operation_key("stranger"), mark)(
        world_changes.machine(0, template_only)(worlds.world(TWO))
    )
    assert examine(world) == DoctorReport((), (), (), 3)


def test_an_unplug_is_under_way_until_the_template_has_lost_the_interface_too() -> None:
    def absent(machine: VmSnapshot) -> VmSnapshot:
        document = msgspec.to_builtins(machine.vm)
        spec = document["spec"]["template"]["spec"]
        spec["domain"]["devices"]["interfaces"].append({"name": "stranger", "bridge": {}, "state": "absent"})
        return msgspec.structs.replace(machine, vm=msgspec.convert(document, type(machine.vm)))

    report = examine(world_changes.machine(0, absent)(worlds.world(TWO)))
    assert report.disagreements == ()
    (busy,) = report.in_progress
    assert (busy.subject, "not the VM's template yet" in busy.what) == ("default/vm0/stranger", True)
