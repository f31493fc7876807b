"""The doctor has no findings after plugs, and finds manual damage and names its repair."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from lab.cli import commands
from schemas.bus.encoding import StatusKey
from schemas.bus.hotplug_status import BUCKET, StatusEntry, decode_entry, encode_entry
from schemas.kubernetes.networks import NETWORK_STATUS
from schemas.kubernetes.operations import pod_nic_key, read_pod_nic
from schemas.names import interface_hash, pod_interface, tap
from schemas.stages import Stage
from services.common.bus.nats.jetstream import connect
from services.common.bus.protocol import KeyValue
from tests.support.lab.doctor import assert_no_findings, codes, run_doctor
from tests.support.lab.running import SAMPLE_NAD, Lab
from tests.support.telemetry.spans import recording_telemetry

VM = "damaged"
NIC = "blue"
SUBJECT = f"default/{VM}/{NIC}"
UNUSED_IP = "10.77.0.250"
KEY = str(StatusKey("default", VM, interface_hash(NIC)))
UNKNOWN_KEY = str(StatusKey("default", VM, interface_hash("unknown")))


def plug(lab: Lab, vm: str, interface: str) -> None:
    done = lab.hotnic(
        "addinterface", vm, "--name", interface, "--network-attachment-definition-name", SAMPLE_NAD, "--wait"
    )
    assert done.returncode == 0, done.stderr


def run(lab: Lab, *command: str) -> str:
    """Run a command inside the lab, which must succeed, and return its output."""
    done = lab.hotnic("lab", "exec", "--", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Target:
    """A VM with one NIC that only this module uses, and the paths of its parts."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pod = lab.pod(lab.vmi(VM))
        record = read_pod_nic(self.pod.metadata.annotations, pod_nic_key(NIC))
        assert record is not None
        self.ip = record.ips[0].partition("/")[0]
        self.state = lab.layout.state / "cni"
        self.record = self.state / "multus" / "sandboxes" / f"{record.sandbox_id}.json"
        self.lease = self.state / "networks" / SAMPLE_NAD / self.ip
        self.netns = Path(json.loads(self.record.read_text())["netns"]).name

    def ip_link(self, *arguments: str) -> None:
        """Change a link in the pod."""
        run(self.lab, "ip", "-n", self.netns, "link", *arguments)

    def annotate(self, key: str, text: str) -> None:
        """Overwrite an annotation of the pod."""
        self.lab.kubectl("annotate", "pod", self.pod.metadata.name, "--overwrite", f"{key}={text}")


@pytest.fixture(scope="module")
def target(lab: Lab) -> Iterator[Target]:
    lab.boot(VM)
    plug(lab, VM, NIC)
    assert_no_findings(lab)
    yield Target(lab)
    lab.kubectl("delete", "vm", VM, "--wait=true")
    assert_no_findings(lab)


@contextlib.contextmanager
def renamed(file: Path) -> Iterator[None]:
    renamed_file = file.with_name(f".{file.name}.aside")
    file.rename(renamed_file)
    try:
        yield
    finally:
        renamed_file.rename(file)


@contextlib.contextmanager
def unused_lease(target: Target) -> Iterator[None]:
    file = target.lease.with_name(UNUSED_IP)
    file.write_text("0123456789abcdef\r\nnet1")
    try:
        yield
    finally:
        file.unlink()


@contextlib.contextmanager
def network_status_edited(target: Target) -> Iterator[None]:
    output: list[str] = []
    directory = target.lab.layout.dir
    before = target.lab.pod(target.lab.vmi(VM)).metadata.annotations[NETWORK_STATUS]
    left = [one for one in json.loads(before) if one["interface"] != pod_interface(NIC)]
    # The networks role would restore the entry before the doctor runs.
    assert commands.change(directory, "stop", "networks", output.append) == 0, output
    try:
        target.annotate(NETWORK_STATUS, json.dumps(left))
        yield
    finally:
        target.annotate(NETWORK_STATUS, before)
        assert commands.change(directory, "start", "networks", output.append) == 0, output


@contextlib.contextmanager
def off_the_bridge(target: Target) -> Iterator[None]:
    target.ip_link("set", tap(NIC), "nomaster")
    try:
        yield
    finally:
        target.ip_link("set", tap(NIC), "master", f"k6t-{pod_interface(NIC)[3:]}")


@contextlib.contextmanager
def unused_netns(target: Target) -> Iterator[None]:
    run(target.lab, "ip", "netns", "add", "cni-unused")
    try:
        yield
    finally:
        run(target.lab, "ip", "netns", "del", "cni-unused")


Damage = Callable[[Target], contextlib.AbstractContextManager[Any]]


async def test_doctor_has_no_findings_after_plugs(lab: Lab, vm: str, interface: str) -> None:
    plug(lab, vm, interface)
    plug(lab, lab.take_slot(), lab.interface_name())
    report = assert_no_findings(lab)
    assert report["checkedNics"] >= 2
    # Outside the node only objects are compared, and the report says so.
    done = lab.hotnic("doctor", vm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no findings; " in done.stdout
    assert "node: not checked" in done.stdout


@pytest.mark.parametrize(
    ("damage", "subject", "code", "repair"),
    [
        pytest.param(lambda p: renamed(p.record), f"default/{VM}", "RecordMissing", "restart the VM", id="record"),
        pytest.param(lambda p: renamed(p.lease), SUBJECT, "LeaseMissing", "unplug", id="lease"),
        pytest.param(network_status_edited, SUBJECT, "StatusEntryMissing", "networks role", id="network status"),
        pytest.param(off_the_bridge, SUBJECT, "TapOffBridge", "removeinterface", id="bridge"),
        pytest.param(unused_lease, "lab", "LeaseOrphaned", "remove the file", id="unused lease"),
        pytest.param(unused_netns, "lab", "NamespaceOrphaned", "umount", id="unused namespace"),
    ],
)
def test_manual_damage_has_a_finding_until_it_is_repaired(
    target: Target, damage: Damage, subject: str, code: str, repair: str
) -> None:
    with damage(target):
        report = run_doctor(target.lab, "-A")
        found = [one for one in report["findings"] if (one["subject"], one["code"]) == (subject, code)]
        assert len(found) == 1, json.dumps(report, indent=2)
        assert repair in found[0]["repair"]
    assert_no_findings(target.lab)


@contextlib.asynccontextmanager
async def status_bucket(lab: Lab) -> AsyncIterator[KeyValue]:
    """A connection to the key-value bucket of the hot-plug status, with the identity of the controller."""
    environment, telemetry = lab.nats_of("controller"), recording_telemetry()[0]
    bus = await connect(
        environment["NATS_URL"],
        role="controller",
        node="_",
        telemetry=telemetry,
        log=structlog.get_logger(),
        environ=environment,
    )
    try:
        async with asyncio.timeout(45):
            await bus.wait_connected()
        yield bus.kv(BUCKET)
    finally:
        await bus.close()


async def stored(bucket: KeyValue, key: str = KEY) -> StatusEntry | None:
    found = await bucket.get(key)
    return decode_entry(found.value) if found is not None else None


async def falsify(bucket: KeyValue) -> StatusEntry:
    """Write another stage into the stored entry and add an entry of an unknown interface; return the entry before."""
    before = await stored(bucket)
    assert before is not None
    nic_status = msgspec.structs.replace(before.status, stage=Stage.POD_ANNOTATED)
    await bucket.put(KEY, encode_entry(msgspec.structs.replace(before, status=nic_status)))
    await bucket.put(UNKNOWN_KEY, encode_entry(before))
    return before


async def test_wrong_stored_status_has_findings_until_a_controller_rewrites_it(target: Target) -> None:
    lab = target.lab
    async with status_bucket(lab) as bucket:
        with lab.stopped("controller"):
            await falsify(bucket)
            report = await asyncio.to_thread(run_doctor, lab, VM)
            found = {(one["subject"], one["code"]): one for one in report["findings"]}
            assert set(found) == {(SUBJECT, "HotplugStatusDiffers"), (f"default/{VM}", "HotplugStatusLeftOver")}, (
                json.dumps(report)
            )
            message = found[SUBJECT, "HotplugStatusDiffers"]["message"]
            assert "pod-annotated in the stored hot-plug status" in message
            assert all("controller" in one["repair"] for one in found.values())
            await bucket.delete(KEY)
            report = await asyncio.to_thread(run_doctor, lab, VM)
            assert codes(report, SUBJECT) == {"HotplugStatusMissing"}, json.dumps(report)
        await asyncio.to_thread(assert_no_findings, lab)
        rewritten = await stored(bucket)
        assert rewritten is not None
        assert rewritten.status.stage is Stage.GUEST_ATTACHED
        assert await stored(bucket, UNKNOWN_KEY) is None


async def test_leading_controller_rewrites_the_stored_status_at_once(target: Target) -> None:
    async with status_bucket(target.lab) as bucket:
        before = await falsify(bucket)
        # Much less than the resync period.
        async with asyncio.timeout(45), contextlib.aclosing(bucket.watch()) as changes:
            held: dict[str, StatusEntry | None] = {}
            async for change in changes:
                if change is not None:
                    held[change.key] = decode_entry(change.value)
                if held.get(KEY) == before and held.get(UNKNOWN_KEY) is None:
                    break
    await asyncio.to_thread(assert_no_findings, target.lab)


def test_stored_status_is_not_checked_without_the_api_or_nats(target: Target) -> None:
    for component, message in (("api", "hotnic's api does not return it"), ("nats", "is not connected to NATS")):
        with target.lab.stopped(component):
            report = run_doctor(target.lab, VM)
            assert not report["findings"]
            (part,) = report["notChecked"]
            assert (part["subject"], part["part"]) == (f"default/{VM}", "the stored hot-plug status")
            assert message in part["message"]
    assert_no_findings(target.lab)


def test_deleted_tap_has_a_finding_for_link_and_guest(target: Target) -> None:
    target.ip_link("del", tap(NIC))
    report = run_doctor(target.lab, VM)
    assert codes(report, SUBJECT) == {"TapMissing", "TapNotHeld"}, json.dumps(report, indent=2)
    # Only an unplug repairs this. The fixture deletes the VM, which must leave nothing either.
