"""``/cni`` over the real socket: whole sandboxes are created and deleted, and network-status is written."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas.kubernetes.networks import DEFAULT_NETWORK, NETWORK_STATUS, NETWORKS, parse_network_status
from schemas.kubernetes.operations import pod_nic_key, read_pod_nic
from services.multus.plan import DELETE_TRIES_OF_ADDED
from services.multus.records.sandbox import AttachmentOrigin
from tests.support.kube.node_kube import EVENTS, Refused
from tests.support.node import netns as namespaces
from tests.support.node.cni import RecordingPlugin, bridge_config, leases
from tests.support.node.multus_daemon import POD, POD_UID, SANDBOX, Daemon, running_daemon
from tests.support.observed.objects import mirror_metadata
from tests.support.telemetry.spans import tree

IFACE = "pod7e0055a6880"


def link_names(netns: Path) -> list[str]:
    return sorted(link["ifname"] for link in json.loads(namespaces.ip(netns, "-j", "link")))


async def test_add_attaches_all_networks_and_writes_network_status(daemon: Daemon, sandbox_netns: Path) -> None:
    elements = [{"name": "blue", "namespace": "default", "interface": IFACE}, {"name": "green"}]
    daemon.pod({NETWORKS: json.dumps(elements)})
    daemon.nad("blue", bridge_config(daemon.folder))
    daemon.nad("green", {"cniVersion": "0.3.1", "type": "bridge", "bridge": "br-green"})
    status, answer = await daemon.cni("ADD", sandbox_netns)
    assert status == 200, answer
    assert answer["Result"]["ips"][0]["address"].startswith("10.77.0.")
    assert link_names(sandbox_netns) == ["eth0", "lo", "net2", IFACE]

    statuses = parse_network_status(daemon.annotations()[NETWORK_STATUS])
    assert [(s.name, s.interface, s.default) for s in statuses] == [
        ("pods", "eth0", True),
        ("default/blue", IFACE, False),
        ("default/green", "net2", False),
    ]
    assert statuses[1].ips == leases(daemon.folder)
    nic = read_pod_nic(daemon.annotations(), pod_nic_key("iface1"))
    assert nic is not None
    assert (nic.pod_uid, nic.sandbox_id, nic.interface, nic.mtu) == (POD_UID, SANDBOX, IFACE, 1500)
    assert nic.mac == statuses[1].mac
    assert nic.ips == (f"{leases(daemon.folder)[0]}/24",)
    record = daemon.record()
    assert record is not None
    assert [a.origin for a in record.attachments] == [
        AttachmentOrigin.CLUSTER,
        AttachmentOrigin.NETWORKS,
        AttachmentOrigin.NETWORKS,
    ]
    # The records are synced in the background, at any time during the call or after it.
    in_order = [span for span in daemon.spans.get_finished_spans() if span.name != "record sync"]
    attaching = [("record write", []), ("cni ADD bridge", []), ("record write", [])]
    assert tree(in_order) == [
        (
            "POST /cni",
            [
                ("kube get pods", []),
                ("kube get network-attachment-definitions", []),
                ("kube get network-attachment-definitions", []),
                *attaching,
                *attaching,
                *attaching,
                ("kube patch pods/status", []),
            ],
        )
    ]

    # DEL deletes the attachments of the sandbox's creation and the hot-plugged ones.
    assert (await daemon.delegate("ADD", sandbox_netns, "pod00000000000", bridge_config(daemon.folder)))[0] == 200
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert link_names(sandbox_netns) == ["lo"]
    assert leases(daemon.folder) == []
    assert leases(daemon.folder, "pods") == []
    assert daemon.record() is None
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)


async def test_delegate_add_recognizes_an_attachment_of_cni_add(daemon: Daemon, sandbox_netns: Path) -> None:
    config = bridge_config(daemon.folder)
    del config["name"]
    daemon.pod({NETWORKS: f"blue@{IFACE}"})
    daemon.nad("blue", config)
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    status, answer = await daemon.delegate("ADD", sandbox_netns, IFACE, {**config, "name": "blue"})
    assert status == 200, answer
    assert len(leases(daemon.folder)) == 1
    await daemon.cni("DEL", sandbox_netns)


async def test_a_failing_network_rolls_the_others_back(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    recording.fail("ADD", 7, "bad luck")
    daemon.pod({NETWORKS: "blue,red"})
    daemon.nad("blue", bridge_config(daemon.folder))
    daemon.nad("red", {"cniVersion": "1.0.0", "type": recording.type})
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert (status, error["code"]) == (400, 7)
    assert error["msg"].startswith(f"[default/{POD}/{POD_UID}:red]: error adding container to network")
    assert link_names(sandbox_netns) == ["lo"]
    assert leases(daemon.folder) == []
    assert daemon.record() is None
    assert NETWORK_STATUS not in daemon.annotations()


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ("absent", "cannot find a network-attachment-definition (absent) in namespace (default)"),
        ("a/b/c", "is not of the form"),
        ('[{"name":"blue","mac":"nonsense"}]', "is not a MAC address"),
        ('[{"name":"blue","default-route":["10.0.0.1", "10.0.0.2"]}]', "no ECMP"),
        ('[{"name":"blue","default-route":["10.0.0.1"]},{"name":"blue","default-route":["10.0.0.2"]}]', "no ECMP"),
        ('[{"name":"blue","default-route":["gateway"]}]', "does not appear to be an IPv4 or IPv6 address"),
        ('[{"name":"blue","default-route":["192.0.2.1"]}]', "default-route of net1: cannot add route 0.0.0.0/0"),
        ("broken", "CNI configuration is not a JSON object"),
        ("blue@eth0", "validateIfName: interface name eth0 already exists"),
    ],
)
async def test_an_invalid_annotation_is_refused_and_leaves_nothing(
    daemon: Daemon, sandbox_netns: Path, annotation: str, message: str
) -> None:
    daemon.pod({NETWORKS: annotation})
    daemon.nad("blue", bridge_config(daemon.folder))
    daemon.nad("broken", "{")
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert status == 400
    assert message in error["msg"]
    assert link_names(sandbox_netns) == ["lo"]
    assert daemon.record() is None


async def test_add_waits_for_an_unknown_pod_and_fails(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.kube.delete("pods", "default", POD)
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert (status, error["code"]) == (400, 3)
    assert f"cannot get pod default/{POD} with UID {POD_UID}" in error["msg"]
    assert len([request for request in daemon.kube.requests if request[1] == "pods"]) >= 2


async def test_another_pod_of_that_name_is_refused_unless_static(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod(uid="another")
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert (status, error["code"]) == (400, 3)
    assert "expected pod UID" in error["msg"]
    daemon.pod({"kubernetes.io/config.source": "file"}, uid="another")
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 400
    daemon.pod(uid="another", **mirror_metadata("lab"))
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    await daemon.cni("DEL", sandbox_netns)


async def test_add_is_rolled_back_when_the_status_cannot_be_written(daemon: Daemon, sandbox_netns: Path) -> None:
    def refuse(method: str, _plural: str, _name: str) -> None:
        if method == "PATCH":
            raise Refused(403, "Forbidden", "not for you")

    daemon.pod()
    daemon.kube.before = refuse
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert (status, error["code"]) == (400, 11)
    assert "not for you" in error["msg"]
    assert link_names(sandbox_netns) == ["lo"]
    assert daemon.record() is None


async def test_the_default_network_annotation_replaces_the_cluster_network(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod({DEFAULT_NETWORK: "blue"})
    daemon.nad("blue", bridge_config(daemon.folder), namespace="kube-system")
    status, answer = await daemon.cni("ADD", sandbox_netns)
    assert status == 200
    assert answer["Result"]["ips"][0]["address"].startswith("10.55.0.")
    [status_] = parse_network_status(daemon.annotations()[NETWORK_STATUS])
    assert (status_.name, status_.interface, status_.default) == ("kube-system/blue", "eth0", True)
    await daemon.cni("DEL", sandbox_netns)


@pytest.fixture
def primary(daemon: Daemon, recording: RecordingPlugin) -> RecordingPlugin:
    """A primary network with a recording plugin."""
    config = {"cniVersion": "1.0.0", "name": "pods", "type": recording.type}
    (daemon.config.conf_dir / "10-primary.conflist").write_text(json.dumps(config))
    return recording


async def test_del_of_an_unknown_sandbox_frees_its_primary_network(
    daemon: Daemon, sandbox_netns: Path, primary: RecordingPlugin
) -> None:
    primary.fail("DEL", 11, "not now")
    status, error = await daemon.cni("DEL", "")
    assert (status, error["code"]) == (400, 11)
    primary.stop_failing("DEL")
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert primary.commands == ["DEL eth0", "DEL eth0"]
    assert [call["netns"] for call in primary.calls] == ["", str(sandbox_netns)]
    # Nothing is left for a repeated DEL, and a late ADD of a controller is refused.
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder))
    assert (status, error["code"]) == (400, 3)
    assert len(primary.calls) == 2


async def test_tries_to_delete_an_unknown_sandbox_end(
    daemon: Daemon, sandbox_netns: Path, primary: RecordingPlugin
) -> None:
    primary.fail("DEL", 999, "gone for good")
    answers = [(await daemon.cni("DEL", sandbox_netns))[0] for _ in range(DELETE_TRIES_OF_ADDED)]
    assert answers == [400] * (DELETE_TRIES_OF_ADDED - 1) + [200]
    await daemon.parts.pod_events.flush()
    [message] = [body["message"] for body in daemon.kube.of(EVENTS) if body["reason"] == "NetworkCleanupFailed"]
    assert message.startswith("network pods on interface eth0: ")


async def test_del_without_a_record_frees_the_pods_networks(
    daemon: Daemon, sandbox_netns: Path, primary: RecordingPlugin
) -> None:
    """Upstream fault: with a damaged cache, DEL did nothing and leases of secondary networks stayed (1087)."""
    daemon.pod({NETWORKS: f"absent,blue,blue@{IFACE}"})
    daemon.nad("blue", bridge_config(daemon.folder))
    daemon.nad("absent", bridge_config(daemon.folder, name="absent"))
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert len(leases(daemon.folder)) == 2
    await daemon.records.flush()
    (daemon.config.cni_dir / "sandboxes" / f"{SANDBOX}.json").write_bytes(b"torn")
    daemon.kube.delete("network-attachment-definitions", "default", "absent")
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert leases(daemon.folder) == []
    assert link_names(sandbox_netns) == ["lo", "net1"]  # net1's NAD is gone, so its DEL cannot be run
    assert primary.commands == ["ADD eth0", "DEL eth0"]


@pytest.mark.parametrize("uid", ["another", None])
async def test_del_without_a_record_ignores_another_pod(
    daemon: Daemon, sandbox_netns: Path, primary: RecordingPlugin, uid: str | None
) -> None:
    if uid is not None:
        daemon.pod({NETWORKS: "red"}, uid=uid)
        daemon.nad("red", {"cniVersion": "1.0.0", "name": "red", "type": primary.type})
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert primary.commands == ["DEL eth0"]


async def test_the_sweep_finishes_a_failed_del(daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin) -> None:
    daemon.pod({NETWORKS: "red,blue"})
    daemon.nad("red", {"cniVersion": "1.0.0", "type": recording.type})
    daemon.nad("blue", bridge_config(daemon.folder))
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    recording.fail("DEL", 11, "not now")
    status, error = await daemon.cni("DEL", sandbox_netns)
    assert (status, error["code"]) == (400, 11)
    assert link_names(sandbox_netns) == ["lo"]
    record = daemon.record()
    assert record is not None
    assert [a.ifname for a in record.attachments] == ["net1"]
    # A sandbox that is being deleted gets no new attachment.
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder))
    assert (status, error["code"]) == (400, 3)
    recording.stop_failing("DEL")
    assert await daemon.sweep.run_once() == 1
    assert daemon.record() is None


async def test_the_sweep_deletes_a_sandbox_without_a_namespace(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod({NETWORKS: "blue"})
    daemon.nad("blue", bridge_config(daemon.folder))
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert await daemon.sweep.run_once() == 0
    namespaces.remove(sandbox_netns)
    assert await daemon.sweep.run_once() == 1
    assert leases(daemon.folder) == []
    assert daemon.record() is None


async def test_gc_deletes_sandboxes_that_the_runtime_does_not_list(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod()
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    status, error = await daemon.cni("GC", "", daemon.conf)
    assert (status, error["code"]) == (400, 7)
    kept = [{"containerID": SANDBOX, "ifname": "eth0"}]
    assert await daemon.cni("GC", "", {**daemon.conf, "cni.dev/valid-attachments": kept}) == (200, None)
    assert daemon.record() is not None
    assert await daemon.cni("GC", "", {**daemon.conf, "cni.dev/valid-attachments": []}) == (200, None)
    assert daemon.record() is None
    assert link_names(sandbox_netns) == ["lo"]


async def test_gc_frees_nothing_while_a_sandbox_has_a_damaged_record(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    """The sandbox may have attachments that nothing else names: their plugins would free addresses that are in use."""
    daemon.pod({NETWORKS: "red"})
    daemon.nad("red", {"cniVersion": "1.1.0", "name": "red", "type": recording.type})
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    await daemon.records.flush()
    path = daemon.config.cni_dir / "sandboxes" / f"{SANDBOX}.json"
    torn = path.read_bytes()[:-1]
    path.write_bytes(torn)
    listed = {**daemon.conf, "cni.dev/valid-attachments": [{"containerID": SANDBOX, "ifname": "eth0"}]}
    # The second time, the file is renamed already.
    for _ in range(2):
        status, error = await daemon.cni("GC", "", listed)
        assert (status, error["code"]) == (400, 5)
        assert f"the record of sandbox {SANDBOX} is damaged" in error["msg"]
    assert recording.commands == ["ADD net1"]
    # With the sandbox, the record goes too.
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert list(path.parent.iterdir()) == []
    assert await daemon.cni("GC", "", {**daemon.conf, "cni.dev/valid-attachments": []}) == (200, None)


async def test_gc_removes_damaged_records_of_sandboxes_that_the_runtime_does_not_list(daemon: Daemon) -> None:
    path = daemon.config.cni_dir / "sandboxes" / "gone.json"
    path.write_bytes(b"torn")
    assert await daemon.cni("GC", "", {**daemon.conf, "cni.dev/valid-attachments": []}) == (200, None)
    assert list(path.parent.iterdir()) == []


async def test_check_runs_every_plugin_of_the_sandbox(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod()
    assert await daemon.cni("CHECK", sandbox_netns) == (200, None)
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert await daemon.cni("CHECK", sandbox_netns) == (200, None)
    namespaces.ip(sandbox_netns, "addr", "flush", "dev", "eth0")
    status, _ = await daemon.cni("CHECK", sandbox_netns)
    assert status == 400
    await daemon.cni("DEL", sandbox_netns)


async def test_status_is_the_primary_plugins_status(daemon: Daemon, recording: RecordingPlugin) -> None:
    assert await daemon.cni("STATUS", "") == (200, None)
    primary = {"cniVersion": "1.1.0", "name": "pods", "type": recording.type}
    (daemon.config.conf_dir / "10-primary.conflist").write_text(json.dumps(primary))
    recording.fail("STATUS", 50, "not ready")
    status, error = await daemon.cni("STATUS", "")
    assert (status, error["code"]) == (400, 50)


@pytest.fixture
async def isolated(tmp_path: Path, plugins: Path) -> AsyncIterator[Daemon]:
    """A daemon with namespace isolation, default networks and a cluster network by name."""
    keys = {
        "namespaceIsolation": True,
        "globalNamespaces": "shared",
        "clusterNetwork": "primary",
        "defaultNetworks": ["extra"],
    }
    async with running_daemon(tmp_path, plugins, **keys) as running:
        (running.config.named_dir / "primary.conflist").write_text(json.dumps(bridge_config(tmp_path, name="primary")))
        running.nad("extra", bridge_config(tmp_path, name="extra"), namespace="kube-system")
        running.nad("blue", bridge_config(tmp_path), namespace="shared")
        running.nad("blue", bridge_config(tmp_path), namespace="other")
        yield running


async def test_namespace_isolation_and_default_networks(isolated: Daemon, sandbox_netns: Path) -> None:
    isolated.pod({NETWORKS: "other/blue"})
    status, error = await isolated.cni("ADD", sandbox_netns)
    assert status == 400
    assert "namespace isolation" in error["msg"]
    # The hot-plug of a network is checked as well, whatever the networks controller allows.
    for annotation in ("other/blue@net1", "other/blue"):
        isolated.pod({NETWORKS: annotation})
        status, error = await isolated.delegate("ADD", sandbox_netns, "net1", bridge_config(isolated.folder))
        assert (status, error["code"]) == (400, 7)
        assert "may not use networks of namespace other" in error["msg"]
    isolated.pod({NETWORKS: "shared/blue"})
    assert (await isolated.cni("ADD", sandbox_netns))[0] == 200
    statuses = parse_network_status(isolated.annotations()[NETWORK_STATUS])
    assert [(s.name, s.interface) for s in statuses] == [
        ("primary", "eth0"),
        ("kube-system/extra", "net1"),
        ("shared/blue", "net2"),
    ]
    await isolated.cni("DEL", sandbox_netns)


async def test_add_and_status_wait_for_the_readiness_file(tmp_path: Path, plugins: Path, sandbox_netns: Path) -> None:
    ready = tmp_path / "ready"
    async with running_daemon(tmp_path, plugins, readinessindicatorfile=str(ready)) as daemon:
        (daemon.config.conf_dir / "10-primary.conflist").write_text(json.dumps(bridge_config(tmp_path)))
        daemon.pod()
        for command in ("ADD", "STATUS"):
            status, error = await daemon.cni(command, sandbox_netns)
            assert (status, error["code"]) == (400, 50)
            assert f"readiness indicator file {ready} does not exist" in error["msg"]
        asyncio.get_running_loop().call_later(0.1, ready.touch)
        assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
        ready.unlink()
        assert await daemon.cni("DEL", sandbox_netns) == (200, None)
