"""What ``hotnic doctor`` reads from a node's files and by QMP, and the text of its report."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from opentelemetry.trace import NoOpTracer

from lab.guest.double import read_requests
from services.cli.doctor.collect import guest, node_files
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.collect.objects import vm_snapshots
from services.cli.doctor.command import NodePathsType, report_lines
from services.cli.doctor.snapshot import (
    DoctorReport,
    Finding,
    GuestDevice,
    IpamLease,
    NotChecked,
    NotVisible,
    OperationInProgress,
    VmSnapshot,
)
from services.cli.tracing.tracer import NoTraces
from services.common.cri.client import CriClient
from services.common.telemetry.logs import logger
from services.multus.records.sandbox import Attachment, AttachmentOrigin, AttachmentState, SandboxState
from services.multus.records.store import Records
from tests.support.observed import objects

LOG = logger("test", "critical")
SANDBOX = "9d5a9095"
BRIDGE = {"type": "bridge", "bridge": "br1", "ipam": {"type": "host-local", "dataDir": "/var/leases"}}


def attachment(link: str, config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"ifname": link, "network": "net", "owner": "delegate", "config": json.dumps(config), **fields}


def write_record(folder: Path, suffix: str, *attachments: dict[str, Any]) -> None:
    directory = folder / ("run/records" if suffix == ".unsettled" else "sandboxes")
    directory.mkdir(parents=True, exist_ok=True)
    document = {
        "sandboxId": SANDBOX,
        "netns": "/var/run/netns/cni-1",
        "namespace": "default",
        "pod": "p",
        "podUid": "u",
        "attachments": attachments,
    }
    (directory / f"{SANDBOX}{suffix}").write_text(json.dumps(document))


def settings(folder: Path) -> NodeSettings:
    return NodeSettings(cni_state_dir=str(folder), socket_dir=str(folder / "run"))


def records(folder: Path) -> tuple[node_files.RecordAndLeaseDirs, ...]:
    found = node_files.read_records(settings(folder))
    assert not isinstance(found, NotVisible), found
    return found


def without_files(found: node_files.RecordAndLeaseDirs) -> node_files.RecordAndLeaseDirs:
    return msgspec.structs.replace(found, record=msgspec.structs.replace(found.record, files=(), changed_at=0.0))


def test_record_has_its_attachments(tmp_path: Path) -> None:
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "br1"}, {"name": "pod1", "sandbox": "/var/run/netns/cni-1"}],
        "ips": [{"address": "10.0.0.5/24", "interface": 1}],
    }
    plain = {"plugins": [{"type": "macvlan"}, {"type": "tuning"}]}
    write_record(
        tmp_path,
        ".json",
        attachment("pod1", BRIDGE, state="added", result=result, ifindex=3, kind="veth", mac="AA:BB:CC:00:00:01"),
        attachment("net2", plain),
        attachment("eth0", {"plugins": [{"type": "bridge"}]}, state="added"),
    )
    (found,) = records(tmp_path)
    assert found.lease_dirs == {"/var/leases"}
    one, two, three = found.record.attached
    assert (found.record.sandbox, found.record.pod, found.record.pod_uid) == (SANDBOX, "default/p", "u")
    assert (one.ips, one.bridge, one.leased, one.finished) == (("10.0.0.5",), "br1", True, True)
    assert (one.ifindex, one.kind, one.mac) == (3, "veth", "aa:bb:cc:00:00:01")
    assert (two.bridge, two.leased, two.finished) == (None, False, False)
    assert three.bridge == "cni0"


def test_unsettled_record_replaces_the_settled_one(tmp_path: Path) -> None:
    write_record(tmp_path, ".json", attachment("old", BRIDGE))
    write_record(tmp_path, ".unsettled", attachment("new", BRIDGE))
    (found,) = records(tmp_path)
    assert [one.link for one in found.record.attached] == ["new"]


async def test_record_of_the_daemon_is_read_before_and_after_it_is_settled(tmp_path: Path) -> None:
    daemon = Records(tmp_path, tracer=NoOpTracer(), log=LOG, unsettled=tmp_path / "run" / "records")
    written = Attachment(
        "pod1", "ns/blue", AttachmentOrigin.DELEGATE, json.dumps(BRIDGE), "blue", "1.0.0", "f", AttachmentState.ADDED
    )
    daemon.write(SandboxState(SANDBOX, "/var/run/netns/cni-1", "default", "p", "u", (written,)))
    assert not list((tmp_path / "sandboxes").iterdir())
    (unsettled,) = records(tmp_path)
    assert [one.link for one in unsettled.record.attached] == ["pod1"]
    await daemon.flush()
    assert not list((tmp_path / "run" / "records").iterdir())
    (settled,) = records(tmp_path)
    assert (unsettled.record.files, settled.record.files) == (
        (str(tmp_path / "run" / "records" / f"{SANDBOX}.unsettled"),),
        (str(tmp_path / "sandboxes" / f"{SANDBOX}.json"),),
    )
    assert without_files(settled) == without_files(unsettled)


def test_unreadable_records_are_not_visible(tmp_path: Path) -> None:
    assert isinstance(node_files.read_records(settings(tmp_path)), NotVisible)
    (tmp_path / "sandboxes").mkdir()
    # A directory is no record.
    (tmp_path / "sandboxes" / "evil.json").mkdir()
    assert node_files.read_records(settings(tmp_path)) == ()
    for damaged in ("{", '{"x":' + "[" * 5000):
        (tmp_path / "sandboxes" / "x.json").write_text(damaged)
        assert isinstance(node_files.read_records(settings(tmp_path)), NotVisible)


def test_leases_are_read_below_host_root(tmp_path: Path) -> None:
    usual, further = tmp_path / "var/lib/cni/networks/blue", tmp_path / "var/leases/red"
    for folder in (usual, further):
        folder.mkdir(parents=True)
        (folder / "last_reserved_ip.0").write_text("10.0.0.5")
        (folder / "lock").touch()
    (usual / "10.0.0.5").write_text(f"{SANDBOX}\r\npod1")
    (further / "fd00::5").write_text(f"{SANDBOX}\nnet2")
    for lease in (usual / "10.0.0.5", further / "fd00::5"):
        os.utime(lease, (1000, 1000))
    paths = NodeSettings(host_root=str(tmp_path))
    assert node_files.read_leases(paths, {"/var/leases", "/nowhere"}) == (
        IpamLease("red", "fd00::5", SANDBOX, "net2", "/var/leases/red/fd00::5", 1000),
        IpamLease("blue", "10.0.0.5", SANDBOX, "pod1", "/var/lib/cni/networks/blue/10.0.0.5", 1000),
    )
    assert node_files.read_leases(NodeSettings(host_root=str(tmp_path / "var")), ()) == ()


def test_taps_are_read_from_fdinfo(tmp_path: Path) -> None:
    folder = tmp_path / "proc" / "42" / "fdinfo"
    folder.mkdir(parents=True)
    (folder / "3").write_text("pos:\t0\nflags:\t0104002\n")
    (folder / "9").write_text("pos:\t0\niff:\ttap7e0055a6880\n")
    # A tap that was deleted while a process had it open.
    (folder / "10").write_text("pos:\t0\niff:\t\n")
    assert node_files.taps_held(NodeSettings(host_root=str(tmp_path)), ["42", "43"]) == {"tap7e0055a6880"}


def test_processes_of_a_network_namespace_are_found() -> None:
    here = node_files.processes_in(NodeSettings(), f"/proc/{os.getpid()}/ns/net")
    assert not isinstance(here, NotVisible)
    assert str(os.getpid()) in here
    assert isinstance(node_files.processes_in(NodeSettings(), "/run/netns/no-such-namespace"), NotVisible)


TABLE = """Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 1 /run/guests/a/qmp.sock
0000000000000000: 00000003 00000000 00000000 0001 03 2 /run/guests/b/qmp.sock
0000000000000000: 00000003 00000000 00000000 0001 03 3
"""


def test_socket_with_a_connection_has_a_client() -> None:
    assert guest.has_client(TABLE, "/run/guests/b/qmp.sock")
    assert not guest.has_client(TABLE, "/run/guests/a/qmp.sock")
    assert not guest.has_client(TABLE, "/run/guests/c/qmp.sock")


class FakeMonitor:
    """A QMP server that replies from a table: one JSON document per line, with an event before each reply.

    As in QEMU, the first reply has no event before it: a client gets events once it has negotiated capabilities.
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers
        self.requests: list[str] = []
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
        async for request in read_requests(reader):
            arguments = request.get("arguments", {})
            words = (request["execute"], arguments.get("path", ""), arguments.get("property", ""))
            if self.requests:
                writer.write(b'{"event": "RTC_CHANGE", "data": {}}\n')
            self.requests.append(" ".join(filter(None, words)))
            nothing = {"qmp_capabilities": {}, "qom-get": ""}.get(request["execute"], [])
            answer = self._answers.get(self.requests[-1], {"return": nothing})
            identity = {"id": request["id"]} if "id" in request else {}
            writer.write(json.dumps(answer | identity).encode() + b"\n")
        writer.close()
        # The client may have disconnected before the last reply.
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self.closed.set()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a directory whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="hn-") as path:
        yield Path(path)


async def read_devices(directory: Path) -> tuple[GuestDevice, ...] | NotVisible:
    paths = NodeSettings(qmp_socket=str(directory / "{uid}.sock"), guest_driver="qmp")
    cri = CriClient(str(directory / "cri.sock"), NoTraces())
    return await guest.guest_devices(paths, cri, VmSnapshot("default", "vm1", None, objects.vmi()), "pod-1")


async def serve_devices(directory: Path, qmp: FakeMonitor) -> tuple[GuestDevice, ...] | NotVisible:
    async with await asyncio.start_unix_server(qmp.serve, directory / f"{objects.VMI_UID}.sock"):
        found = await read_devices(directory)
        await qmp.closed.wait()
        return found


async def test_devices_of_the_spec_are_read_by_qmp(folder: Path) -> None:
    devices = [
        {"name": "type", "type": "string"},
        {"name": "rp1", "type": "child<pcie-root-port>"},
        {"name": "ua-blue", "type": "child<virtio-net-pci>"},
        {"name": "ua-disk", "type": "child<virtio-blk-pci>"},
    ]
    qmp = FakeMonitor(
        {
            "qom-list /machine/peripheral": {"return": devices},
            "qom-get /machine/peripheral/ua-blue mac": {"return": "02:00:00:00:00:AA"},
        }
    )
    assert await serve_devices(folder, qmp) == (GuestDevice("blue", "02:00:00:00:00:aa"),)
    assert qmp.requests[0] == "qmp_capabilities"


async def test_qmp_error_or_missing_socket_is_not_visible(folder: Path) -> None:
    refusal = {"error": {"class": "GenericError", "desc": "not now"}}
    found = await serve_devices(folder, FakeMonitor({"qom-list /machine/peripheral": refusal}))
    assert isinstance(found, NotVisible)
    assert "not now" in found.message
    (folder / f"{objects.VMI_UID}.sock").unlink(missing_ok=True)
    found = await read_devices(folder)
    assert isinstance(found, NotVisible)
    assert "there is no QMP socket" in found.message


async def test_qmp_with_another_client_is_not_visible_and_sends_nothing(folder: Path) -> None:
    qmp = FakeMonitor({})
    path = folder / f"{objects.VMI_UID}.sock"
    async with await asyncio.start_unix_server(qmp.serve, path):
        reader, writer = await asyncio.open_unix_connection(path)
        await reader.readline()
        found = await read_devices(folder)
        assert isinstance(found, NotVisible)
        assert f"the QMP socket {path} serves one client at a time" in found.message
        assert "--node-paths qmp-socket=PATH" in found.message
        assert qmp.requests == []
        writer.close()
        await qmp.closed.wait()


def test_vm_that_does_not_run_and_pod_without_vmi_have_snapshots_of_their_own() -> None:
    orphan = objects.pod(
        name="virt-launcher-vm2-x",
        uid="other",
        labels={},
        ownerReferences=[{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm2", "uid": "z"}],
    )
    stopped = objects.vm()
    (three,) = vm_snapshots([], [], {("default", "vm1"): stopped})
    assert (three.subject, three.vm, three.vmi, three.pods) == ("default/vm1", stopped, None, ())
    one, two = vm_snapshots([objects.vmi()], [objects.pod(), orphan], NotVisible("forbidden"))
    assert (one.subject, len(one.pods), one.vm) == ("default/vm1", 1, NotVisible("forbidden"))
    assert (two.subject, two.vmi, [pod.metadata.uid for pod in two.pods]) == ("default/vm2", None, ["other"])


def test_node_paths_have_the_names_of_the_settings() -> None:
    paths = NodePathsType().convert("cri-socket=/a,socket-dir=/c,qmp-socket=/b/{uid}", None, None)
    assert paths == {"cri_socket": "/a", "socket_dir": "/c", "qmp_socket": "/b/{uid}"}
    for wrong in ("cri-socket", "cri-socket=", "home=/x"):
        with pytest.raises(click.BadParameter, match="NAME=PATH"):
            NodePathsType().convert(wrong, None, None)


def test_report_lists_findings_with_their_repair() -> None:
    report = DoctorReport(
        (Finding("TapMissing", "default/vm/blue", "link tap1 is not in the pod", "plug it again"),),
        (
            OperationInProgress(
                "default/vm/red", "the plug has reached stage requested", None, "WaitingForPodAnnotated"
            ),
        ),
        (NotChecked("node", "links, records and leases", "root on the node is required"),),
        1,
    )
    assert report_lines(report) == [
        "default/vm/blue: TapMissing: link tap1 is not in the pod",
        "    repair: plug it again",
        "default/vm/red: in progress since <unknown>: the plug has reached stage requested (WaitingForPodAnnotated)",
        "node: not checked: links, records and leases: root on the node is required",
        "1 finding; 1 network interface checked",
    ]
    assert report_lines(DoctorReport((), (), (), 2)) == ["no findings; 2 network interfaces checked"]
