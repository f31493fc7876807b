"""What the doctor reads off a node's files and a guest's monitor, and how it tells what it has found."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import click
import pytest

from services.cli import monitor, node_files
from services.cli.collect import machines
from services.cli.doctor import NodePaths, lines
from services.cli.node_files import Paths
from services.common.domain.invariants.world import (
    DoctorReport,
    Finding,
    GuestDevice,
    IpamLease,
    NotChecked,
    NotVisible,
    OperationInProgress,
)
from tests.support import objects

SANDBOX = "9d5a9095"
BRIDGE = {"type": "bridge", "bridge": "br1", "ipam": {"type": "host-local", "dataDir": "/var/leases"}}


def attachment(link: str, config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"ifname": link, "network": "net", "owner": "delegate", "config": json.dumps(config), **fields}


def write_record(folder: Path, suffix: str, *attachments: dict[str, Any]) -> None:
    sandboxes = folder / "sandboxes"
    sandboxes.mkdir(exist_ok=True)
    document = {
        "sandboxId": SANDBOX,
        "netns": "/var/run/netns/cni-1",
        "namespace": "default",
        "pod": "p",
        "podUid": "u",
        "attachments": attachments,
    }
    (sandboxes / f"{SANDBOX}{suffix}").write_text(json.dumps(document))


def records(folder: Path) -> tuple[node_files.Recorded, ...]:
    found = node_files.records(Paths(cni_state_dir=str(folder)))
    assert not isinstance(found, NotVisible), found
    return found


def test_a_record_tells_its_attachments(tmp_path: Path) -> None:
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


def test_the_unsettled_record_is_the_newer_one(tmp_path: Path) -> None:
    write_record(tmp_path, ".json", attachment("old", BRIDGE))
    write_record(tmp_path, ".unsettled", attachment("new", BRIDGE))
    (found,) = records(tmp_path)
    assert [one.link for one in found.record.attached] == ["new"]


def test_records_that_cannot_be_read_are_unknown(tmp_path: Path) -> None:
    assert isinstance(node_files.records(Paths(cni_state_dir=str(tmp_path))), NotVisible)
    (tmp_path / "sandboxes").mkdir()
    (tmp_path / "sandboxes" / "x.json").write_text("{")
    assert isinstance(node_files.records(Paths(cni_state_dir=str(tmp_path))), NotVisible)


def test_leases_are_read_under_the_hosts_root(tmp_path: Path) -> None:
    usual, further = tmp_path / "var/lib/cni/networks/blue", tmp_path / "var/leases/red"
    for folder in (usual, further):
        folder.mkdir(parents=True)
        (folder / "last_reserved_ip.0").write_text("10.0.0.5")
        (folder / "lock").touch()
    (usual / "10.0.0.5").write_text(f"{SANDBOX}\r\npod1")
    (further / "fd00::5").write_text(f"{SANDBOX}\nnet2")
    paths = Paths(host_root=str(tmp_path))
    assert node_files.leases(paths, {"/var/leases", "/nowhere"}) == (
        IpamLease("red", "fd00::5", SANDBOX, "net2"),
        IpamLease("blue", "10.0.0.5", SANDBOX, "pod1"),
    )
    assert node_files.leases(Paths(host_root=str(tmp_path / "var")), ()) == ()


def test_a_tap_is_held_by_whom_the_kernel_says(tmp_path: Path) -> None:
    folder = tmp_path / "proc" / "42" / "fdinfo"
    folder.mkdir(parents=True)
    (folder / "3").write_text("pos:\t0\nflags:\t0104002\n")
    (folder / "9").write_text("pos:\t0\niff:\ttap7e0055a6880\n")
    # A tap that was deleted under its holder.
    (folder / "10").write_text("pos:\t0\niff:\t\n")
    assert node_files.taps_held(Paths(host_root=str(tmp_path)), ["42", "43"]) == {"tap7e0055a6880"}


def test_this_process_is_found_in_its_own_network_namespace() -> None:
    here = node_files.processes_in(Paths(), f"/proc/{os.getpid()}/ns/net")
    assert not isinstance(here, NotVisible)
    assert str(os.getpid()) in here
    assert isinstance(node_files.processes_in(Paths(), "/run/netns/no-such-namespace"), NotVisible)


TABLE = """Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 1 /run/guests/a/qmp.sock
0000000000000000: 00000003 00000000 00000000 0001 03 2 /run/guests/b/qmp.sock
0000000000000000: 00000003 00000000 00000000 0001 03 3
"""


def test_a_monitor_in_use_is_known_by_its_connection() -> None:
    assert monitor.in_use(TABLE, "/run/guests/b/qmp.sock")
    assert not monitor.in_use(TABLE, "/run/guests/a/qmp.sock")
    assert not monitor.in_use(TABLE, "/run/guests/c/qmp.sock")


class Monitor:
    """A monitor that answers from a table, as QEMU does: one JSON document a line, events in between."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers
        self.asked: list[str] = []
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
        while line := await reader.readline():
            request = json.loads(line)
            path = request["arguments"].get("path", "")
            self.asked.append(f"{request['execute']} {path}".strip())
            answer = self._answers.get(self.asked[-1], {"return": {}})
            writer.write(b'{"event": "RTC_CHANGE", "data": {}}\n')
            writer.write(json.dumps({**answer, "id": request["id"]}).encode() + b"\n")
        writer.close()
        await writer.wait_closed()
        self.left.set()


async def ask(directory: Path, served: Monitor) -> tuple[GuestDevice, ...] | NotVisible:
    socket = directory / "qmp.sock"
    async with await asyncio.start_unix_server(served.serve, socket):
        found = await monitor.cards(Paths(qmp_socket=str(directory / "{uid}.sock")), "qmp")
        await served.left.wait()
        return found


async def test_a_monitor_tells_the_cards_of_the_spec(tmp_path: Path) -> None:
    devices = [
        {"name": "type", "type": "string"},
        {"name": "rp1", "type": "child<pcie-root-port>"},
        {"name": "ua-blue", "type": "child<virtio-net-pci>"},
        {"name": "ua-disk", "type": "child<virtio-blk-pci>"},
    ]
    served = Monitor(
        {
            "qom-list /machine/peripheral": {"return": devices},
            "qom-get /machine/peripheral/ua-blue": {"return": "02:00:00:00:00:AA"},
        }
    )
    assert await ask(tmp_path, served) == (GuestDevice("blue", "02:00:00:00:00:aa"),)
    assert served.asked[0] == "qmp_capabilities"


async def test_a_monitor_that_refuses_or_is_not_there_is_unknown(tmp_path: Path) -> None:
    refusal = {"error": {"class": "GenericError", "desc": "not now"}}
    found = await ask(tmp_path, Monitor({"qom-list /machine/peripheral": refusal}))
    assert isinstance(found, NotVisible)
    assert "not now" in found.why
    found = await monitor.cards(Paths(qmp_socket=str(tmp_path / "{uid}.sock")), "nobody")
    assert isinstance(found, NotVisible)
    assert "there is no monitor" in found.why


def test_pods_whose_vmi_is_gone_are_there_for_their_own_sake() -> None:
    lonely = objects.pod(
        name="virt-launcher-vm2-x",
        uid="other",
        labels={},
        ownerReferences=[{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm2", "uid": "z"}],
    )
    one, two = machines([objects.vmi()], [objects.pod(), lonely], NotVisible("forbidden"))
    assert (one.subject, len(one.pods), one.vm) == ("default/vm1", 1, NotVisible("forbidden"))
    assert (two.subject, two.vmi, [pod.metadata.uid for pod in two.pods]) == ("default/vm2", None, ["other"])


def test_paths_are_given_by_the_names_of_the_settings() -> None:
    paths = NodePaths().convert("cri-socket=/a,qmp-socket=/b/{uid}", None, None)
    assert paths == {"cri_socket": "/a", "qmp_socket": "/b/{uid}"}
    for wrong in ("cri-socket", "cri-socket=", "home=/x"):
        with pytest.raises(click.BadParameter, match="NAME=PATH"):
            NodePaths().convert(wrong, None, None)


def test_the_report_names_everything_with_its_repair() -> None:
    report = DoctorReport(
        (Finding("TapMissing", "default/vm/blue", "link tap1 is not in the pod", "plug it again"),),
        (OperationInProgress("default/vm/red", "its plug has reached requested", None, "WaitingForPodAnnotated"),),
        (NotChecked("node", "links, records and leases", "only root of the node can look at it"),),
        1,
    )
    assert lines(report) == [
        "default/vm/blue: TapMissing: link tap1 is not in the pod",
        "    repair: plug it again",
        "default/vm/red: in progress since <unknown>: its plug has reached requested (WaitingForPodAnnotated)",
        "node: not looked at: links, records and leases: only root of the node can look at it",
        "1 disagreement; 1 network card compared",
    ]
    assert lines(DoctorReport((), (), (), 2)) == ["no disagreement; 2 network cards compared"]
