"""A consistent snapshot has no findings, any single change of it has; operations in progress are not checked."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.operations import Operation, encode_annotation, operation_key
from schemas.names import find_colliding_names
from schemas.stages import OperationKind
from services.cli.doctor.examine import confirmed, examine
from services.cli.doctor.snapshot import (
    BusSnapshot,
    DoctorReport,
    NotVisible,
    ObservedLink,
    PodOnNode,
    Snapshot,
    VmSnapshot,
)
from services.common.bus.settings import KIB, MIB, StoreUsage, StreamUsage
from tests.support.doctor import hotplug_status_changes, snapshot_changes, snapshots

TWO = (("blue", "green"), ("red",))

interface_names = st.text("aB3_-", min_size=1, max_size=4)
names = st.lists(
    st.lists(interface_names, max_size=4, unique=True).filter(lambda found: find_colliding_names(found) is None),
    min_size=1,
    max_size=3,
)


def codes(report: DoctorReport) -> set[str]:
    return {one.code for one in report.findings}


def test_consistent_snapshot_has_no_findings() -> None:
    report = examine(snapshots.build_snapshot(TWO))
    assert report == DoctorReport((), (), (), 3)


def test_veth_of_another_name_is_an_uplink_and_no_leftover() -> None:
    # A node that is a container, or a lab's, reaches its network over a veth.
    uplink = ObservedLink(index=9000, name="eth1", kind="veth", up=True, master=2, peer=2)
    change = snapshot_changes.change_node("links", lambda links: [*links, uplink])
    assert examine(change(snapshots.build_snapshot(TWO))).findings == ()


@pytest.mark.parametrize(
    ("used", "found"), [(None, {"BusStreamMissing"}), (0, set()), (60 * MIB, set()), (62 * MIB, {"BusBucketFull"})]
)
def test_missing_stream_and_full_bucket_are_found(used: int | None, found: set[str]) -> None:
    # The oldest events make room for new ones, so a full stream is no finding.
    events = StreamUsage("HOTPLUG", 256 * MIB, 256 * MIB)
    snapshot = Snapshot((), bus=BusSnapshot((events, StreamUsage("KV_hotplug-status", 64 * MIB, used))))
    assert codes(examine(snapshot)) == found


def test_bucket_that_fills_while_the_doctor_looks_twice_is_found() -> None:
    first, second = (
        examine(Snapshot((), bus=BusSnapshot((StreamUsage("KV_hotplug-status", 64 * MIB, used * MIB),))))
        for used in (62, 63)
    )
    assert codes(confirmed(first, second)) == {"BusBucketFull"}


@pytest.mark.parametrize(
    ("name", "limit", "found"),
    [
        ("HOTPLUG", None, set()),
        ("HOTPLUG", 0, {"BusMessagesTooLarge"}),
        ("HOTPLUG", MIB, {"BusMessagesTooLarge"}),
        ("HOTPLUG", 72 * KIB, set()),
        ("HOTPLUG", 80 * KIB, {"BusMessagesTooLarge"}),
        ("HOTPLUG_DEAD", 80 * KIB, set()),
        ("KV_hotplug-status", 72 * KIB, set()),
        ("KV_hotplug-status", 80 * KIB, {"BusMessagesTooLarge"}),
    ],
)
def test_stream_that_takes_larger_messages_than_hotnic_makes_is_found(
    name: str, limit: int | None, found: set[str]
) -> None:
    stream = StreamUsage(name, 64 * MIB, 0, limit)
    assert codes(examine(Snapshot((), bus=BusSnapshot((stream,))))) == found


def test_a_sealed_stream_is_found_with_the_only_remedy() -> None:
    """NATS takes `sealed` back from nobody, not even from the controller that has set it."""
    for name in ("HOTPLUG", "HOTPLUG_DEAD", "KV_hotplug-status"):
        stream = StreamUsage(name, 64 * MIB, 0, 72 * KIB, sealed=True)
        report = examine(Snapshot((), bus=BusSnapshot((stream,))))
        assert codes(report) == {"BusStreamSealed"}
        [finding] = report.findings
        assert f"nats stream rm {name}" in finding.repair


@pytest.mark.parametrize(
    ("missing", "limit", "reserved", "used", "found"),
    [
        (False, 400, 400, 10, set()),
        (False, 400, 400, 380, {"BusStoreFull"}),
        (True, 400, 320, 10, {"BusStreamMissing"}),
        (True, 400, 350, 10, {"BusStreamMissing", "BusStoreTooSmall"}),
        # Streams without a size may fill what others have reserved.
        (False, 400, 100, 399, {"BusStoreFull"}),
    ],
)
def test_store_without_room_is_found(missing: bool, limit: int, reserved: int, used: int, found: set[str]) -> None:
    stream = StreamUsage("KV_hotplug-status", 64 * MIB, None if missing else 0)
    store = StoreUsage("NATS account", limit * MIB, reserved * MIB, used * MIB)
    assert codes(examine(Snapshot((), bus=BusSnapshot((stream,), (store,))))) == found


def test_store_that_cannot_be_read_is_not_checked() -> None:
    report = examine(Snapshot((), bus=BusSnapshot((), (NotVisible("no answer"),))))
    assert ("size of the store", "no answer") in {(one.part, one.message) for one in report.not_checked}


def test_bus_that_does_not_answer_is_not_checked() -> None:
    report = examine(Snapshot((), bus=NotVisible("no answer")))
    assert ("bus", "no answer") in {(one.subject, one.message) for one in report.not_checked}


@given(names)
def test_every_consistent_snapshot_has_no_findings(found: list[list[str]]) -> None:
    assert examine(snapshots.build_snapshot(found)) == DoctorReport((), (), (), sum(map(len, found)))


@pytest.mark.parametrize(("what", "change"), [pytest.param(w, c, id=w) for w, c in snapshot_changes.all_changes(TWO)])
def test_every_single_change_has_a_finding(what: str, change: hotplug_status_changes.SnapshotChange) -> None:
    report = examine(change(snapshots.build_snapshot(TWO)))
    assert report.findings, what
    assert all(one.repair and one.message and one.subject for one in report.findings)


@given(names, st.data())
def test_every_single_change_of_every_snapshot_has_a_finding(found: list[list[str]], data: st.DataObject) -> None:
    what, change = data.draw(st.sampled_from(list(snapshot_changes.all_changes(found))))
    assert examine(change(snapshots.build_snapshot(found))).findings, what


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("vm0/blue: link tap", "TapMissing"),
        ("vm0/blue: element removed", "ElementMissing"),
        ("vm0/blue: status removed", "StatusEntryMissing"),
        ("vm0/blue: recorded attachment gone", "AttachmentMissing"),
        ("vm0/blue: record of the pod NIC removed", "PodNicRecordMissing"),
        ("vm0/blue: tap not held", "TapNotHeld"),
        ("vm0/blue: guest device gone", "GuestDeviceMissing"),
        ("vm0/blue: lease gone", "LeaseMissing"),
        ("vm0/blue: node's end of the veth off", "HostVethOffBridge"),
        ("vm0/blue: veth with another peer", "HostVethMissing"),
        ("vm0: no sandbox", "SandboxMissing"),
        ("vm0: no acting pod", "NoActingPod"),
        ("vm0: record gone", "RecordMissing"),
        ("vm0: operation left over on the VM", "OperationLeftOver"),
        ("vm0: networks annotation malformed", "Malformed"),
        ("vm0/blue: stored entry gone", "HotplugStatusMissing"),
        ("vm0/blue: stored entry unreadable", "HotplugStatusDiffers"),
        ("vm0/blue: stored entry with another stage", "HotplugStatusDiffers"),
        ("vm0: stored entry left over", "HotplugStatusLeftOver"),
        ("record orphaned", "RecordOrphaned"),
        ("lease orphaned", "LeaseOrphaned"),
        ("namespace orphaned", "NamespaceOrphaned"),
        ("veth orphaned", "HostVethOrphaned"),
    ],
)
def test_finding_has_the_code_of_the_change(change: str, code: str) -> None:
    found = [apply for what, apply in snapshot_changes.all_changes(TWO) if what.startswith(change)]
    assert found
    assert code in codes(examine(found[0](snapshots.build_snapshot(TWO))))


def test_finding_names_the_interface_and_its_repair() -> None:
    (change,) = [c for what, c in snapshot_changes.all_changes(TWO) if what == "vm0/green: tap not held"]
    (one,) = examine(change(snapshots.build_snapshot(TWO))).findings
    assert one.subject == "default/vm0/green"
    assert "hotnic removeinterface vm0 --name green -n default" in one.repair


def test_finding_about_a_stored_entry_names_the_field_and_the_writer() -> None:
    (change,) = [
        c for what, c in snapshot_changes.all_changes(TWO) if what == "vm0/blue: stored entry with another stage"
    ]
    (one,) = examine(change(snapshots.build_snapshot(TWO))).findings
    assert (one.subject, one.message) == (
        "default/vm0/blue",
        "stage: guest-attached in the objects, multus-attached in the stored hot-plug status",
    )
    assert "controller" in one.repair


def test_at_restart_is_not_compared_without_the_vm() -> None:
    (change,) = [
        c for what, c in snapshot_changes.all_changes(TWO) if what == "vm0/blue: stored entry with another at_restart"
    ]

    def forbidden(vm_snapshot: VmSnapshot) -> VmSnapshot:
        return msgspec.structs.replace(vm_snapshot, vm=NotVisible("forbidden"))

    snapshot = hotplug_status_changes.change_vm_only(0, forbidden)(change(snapshots.build_snapshot(TWO)))
    assert examine(snapshot).findings == ()
    # The entry may belong to an interface of the template, which is not visible.
    assert examine(hotplug_status_changes.add_leftover_entry(0)(snapshot)).findings == ()


def with_operation(kind: str) -> hotplug_status_changes.SnapshotChange:
    """Return a change that gives NIC ``blue`` of vm0 a plug or unplug operation in progress."""

    def plug(snapshot: Snapshot) -> Snapshot:
        return snapshot_changes.change_status_entry(0, "blue", infoSource="multus-status")(snapshot)

    def unplug(snapshot: Snapshot) -> Snapshot:
        def set_absent(vm_snapshot: VmSnapshot) -> VmSnapshot:
            document = msgspec.to_builtins(vm_snapshot.vmi)
            for interface in document["spec"]["domain"]["devices"]["interfaces"]:
                if interface["name"] == "blue":
                    interface["state"] = "absent"
            return msgspec.structs.replace(vm_snapshot, vmi=msgspec.convert(document, type(vm_snapshot.vmi)))

        return snapshot_changes.change_vm(0, set_absent)(snapshot)

    return plug if kind == "plug" else unplug


@pytest.mark.parametrize("kind", ["plug", "unplug"])
def test_operation_in_progress_is_listed_and_not_checked(kind: str) -> None:
    report = examine(with_operation(kind)(snapshots.build_snapshot(TWO)))
    assert report.findings == ()
    (operation,) = report.in_progress
    assert operation.subject == "default/vm0/blue"
    assert kind in operation.message
    assert operation.since == ("2026-01-01T00:00:00Z" if kind == "plug" else None)
    assert report.checked_nics == 2


@pytest.mark.parametrize("kind", ["plug", "unplug"])
def test_changes_of_an_operation_in_progress_have_no_findings(kind: str) -> None:
    not_in_progress = {"removed from the spec of the VMI", "status.interfaces without multus-status"}
    for what, change in snapshot_changes.all_changes(TWO):
        where, _, done = what.partition(": ")
        if where == "vm0/blue" and done not in not_in_progress and "status.interfaces" not in done:
            report = examine(with_operation(kind)(change(snapshots.build_snapshot(TWO))))
            assert not report.findings, what
            assert report.in_progress


def test_vm_that_starts_or_migrates_is_not_checked() -> None:
    for fields in (
        {"phase": "Scheduling"},
        {"migrationState": {"targetNode": "other"}},
    ):

        def change(vm_snapshot: VmSnapshot, fields: dict[str, Any] = fields) -> VmSnapshot:
            document = msgspec.to_builtins(vm_snapshot.vmi)
            document["status"] |= fields
            return msgspec.structs.replace(vm_snapshot, vmi=msgspec.convert(document, type(vm_snapshot.vmi)))

        report = examine(snapshot_changes.change_vm(0, change)(snapshots.build_snapshot(TWO)))
        assert (report.findings, len(report.in_progress)) == ((), 1)


def test_parts_that_are_not_visible_are_listed_and_not_checked() -> None:
    without_parts = snapshot_changes.change_pod_on_node(
        0, lambda _: PodOnNode("sandbox-of-vm0", "/var/run/netns/cni-vm0")
    )(snapshots.build_snapshot(TWO))
    report = examine(without_parts)
    assert report.findings == ()
    assert {part.part for part in report.not_checked} == {
        "the links in the pod",
        "the taps that the guest holds open",
        "the devices in the guest's domain",
    }
    without_api = hotplug_status_changes.change_vm_only(
        1, lambda x: msgspec.structs.replace(x, hotplug_status=NotVisible("no api"))
    )
    report = examine(without_api(snapshots.build_snapshot(TWO)))
    assert report.findings == ()
    assert [(part.subject, part.part, part.message) for part in report.not_checked] == [
        ("default/vm1", "the stored hot-plug status", "no api")
    ]
    report = examine(msgspec.structs.replace(snapshots.build_snapshot(TWO), node=NotVisible("not root")))
    assert report.findings == ()
    assert [(part.subject, part.message) for part in report.not_checked] == [("node", "not root")]


def test_node_checks_can_be_disabled() -> None:
    (add_orphan,) = [change for what, change in snapshot_changes.all_changes(TWO) if what == "lease orphaned"]
    assert codes(examine(add_orphan(snapshots.build_snapshot(TWO)))) == {"LeaseOrphaned"}
    assert codes(examine(add_orphan(snapshots.build_snapshot(TWO)), node=False)) == set()


def test_confirmed_report_has_only_findings_of_both_snapshots() -> None:
    changes = dict(snapshot_changes.all_changes(TWO))
    first = examine(changes["vm0/blue: tap not held"](changes["lease orphaned"](snapshots.build_snapshot(TWO))))
    second = examine(changes["vm0/blue: guest device gone"](changes["lease orphaned"](snapshots.build_snapshot(TWO))))
    assert codes(confirmed(first, second)) == {"LeaseOrphaned"}


def test_operation_of_an_unplug_without_persist_is_not_left_over() -> None:
    # The template lists the interface for the next start. The operation prevents a plug before that.
    def template_only(vm_snapshot: VmSnapshot) -> VmSnapshot:
        document = msgspec.to_builtins(vm_snapshot.vm)
        spec = document["spec"]["template"]["spec"]
        spec["domain"]["devices"]["interfaces"].append({"name": "unknown", "bridge": {}})
        spec["networks"].append({"name": "unknown", "multus": {"networkName": snapshots.NAD}})
        return msgspec.structs.replace(vm_snapshot, vm=msgspec.convert(document, type(vm_snapshot.vm)))

    mark = encode_annotation(Operation("x", OperationKind.UNPLUG, "unknown"))
    snapshot = snapshot_changes.annotate_vmi(0, operation_key("unknown"), mark)(
        snapshot_changes.change_vm(0, template_only)(snapshots.build_snapshot(TWO))
    )
    assert examine(snapshot) == DoctorReport((), (), (), 3)


def test_unplug_is_in_progress_until_the_template_is_cleared() -> None:
    def absent(vm_snapshot: VmSnapshot) -> VmSnapshot:
        document = msgspec.to_builtins(vm_snapshot.vm)
        spec = document["spec"]["template"]["spec"]
        spec["domain"]["devices"]["interfaces"].append({"name": "unknown", "bridge": {}, "state": "absent"})
        return msgspec.structs.replace(vm_snapshot, vm=msgspec.convert(document, type(vm_snapshot.vm)))

    report = examine(snapshot_changes.change_vm(0, absent)(snapshots.build_snapshot(TWO)))
    assert report.findings == ()
    (operation,) = report.in_progress
    assert (operation.subject, "not yet removed from the VM's template" in operation.message) == (
        "default/vm0/unknown",
        True,
    )
