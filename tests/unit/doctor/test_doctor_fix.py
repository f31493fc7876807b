"""`hotnic doctor --fix`: which findings carry a change, the guarded patches, and what happens when it is applied."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, NetworkSelectionElement
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, pod_nic_key
from schemas.names import interface_hash, pod_interface
from schemas.stages import OperationKind
from services.cli.__main__ import main
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.examine import examine
from services.cli.doctor.fix.apply import FixOutcome, FixResult, StepApplier
from services.cli.doctor.fix.changes import (
    AnnotationRemoval,
    ElementRemoval,
    Fix,
    FixTarget,
    LeaseRemoval,
    RecordRemoval,
    describe_change,
)
from services.cli.doctor.fix.plan import FixStep, ObjectPatch, plan_fixes, without_elements
from services.cli.doctor.fix.rounds import MAX_ROUNDS, FixReport, MadeChange, change_line, fix_findings
from services.cli.doctor.snapshot import (
    AttachmentRecord,
    DoctorReport,
    Finding,
    IpamLease,
    NetnsPath,
    NotVisible,
    ObservedLink,
    SandboxRecords,
    Snapshot,
)
from services.common.kube.client import Kube
from tests.support.doctor import snapshot_changes as changes
from tests.support.doctor.hotplug_status_changes import SnapshotChange, change_vm_only
from tests.support.doctor.snapshots import build_snapshot
from tests.support.kube.node_kube import FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.observed import objects
from tests.support.telemetry.spans import recording_telemetry

VMS = (("blue",),)
H = interface_hash("unknown")
LINK, TAP = pod_interface("unknown"), f"tap{H}"
POD = "Pod default/virt-launcher-vm0-abcde"
LONG_AGO, NOW = 1000.0, 1_800_000_000.0
BY_NAME = dict(changes.all_changes(VMS))


def combined(*parts: SnapshotChange | str) -> Snapshot:
    """Return a snapshot with some changes, which are functions or the ends of their descriptions."""
    snapshot = build_snapshot(VMS)
    for part in parts:
        if isinstance(part, str):
            (part,) = [change for name, change in BY_NAME.items() if name.removeprefix("vm0: ") == part]
        snapshot = part(snapshot)
    return snapshot


def fixes(snapshot: Snapshot, code: str) -> list[Fix | None]:
    return [one.fix for one in examine(snapshot).findings if one.code == code]


def with_node(**fields: Any) -> SnapshotChange:
    return lambda w: msgspec.structs.replace(w, node=msgspec.structs.replace(w.node, **fields))


def with_record(*attached: AttachmentRecord) -> SnapshotChange:
    record = SandboxRecords("gone", "/run/netns/cni-gone", "x/y", "u", attached, False, ("/r/gone.json",), LONG_AGO)
    return changes.change_node("records", lambda found: [*found, record])


def with_lease(ip: str = "10.9.9.9") -> SnapshotChange:
    lease = IpamLease("net", ip, "gone", "net1", f"/leases/net/{ip}", LONG_AGO)
    return changes.change_node("leases", lambda found: [*found, lease])


def with_template_interface(w: Snapshot) -> Snapshot:
    def add(vm_snapshot: Any) -> Any:
        document = msgspec.to_builtins(vm_snapshot.vm)
        spec = document["spec"]["template"]["spec"]
        spec["domain"]["devices"]["interfaces"].append({"name": "unknown", "bridge": {}})
        return msgspec.structs.replace(vm_snapshot, vm=msgspec.convert(document, type(vm_snapshot.vm)))

    return change_vm_only(0, add)(w)


def with_plain_link(w: Snapshot) -> Snapshot:
    return changes.change_links(0, lambda found: [*found, ObservedLink(98, LINK, "veth", up=True)])(w)


def unnamed_element(w: Snapshot) -> Snapshot:
    return changes.change_elements(0, lambda found: [*found, NetworkSelectionElement(name="other")])(w)


UPSTREAM = with_node(has_multus=False, addresses=frozenset({"10.0.0.1"}))
ELEMENT, NIC_RECORD, TAP_LINK = "element left over", "record of a pod NIC left over", "link left over"


@pytest.mark.parametrize(
    ("parts", "code", "description"),
    [
        ((ELEMENT,), "ElementLeftOver", f"element {LINK} of the networks annotation of {POD}"),
        (
            (ELEMENT, "status left over", with_plain_link),
            "ElementLeftOver",
            f"element {LINK} of the networks annotation of {POD}",
        ),
        ((NIC_RECORD,), "PodAnnotationLeftOver", f"annotation {pod_nic_key('unknown')} of {POD}"),
        (
            ("operation left over on the pod",),
            "OperationLeftOver",
            f"annotation {operation_key('unknown')} of {POD}",
        ),
        (
            ("operation left over on the VMI",),
            "OperationLeftOver",
            f"annotation {operation_key('unknown')} of VirtualMachineInstance default/vm0",
        ),
        (
            ("operation left over on the VM",),
            "OperationLeftOver",
            f"annotation {operation_key('unknown')} of VirtualMachine default/vm0",
        ),
        (
            ("slots of another pod",),
            "SlotsDiffer",
            "annotation hotnic.io/nic-slots of VirtualMachineInstance default/vm0",
        ),
        ((TAP_LINK,), "LinkLeftOver", f"link {TAP} in Pod default/virt-launcher-vm0-abcde"),
        (
            (with_record(), UPSTREAM),
            "RecordOrphaned",
            "the multus daemon's record of sandbox gone (Pod x/y)",
        ),
        (
            (with_record(AttachmentRecord("net1", "ns/a", ips=("10.9.9.9",))), UPSTREAM),
            "RecordOrphaned",
            "the multus daemon's record of sandbox gone (Pod x/y); its IPAM still reserves 10.9.9.9 of ns/a",
        ),
        (
            (with_lease(), UPSTREAM),
            "LeaseOrphaned",
            "host-local's lease of 10.9.9.9 on network net (/leases/net/10.9.9.9)",
        ),
        # The daemon has no record of the sandbox, so it frees nothing.
        (
            (with_lease(), UPSTREAM, with_node(has_multus=True)),
            "LeaseOrphaned",
            "host-local's lease of 10.9.9.9 on network net (/leases/net/10.9.9.9)",
        ),
    ],
)
def test_leftover_that_nothing_uses_has_a_fix(
    parts: tuple[SnapshotChange | str, ...], code: str, description: str
) -> None:
    (fix,) = fixes(combined(*parts), code)
    assert fix is not None
    assert describe_change(fix) == description


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        pytest.param(
            (ELEMENT, "status left over", with_plain_link, TAP_LINK), "ElementLeftOver", id="attached, with a tap"
        ),
        pytest.param(
            (ELEMENT, "status left over", with_plain_link, "tap of an unknown interface held"),
            "ElementLeftOver",
            id="attached, tap held",
        ),
        pytest.param(
            (ELEMENT, "status left over", with_plain_link, "status.interfaces of an unknown interface"),
            "ElementLeftOver",
            id="attached, in the status",
        ),
        pytest.param(
            (ELEMENT, "status left over", changes.change_vm(0, lambda x: msgspec.structs.replace(x, pods_on_node={}))),
            "ElementLeftOver",
            id="attached, node not visible",
        ),
        pytest.param((ELEMENT, TAP_LINK), "ElementLeftOver", id="link in the pod"),
        pytest.param((ELEMENT, "tap of an unknown interface held"), "ElementLeftOver", id="tap held"),
        pytest.param((ELEMENT, "guest device of an unknown interface"), "ElementLeftOver", id="guest device"),
        pytest.param((ELEMENT, "status.interfaces of an unknown interface"), "ElementLeftOver", id="in the status"),
        pytest.param(
            (ELEMENT, changes.change_attached(0, lambda found: [*found, AttachmentRecord(LINK, "ns/a", False)])),
            "ElementLeftOver",
            id="being attached",
        ),
        pytest.param((ELEMENT, with_template_interface), "ElementLeftOver", id="in the template"),
        pytest.param((ELEMENT, unnamed_element), "ElementLeftOver", id="would rename the next element"),
        pytest.param(
            (ELEMENT, change_vm_only(0, lambda x: msgspec.structs.replace(x, vm=NotVisible("forbidden")))),
            "ElementLeftOver",
            id="template not visible",
        ),
        pytest.param((NIC_RECORD, TAP_LINK), "PodAnnotationLeftOver", id="record of a link in the pod"),
        pytest.param(
            ("operation left over on the VMI", "status.interfaces of an unknown interface"),
            "OperationLeftOver",
            id="operation of an interface in the status",
        ),
        pytest.param((TAP_LINK, "tap of an unknown interface held"), "LinkLeftOver", id="link with a tap held"),
        pytest.param((with_record(), with_node(addresses=frozenset())), "RecordOrphaned", id="daemon removes it"),
        pytest.param(
            (
                with_record(),
                UPSTREAM,
                changes.change_node("namespaces", lambda found: [*found, NetnsPath("/run/netns/cni-gone", "gone", ())]),
            ),
            "RecordOrphaned",
            id="network namespace exists",
        ),
        pytest.param((with_lease("10.0.0.1"), UPSTREAM), "LeaseOrphaned", id="a link has the address"),
        pytest.param(
            (with_lease(), with_record(), UPSTREAM, with_node(has_multus=True)), "LeaseOrphaned", id="daemon frees it"
        ),
    ],
)
def test_what_may_be_in_use_has_no_fix(parts: tuple[SnapshotChange | str, ...], code: str) -> None:
    assert fixes(combined(*parts), code) == [None]


def test_record_of_an_attachment_whose_element_was_removed_has_no_fix() -> None:
    (found,) = fixes(combined("vm0/blue: element removed", "vm0/blue: status removed"), "PodAnnotationLeftOver")
    assert found is None


def test_operation_of_a_vm_that_does_not_run_has_a_fix() -> None:
    def stop(vm_snapshot: Any) -> Any:
        return msgspec.structs.replace(vm_snapshot, vmi=None, pods=())

    stopped = change_vm_only(0, stop)(combined("operation left over on the VM"))
    (fix,) = fixes(stopped, "OperationLeftOver")
    assert isinstance(fix, AnnotationRemoval)
    assert fix.target == FixTarget("VirtualMachine", "default", "vm0", "vm-uid-vm0")


def test_operation_is_not_removed_until_its_grace_period_is_over() -> None:
    operation = Operation("x", OperationKind.PLUG, "unknown", requested_at="2026-01-01T00:00:00Z")
    snapshot = combined(ELEMENT, changes.annotate_vmi(0, operation_key("unknown"), encode_annotation(operation)))
    findings = examine(snapshot).findings
    requested = 1767225600.0
    early, late = plan_fixes(findings, requested + 119), plan_fixes(findings, requested + 121)
    assert (len(early.steps), len(early.postponed)) == (0, 2)
    assert (len(late.steps), len(late.postponed)) == (2, 0)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00", "9999-12-31T23:59:59", "never"])
def test_operation_with_an_impossible_time_has_no_grace_period(time: str) -> None:
    operation = Operation("x", OperationKind.PLUG, "unknown", requested_at=time)
    snapshot = combined(ELEMENT, changes.annotate_vmi(0, operation_key("unknown"), encode_annotation(operation)))
    assert plan_fixes(examine(snapshot).findings, 0.0)


def test_changes_of_one_object_are_one_patch_that_tests_what_they_are_based_on() -> None:
    gone = encode_annotation(Operation("x", OperationKind.UNPLUG, "other"))
    snapshot = combined(ELEMENT, changes.annotate_pod(0, operation_key("other"), gone))
    annotations = snapshot.vms[0].pods[0].metadata.annotations
    (patch,) = plan_fixes(examine(snapshot).findings, NOW).steps
    assert isinstance(patch, ObjectPatch)
    operation = f"/metadata/annotations/hotnic.io~1operation.{interface_hash('other')}"
    networks = "/metadata/annotations/k8s.v1.cni.cncf.io~1networks"
    assert sorted(patch.ops[:4], key=lambda op: op["path"]) == [
        {"op": "test", "path": operation, "value": gone},
        {"op": "test", "path": f"{networks.removesuffix('s')}-status", "value": annotations[NETWORK_STATUS]},
        {"op": "test", "path": networks, "value": annotations[NETWORKS]},
        {"op": "test", "path": "/metadata/uid", "value": "pod-uid-vm0"},
    ]
    assert patch.ops[4:] == (
        {
            "op": "replace",
            "path": networks,
            "value": f'[{{"name":"bridge-net","namespace":"default","interface":"{pod_interface("blue")}"}}]',
        },
        {"op": "remove", "path": operation},
    )


@pytest.mark.parametrize(
    ("networks", "after"),
    [
        ('[{"name": "a", "interface": "x"}]', ""),
        ('[{"name":"a","interfaceRequest":"x"},{"name":"b","new":[1]}]', '[{"name":"b","new":[1]}]'),
        ("ns/a@x, b@y,c", " b@y,c"),
    ],
)
def test_other_elements_keep_all_their_fields(networks: str, after: str) -> None:
    assert without_elements(networks, {"x"}) == after


# -- applied -------------------------------------------------------------------------------------------------------

TARGET = FixTarget("Pod", "default", "p", "uid-p")
FOUND = Finding(
    "ElementLeftOver",
    "default/vm",
    "…",
    "…",
    ElementRemoval(TARGET, "x", ((NETWORKS, "a@x,b@y"), (NETWORK_STATUS, None))),
)


@contextlib.asynccontextmanager
async def served(tmp_path: Path, *, dry_run: bool = False) -> AsyncIterator[tuple[FakeKube, StepApplier]]:
    async with serving_kube(FakeKube()) as kube:
        kube.put("pods", "default", "p", metadata={"annotations": {NETWORKS: "a@x,b@y"}})
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        telemetry = recording_telemetry()[0]
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            yield kube, StepApplier(client, NodeSettings(), dry_run=dry_run)


async def fix(
    applier: StepApplier, *later: tuple[Finding, ...], dry_run: bool = False, first: tuple[Finding, ...] = (FOUND,)
) -> FixReport:
    """Fix findings; each further examination has the next of the later findings."""
    reports = iter(later)

    async def examine_again() -> DoctorReport:
        return DoctorReport(next(reports), (), (), 1)

    said: list[MadeChange] = []
    result = await fix_findings(
        DoctorReport(first, (), (), 1),
        examine=examine_again,
        apply=applier.apply,
        clock=lambda: NOW,
        say=said.append,
        dry_run=dry_run,
    )
    assert tuple(said) == result.changes
    return result


async def test_fix_removes_the_element_and_examines_again(tmp_path: Path) -> None:
    async with served(tmp_path) as (kube, applier):
        result = await fix(applier, ())
        assert kube.annotations("pods", "default", "p") == {NETWORKS: "b@y"}
    assert [change_line(made) for made in result.changes] == [
        "removed element x of the networks annotation of Pod default/p"
    ]
    assert result.complete


async def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, dry_run=True) as (kube, applier):
        result = await fix(applier, dry_run=True)
        assert kube.annotations("pods", "default", "p") == {NETWORKS: "a@x,b@y"}
        assert kube.counted("PATCH", "pods") == 1
    assert change_line(result.changes[0]).startswith("would remove element x")
    assert change_line(result.changes[0]).endswith("(server dry run)")
    assert result.complete


async def test_object_that_changed_is_left_alone_and_examined_again(tmp_path: Path) -> None:
    async with served(tmp_path) as (kube, applier):
        kube.annotate("pods", "default", "p", {NETWORK_STATUS: "[]"})
        result = await fix(applier, (FOUND,), (FOUND,), (FOUND,))
        assert kube.annotations("pods", "default", "p")[NETWORKS] == "a@x,b@y"
    assert [made.outcome for made in result.changes] == [FixOutcome.CHANGED] * MAX_ROUNDS
    assert not result.complete


async def test_missing_right_is_named_and_the_step_not_repeated(tmp_path: Path) -> None:
    def refuse(method: str, plural: str, name: str) -> None:
        message = f'{plural} "{name}" is forbidden: User "u" cannot patch resource "{plural}" in API group "" in the'
        raise Refused(403, "Forbidden", f'{message} namespace "default"')

    async with served(tmp_path) as (kube, applier):
        kube.before = refuse
        result = await fix(applier, (FOUND,))
        assert kube.counted("PATCH", "pods") == 1
    (made,) = result.changes
    assert made.outcome is FixOutcome.FAILED
    assert "you may not patch pods in namespace default" in made.message
    assert "kubectl auth can-i patch pods -n default" in made.message
    assert not result.complete


async def test_finding_without_a_fix_is_left(tmp_path: Path) -> None:
    other = Finding("TapMissing", "default/vm/blue", "…", "plug it again")
    async with served(tmp_path) as (_kube, applier):
        assert not (await fix(applier, first=(other,))).complete
        assert not (await fix(applier, first=(other,), dry_run=True)).complete
        assert (await fix(applier, first=())).complete


@pytest.mark.parametrize("dry_run", [True, False])
async def test_command_prints_findings_changes_and_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dry_run: bool
) -> None:
    async with serving_kube(FakeKube()) as kube:
        document = msgspec.to_builtins(objects.vm())
        document["metadata"]["annotations"] = {operation_key("unknown"): "{}"}
        kube.put("virtualmachines", "default", "vm1", **document)
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        paths = f"cri-socket={tmp_path}/none"
        arguments = ["doctor", "--fix", "--kubeconfig", config, "-n", "default", "--node-paths", paths]
        code = await asyncio.to_thread(main, [*arguments, *(["--dry-run"] if dry_run else [])])
        left = kube.annotations("virtualmachines", "default", "vm1")
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    what = f"annotation {operation_key('unknown')} of VirtualMachine default/vm1"
    assert lines[0].startswith("default/vm1: OperationLeftOver: the VM has an operation in annotation")
    assert captured.err == f"cluster {kube.url}, context fake\n"
    assert (code, bool(left)) == (0, dry_run)
    if dry_run:
        assert lines[-1] == f"would remove {what} (server dry run)"
    else:
        assert lines[1] == f"removed {what}"
        assert lines[-1] == "no findings; 0 network interfaces checked"


def node(tmp_path: Path) -> NodeSettings:
    (tmp_path / "proc").mkdir()
    return NodeSettings(host_root=str(tmp_path), socket_dir=str(tmp_path / "run"))


async def apply(change: FixStep, paths: NodeSettings) -> FixResult:
    async with serving_kube(FakeKube()) as kube:
        config = write_kubeconfig(Path(paths.host_root) / "kubeconfig", kube.url)
        telemetry = recording_telemetry()[0]
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            return await StepApplier(client, paths, dry_run=False).apply(change)


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (LONG_AGO, LONG_AGO))
    return file


@pytest.mark.parametrize("same", [True, False])
async def test_lease_is_removed_if_it_is_the_same(tmp_path: Path, same: bool) -> None:
    file = written(tmp_path / "leases/net/10.9.9.9", "gone\r\nnet1" if same else "new\r\nnet1")
    change = LeaseRemoval("net", "10.9.9.9", "/leases/net/10.9.9.9", "gone", "net1", LONG_AGO)
    result = await apply(change, node(tmp_path))
    assert result.outcome is (FixOutcome.FIXED if same else FixOutcome.CHANGED), result
    assert file.exists() is not same


@pytest.mark.parametrize("installed", [True, False])
async def test_record_is_removed_if_the_daemon_is_still_gone(tmp_path: Path, installed: bool) -> None:
    if installed:
        written(tmp_path / "opt/cni/bin/hotnic-multus", "")
    file = written(tmp_path / "sandboxes/gone.json", "{}")
    result = await apply(RecordRemoval("gone", "x/y", (str(file),), LONG_AGO), node(tmp_path))
    assert result.outcome is (FixOutcome.CHANGED if installed else FixOutcome.FIXED), result
    assert file.exists() is installed
