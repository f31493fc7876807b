"""The doctor finds nothing after plugs, and names what somebody breaks by hand, with what repairs it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from schemas.encoding import StatusKey
from schemas.hotplug_status import BUCKET, StatusEntry, encode, entry_of
from schemas.names import interface_hash, pod_interface, tap
from schemas.networks import NETWORK_STATUS
from schemas.operations import pod_nic_key, pod_nic_of
from schemas.stages import Stage
from services.common.bus.jetstream import connect
from services.common.bus.protocol import KeyValue
from services.lab import commands
from tests.support.doctor import assert_world_agrees, codes, doctor
from tests.support.lab import SAMPLE_NAD, Lab
from tests.support.spans import recording_telemetry

VM = "patient"
NIC = "blue"
SUBJECT = f"default/{VM}/{NIC}"
STRANGER = "10.77.0.250"
RUNG = str(StatusKey("default", VM, interface_hash(NIC)))
RUNG_OF_NOBODY = str(StatusKey("default", VM, interface_hash("nobody")))


def plug(lab: Lab, vm: str, interface: str) -> None:
    done = lab.hotnic(
        "addinterface", vm, "--name", interface, "--network-attachment-definition-name", SAMPLE_NAD, "--wait"
    )
    assert done.returncode == 0, done.stderr


def run(lab: Lab, *command: str) -> str:
    """A command inside the lab, which must succeed."""
    done = lab.hotnic("lab", "exec", "--", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Patient:
    """A VM of its own with one NIC, and where its parts are."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pod = lab.pod(lab.vmi(VM))
        record = pod_nic_of(self.pod.metadata.annotations, pod_nic_key(NIC))
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
        """Write an annotation of the pod over."""
        self.lab.kubectl("annotate", "pod", self.pod.metadata.name, "--overwrite", f"{key}={text}")


@pytest.fixture(scope="module")
def patient(lab: Lab) -> Iterator[Patient]:
    lab.boot(VM)
    plug(lab, VM, NIC)
    assert_world_agrees(lab)
    yield Patient(lab)
    lab.kubectl("delete", "vm", VM, "--wait=true")
    assert_world_agrees(lab)


@contextlib.contextmanager
def moved(file: Path) -> Iterator[None]:
    aside = file.with_name(f".{file.name}.aside")
    file.rename(aside)
    try:
        yield
    finally:
        aside.rename(file)


@contextlib.contextmanager
def lease_of_nobody(patient: Patient) -> Iterator[None]:
    file = patient.lease.with_name(STRANGER)
    file.write_text("0123456789abcdef\r\nnet1")
    try:
        yield
    finally:
        file.unlink()


@contextlib.contextmanager
def network_status_edited(patient: Patient) -> Iterator[None]:
    said: list[str] = []
    directory = patient.lab.layout.dir
    before = patient.lab.pod(patient.lab.vmi(VM)).metadata.annotations[NETWORK_STATUS]
    left = [one for one in json.loads(before) if one["interface"] != pod_interface(NIC)]
    # Otherwise it would put the entry back while we look.
    assert commands.change(directory, "stop", "networks", said.append) == 0, said
    try:
        patient.annotate(NETWORK_STATUS, json.dumps(left))
        yield
    finally:
        patient.annotate(NETWORK_STATUS, before)
        assert commands.change(directory, "start", "networks", said.append) == 0, said


@contextlib.contextmanager
def off_the_bridge(patient: Patient) -> Iterator[None]:
    patient.ip_link("set", tap(NIC), "nomaster")
    try:
        yield
    finally:
        patient.ip_link("set", tap(NIC), "master", f"k6t-{pod_interface(NIC)[3:]}")


@contextlib.contextmanager
def netns_of_nobody(patient: Patient) -> Iterator[None]:
    run(patient.lab, "ip", "netns", "add", "cni-nobody")
    try:
        yield
    finally:
        run(patient.lab, "ip", "netns", "del", "cni-nobody")


Breakage = Callable[[Patient], contextlib.AbstractContextManager[Any]]


async def test_after_plugs_nothing_disagrees(lab: Lab, vm: str, interface: str) -> None:
    plug(lab, vm, interface)
    plug(lab, lab.vm_with_a_slot(), lab.interface_name())
    report = assert_world_agrees(lab)
    assert report["lookedAt"] >= 2
    # From afar, as a user without the node: only objects are compared, and that is said.
    done = lab.hotnic("doctor", vm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no disagreement; " in done.stdout
    assert "node: not looked at" in done.stdout


@pytest.mark.parametrize(
    ("breakage", "subject", "code", "repair"),
    [
        pytest.param(lambda p: moved(p.record), f"default/{VM}", "RecordMissing", "restart the VM", id="record"),
        pytest.param(lambda p: moved(p.lease), SUBJECT, "LeaseMissing", "unplug", id="lease"),
        pytest.param(network_status_edited, SUBJECT, "StatusEntryMissing", "networks role", id="network status"),
        pytest.param(off_the_bridge, SUBJECT, "TapOffBridge", "removeinterface", id="bridge"),
        pytest.param(lease_of_nobody, "lab", "LeaseOrphaned", "remove the file", id="lease of nobody"),
        pytest.param(netns_of_nobody, "lab", "NamespaceOrphaned", "umount", id="namespace of nobody"),
    ],
)
def test_what_is_broken_by_hand_is_named_until_it_is_put_back(
    patient: Patient, breakage: Breakage, subject: str, code: str, repair: str
) -> None:
    with breakage(patient):
        report = doctor(patient.lab, "-A")
        found = [one for one in report["disagreements"] if (one["subject"], one["code"]) == (subject, code)]
        assert len(found) == 1, json.dumps(report, indent=2)
        assert repair in found[0]["repair"]
    assert_world_agrees(patient.lab)


@contextlib.asynccontextmanager
async def the_bucket(lab: Lab) -> AsyncIterator[KeyValue]:
    """The ladder's bucket in the hands of somebody who has no business there."""
    identity = lab.layout.identity()
    assert identity is not None
    url = f"nats://127.0.0.1:{identity.nats_port}"
    bus = await connect(
        url, role="test", node="_", telemetry=recording_telemetry()[0], log=structlog.get_logger(), environ={}
    )
    try:
        async with asyncio.timeout(10):
            await bus.wait_connected()
        yield bus.kv(BUCKET)
    finally:
        await bus.close()


async def stored(bucket: KeyValue, key: str = RUNG) -> StatusEntry | None:
    found = await bucket.get(key)
    return entry_of(found.value) if found is not None else None


async def falsify(bucket: KeyValue) -> StatusEntry:
    """Have the kept rung say another stage; returns what it said."""
    before = await stored(bucket)
    assert before is not None
    nic_status = msgspec.structs.replace(before.status, stage=Stage.POD_ANNOTATED)
    await bucket.put(RUNG, encode(msgspec.structs.replace(before, status=nic_status)))
    await bucket.put(RUNG_OF_NOBODY, encode(before))
    return before


async def test_a_kept_ladder_that_is_wrong_is_named_until_a_controller_writes_it_anew(patient: Patient) -> None:
    lab = patient.lab
    async with the_bucket(lab) as bucket:
        with lab.without("controller"):
            await falsify(bucket)
            report = await asyncio.to_thread(doctor, lab, VM)
            found = {(one["subject"], one["code"]): one for one in report["disagreements"]}
            assert set(found) == {(SUBJECT, "HotplugStatusDiffers"), (f"default/{VM}", "HotplugStatusLeftOver")}, (
                json.dumps(report)
            )
            assert "pod-annotated in the kept ladder" in found[SUBJECT, "HotplugStatusDiffers"]["what"]
            assert all("controller" in one["repair"] for one in found.values())
            await bucket.delete(RUNG)
            report = await asyncio.to_thread(doctor, lab, VM)
            assert codes(report, SUBJECT) == {"HotplugStatusMissing"}, json.dumps(report)
        await asyncio.to_thread(assert_world_agrees, lab)
        mended = await stored(bucket)
        assert mended is not None
        assert mended.status.stage is Stage.GUEST_ATTACHED
        assert await stored(bucket, RUNG_OF_NOBODY) is None


async def test_a_controller_that_leads_mends_the_kept_ladder_at_once(patient: Patient) -> None:
    async with the_bucket(patient.lab) as bucket:
        before = await falsify(bucket)
        # Long before the resync.
        async with asyncio.timeout(10), contextlib.aclosing(bucket.watch()) as changes:
            held: dict[str, StatusEntry | None] = {}
            async for change in changes:
                if change is not None:
                    held[change.key] = entry_of(change.value)
                if held.get(RUNG) == before and held.get(RUNG_OF_NOBODY) is None:
                    break
    await asyncio.to_thread(assert_world_agrees, patient.lab)


def test_without_the_api_or_the_bus_the_kept_ladder_is_not_looked_at(patient: Patient) -> None:
    for away, why in (("api", "hotnic's api does not show it"), ("nats", "cannot reach the bus")):
        with patient.lab.without(away):
            report = doctor(patient.lab, VM)
            assert not report["disagreements"]
            (part,) = report["notSeen"]
            assert (part["subject"], part["part"]) == (f"default/{VM}", "the kept ladder")
            assert why in part["why"]
    assert_world_agrees(patient.lab)


def test_a_tap_that_is_deleted_is_missed_by_links_and_guest(patient: Patient) -> None:
    patient.ip_link("del", tap(NIC))
    report = doctor(patient.lab, VM)
    assert codes(report, SUBJECT) == {"TapMissing", "TapNotHeld"}, json.dumps(report, indent=2)
    # Nothing but unplugging helps here; the fixture deletes the VM, which has to leave nothing either.
