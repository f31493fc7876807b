"""``/cni``: what a pod's networks may request in addition to a name, and how they are reported."""

import asyncio
import base64
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from schemas import cni
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, RESOURCE_NAME, parse_network_status
from services.multus.cni.executor import Executor, Invocation
from tests.support.kube.kubelet import FakeKubelet, serving_kubelet
from tests.support.node import netns as namespaces
from tests.support.node.cni import RecordingPlugin, bridge_config
from tests.support.node.multus_daemon import POD, POD_UID, SANDBOX, Daemon, running_daemon
from tests.support.telemetry.spans import recording_telemetry

IFACE = "pod7e0055a6880"
RESOURCE = "example.com/vf"


def sysctl(netns: Path, key: str) -> str:
    """Return a sysctl of the namespace."""
    path = "/proc/sys/" + key.replace(".", "/")
    done = subprocess.run(["nsenter", f"--net={netns}", "cat", path], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def interfaces(daemon: Daemon) -> list[tuple[str, str | None]]:
    """Return name and interface of each entry of network-status."""
    return [(s.name, s.interface) for s in parse_network_status(daemon.annotations()[NETWORK_STATUS])]


async def test_every_field_of_an_element_reaches_a_plugin_that_declares_it(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    capabilities = ("ips", "mac", "infinibandGUID", "bandwidth", "portMappings", "deviceID", "unasked")
    plugin = {"type": recording.type, "capabilities": dict.fromkeys(capabilities, True)}
    daemon.nad("red", {"cniVersion": "1.0.0", "plugins": [plugin]})
    element = {
        "name": "red",
        "interface": IFACE,
        "ips": ["10.9.0.4/24", "fd00::4/64"],
        "mac": "02:00:00:00:00:07",
        "infiniband-guid": "00:11:22:33:44:55:66:77",
        "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000},
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "cni-args": {"vlan": 7},
        "deviceID": "0000:00:1f.6",
        "ipam-claim-reference": "claim",
    }
    daemon.pod({NETWORKS: json.dumps([element])})
    # The runtime's own runtimeConfig is passed on to every network, except keys of a single attachment.
    config = {**daemon.conf, "runtimeConfig": {"dns": {"servers": ["10.0.0.2"]}, "mac": "02:00:00:00:00:99"}}
    assert (await daemon.cni("ADD", sandbox_netns, config))[0] == 200
    read = recording.stdin(0)
    assert read["runtimeConfig"] == {
        "ips": element["ips"],
        "mac": element["mac"],
        "infinibandGUID": element["infiniband-guid"],
        "bandwidth": element["bandwidth"],
        "portMappings": element["portMappings"],
        "deviceID": element["deviceID"],
    }
    assert read["args"] == {"cni": {"vlan": 7}}
    assert recording.calls[0]["args"].endswith(";MAC=02:00:00:00:00:07;IP=10.9.0.4/24,fd00::4/64")
    await daemon.cni("DEL", sandbox_netns)


async def test_daemon_settings_never_reach_a_plugin(
    tmp_path: Path, plugins: Path, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    """Upstream fault: the whole daemon-config.json is laid over every network, hot-plugged ones included."""
    keys = {"cniVersion": "0.3.1", "logLevel": "debug", "capabilities": {"mac": True}, "name": "daemon"}
    async with running_daemon(tmp_path, plugins, **keys) as daemon:
        (daemon.config.conf_dir / "10-primary.conflist").write_text(json.dumps(bridge_config(tmp_path)))
        config = {"cniVersion": "1.0.0", "name": "own", "type": recording.type, "logLevel": "error", "vf": 3}
        daemon.nad("red", config)
        daemon.pod({NETWORKS: "red"})
        assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
        assert (await daemon.delegate("ADD", sandbox_netns, IFACE, config))[0] == 200
        assert recording.stdin(0) == recording.stdin(1) == config
        await daemon.cni("DEL", sandbox_netns)


@pytest.mark.parametrize(("namespaces_", "extra"), [(["default"], False), (["kube-system"], True)])
async def test_pods_of_system_namespaces_get_no_default_networks(
    tmp_path: Path, plugins: Path, sandbox_netns: Path, recording: RecordingPlugin, namespaces_: list[str], extra: bool
) -> None:
    """Upstream fault: one of the two checks compares the pod's name instead of its namespace."""
    async with running_daemon(
        tmp_path, plugins, defaultNetworks=["extra"], systemNamespaces=namespaces_, multusNamespace="nets"
    ) as daemon:
        (daemon.config.conf_dir / "10-primary.conflist").write_text(json.dumps(bridge_config(tmp_path)))
        daemon.nad("extra", {"cniVersion": "1.0.0", "type": recording.type}, namespace="nets")
        daemon.pod()
        assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
        assert interfaces(daemon) == [("blue", "eth0")] + [("nets/extra", "net1")] * extra
        await daemon.cni("DEL", sandbox_netns)


async def test_each_attachment_gets_a_device_from_the_kubelet(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    plugin = {"type": recording.type, "capabilities": {"deviceID": True, "CNIDeviceInfoFile": True}}
    config = {"cniVersion": "1.0.0", "plugins": [plugin]}
    daemon.nad("vf", config, annotations={RESOURCE_NAME: RESOURCE})
    described = daemon.config.device_info_dir / "dp" / "example.com-vf-0000:03:02.0-device.json"
    described.parent.mkdir(parents=True)
    info = {"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:03:02.0"}}
    described.write_text(json.dumps(info))
    daemon.pod({NETWORKS: "vf,vf"})
    given = [{RESOURCE: ["0000:03:02.1"]}, {RESOURCE: ["0000:03:02.0"], "example.com/gpu": ["gpu0"]}]
    kubelet = FakeKubelet({("default", POD): given, ("default", "other"): [{RESOURCE: ["0000:03:09.0"]}]})
    async with serving_kubelet(daemon.folder / "kubelet.sock", kubelet):
        status, answer = await daemon.cni("ADD", sandbox_netns)
        assert status == 200, answer
        assert kubelet.calls == 1
        first, second = recording.stdin(0), recording.stdin(1)
        assert (first["deviceID"], first["pciBusID"]) == ("0000:03:02.0", "0000:03:02.0")
        assert second["deviceID"] == "0000:03:02.1"
        copy = Path(first["runtimeConfig"]["CNIDeviceInfoFile"])
        assert copy == daemon.config.device_info_dir / "cni" / f"default-vf-{SANDBOX}_net1"
        statuses = parse_network_status(daemon.annotations()[NETWORK_STATUS])
        assert [status.device_info for status in statuses] == [None, info, None]
        # DEL passes the plugin the same device without another request to the kubelet.
        assert await daemon.cni("DEL", sandbox_netns) == (200, None)
        assert [recording.stdin(call)["deviceID"] for call in (2, 3)] == ["0000:03:02.1", "0000:03:02.0"]
        assert copy.name not in os.listdir(copy.parent)
        assert kubelet.calls == 1
        daemon.pod({NETWORKS: "vf,vf,vf"})
        status, error = await daemon.cni("ADD", sandbox_netns)
        assert (status, error["code"]) == (400, 7)
        assert "the pod has no unused one" in error["msg"]
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert (status, error["code"]) == (400, 11)
    assert f"cannot get the devices of {RESOURCE}" in error["msg"]
    assert daemon.record() is None


async def test_delegates_replace_a_cluster_network(
    tmp_path: Path, plugins: Path, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    delegates = [bridge_config(tmp_path), {"cniVersion": "1.0.0", "name": "second", "type": recording.type}]
    async with running_daemon(tmp_path, plugins, delegates=delegates) as daemon:
        daemon.pod()
        config = {key: value for key, value in daemon.conf.items() if key != "clusterNetwork"}
        status, answer = await daemon.cni("ADD", sandbox_netns, config)
        assert status == 200, answer
        assert answer["Result"]["ips"][0]["address"].startswith("10.55.0.")
        assert interfaces(daemon) == [("blue", "eth0"), ("second", "net1")]
        assert recording.commands == ["ADD net1"]
        # CHECK runs for all of them, and the sandbox endpoint lists all of them.
        assert await daemon.cni("CHECK", sandbox_netns, config) == (200, None)
        assert recording.commands[-1] == "CHECK net1"
        _, body = await daemon.http.request("GET", f"/sandboxes/{SANDBOX}")
        assert [one["owner"] for one in json.loads(body)["attachments"]] == ["cluster", "default"]
        assert await daemon.cni("DEL", sandbox_netns, config) == (200, None)
        status, error = await daemon.cni("ADD", sandbox_netns, {"cniVersion": "1.0.0", "name": "m", "type": "m"})
        assert status == 200, error
        await daemon.cni("DEL", sandbox_netns, config)


async def test_add_without_cluster_network_and_delegates_is_refused(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod()
    status, error = await daemon.cni("ADD", sandbox_netns, {"cniVersion": "1.0.0", "name": "m", "type": "m"})
    assert (status, error["code"]) == (400, 7)
    assert "neither clusterNetwork nor delegates" in error["msg"]


async def test_plugins_in_the_networks_directory_extend_the_cluster_network(
    daemon: Daemon, sandbox_netns: Path
) -> None:
    folder = daemon.config.conf_dir / "pods"
    folder.mkdir()
    tuning = {"cniVersion": "1.0.0", "type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}}
    (folder / "10-tuning.conf").write_text(json.dumps(tuning))
    daemon.pod()
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert sysctl(sandbox_netns, "net.ipv4.conf.eth0.arp_filter") == "1"
    # DEL runs the plugins that ADD ran, whatever the directory holds by then.
    (folder / "10-tuning.conf").unlink()
    record = daemon.record()
    assert record is not None
    assert record.attachments[0].network_config().types == ["bridge", "tuning"]
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)


@pytest.mark.parametrize("inlined", [True, False])
async def test_load_only_inlined_plugins_ignores_the_directory(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin, inlined: bool
) -> None:
    (daemon.config.conf_dir / "pods").mkdir()
    dropped = {"cniVersion": "1.0.0", "type": recording.type}
    (daemon.config.conf_dir / "pods" / "10.conf").write_text(json.dumps(dropped))
    path = daemon.config.conf_dir / "10-primary.conflist"
    path.write_text(json.dumps({**json.loads(path.read_text()), "loadOnlyInlinedPlugins": inlined}))
    daemon.pod()
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert recording.commands == ([] if inlined else ["ADD eth0"])
    await daemon.cni("DEL", sandbox_netns)


async def test_the_auxiliary_chain_runs_last_and_has_no_status_entry(
    tmp_path: Path, plugins: Path, daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    async with running_daemon(folder, plugins, auxiliaryCNIChainName="vendor") as chained:
        primary = daemon.config.conf_dir / "10-primary.conflist"
        config = {**chained.conf, "clusterNetwork": str(primary)}
        (primary.parent / "vendor").mkdir()
        tuning = {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}}
        for name, plugin in (("10.conf", tuning), ("20.conf", {"type": recording.type})):
            (primary.parent / "vendor" / name).write_text(json.dumps({"cniVersion": "1.0.0", **plugin}))
        chained.pod({NETWORKS: "blue"})
        chained.nad("blue", bridge_config(folder))
        status, answer = await chained.cni("ADD", sandbox_netns, config)
        assert status == 200, answer
        assert sysctl(sandbox_netns, "net.ipv4.conf.eth0.arp_filter") == "1"
        assert recording.commands == ["ADD net2"]
        assert recording.stdin(0)["name"] == "vendor"
        assert interfaces(chained) == [("pods", "eth0"), ("default/blue", "net1")]
        assert await chained.cni("DEL", sandbox_netns, config) == (200, None)
        assert recording.commands == ["ADD net2", "DEL net2"]


async def test_events_report_the_pods_networks(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod({NETWORKS: f"blue@{IFACE}"})
    daemon.nad("blue", bridge_config(daemon.folder))
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    daemon.pod({NETWORKS: "absent"})
    await daemon.cni("DEL", sandbox_netns)
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert status == 400
    await daemon.parts.pod_events.flush()
    events = daemon.kube.of("events")
    reported = [(event["type"], event["reason"], event["message"]) for event in events]
    assert len(reported) == 3
    assert reported[0][:2] == reported[1][:2] == ("Normal", "AddedInterface")
    assert reported[0][2].startswith("Add eth0 [10.77.0.")
    assert reported[0][2].endswith("/24] from pods")
    assert reported[1][2].endswith("/24] from default/blue")
    assert reported[2][:2] == ("Warning", "NoNetworkFound")
    expected = "cannot find a network-attachment-definition (absent) in namespace (default): "
    assert reported[2][2].startswith(expected)
    assert error["msg"].startswith(expected)
    assert {event["involvedObject"]["uid"] for event in events} == {POD_UID}


async def test_the_status_patch_requires_the_version_that_was_read(daemon: Daemon, sandbox_netns: Path) -> None:
    """Upstream fault: a write from a stale pod object overwrites what others wrote (networks controller 157)."""
    daemon.pod({"example.com/kept": "1"})
    others = iter(["2", "3"])

    def meanwhile(method: str, plural: str, _name: str) -> None:
        if method == "PATCH" and plural == "pods":
            value = next(others, None)
            if value is not None:
                daemon.kube.annotate("pods", "default", POD, {"example.com/kept": value})

    daemon.kube.before = meanwhile
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert daemon.kube.counted("PATCH", "pods") == 3
    assert daemon.annotations()["example.com/kept"] == "3"
    assert interfaces(daemon) == [("pods", "eth0")]
    await daemon.cni("DEL", sandbox_netns)


async def test_nothing_is_written_to_another_pod_of_that_name(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod()

    def replaced(method: str, plural: str, _name: str) -> None:
        if method == "PATCH" and plural == "pods":
            daemon.kube.before = lambda _method, _plural, _name: None
            daemon.pod(uid="another")

    daemon.kube.before = replaced
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert (status, error["code"]) == (400, 3)
    assert NETWORK_STATUS not in daemon.annotations()
    assert daemon.record() is None


async def test_a_repeated_add_keeps_hot_plugged_status_entries(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod()
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder)))[0] == 200
    statuses = json.loads(daemon.annotations()[NETWORK_STATUS])
    statuses.append({"name": "default/blue", "interface": IFACE, "dns": {}})
    daemon.kube.annotate("pods", "default", POD, {NETWORK_STATUS: json.dumps(statuses)})
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert interfaces(daemon) == [("pods", "eth0"), ("default/blue", IFACE)]
    await daemon.cni("DEL", sandbox_netns)


async def test_gc_runs_for_secondary_networks(daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin) -> None:
    daemon.pod({NETWORKS: "red"})
    daemon.nad("red", {"cniVersion": "1.1.0", "name": "shared", "type": recording.type})
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    plugged = {"cniVersion": "1.1.0", "name": "shared", "type": recording.type}
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, plugged))[0] == 200
    valid = [{"containerID": SANDBOX, "ifname": "eth0"}]
    assert await daemon.cni("GC", "", {**daemon.conf, "cni.dev/valid-attachments": valid}) == (200, None)
    collected = [index for index, call in enumerate(recording.calls) if call["command"] == "GC"]
    assert len(collected) >= 1
    for index in collected:
        # The list has more than the runtime's own interfaces; otherwise the plugin would free the other addresses.
        assert recording.stdin(index)["cni.dev/valid-attachments"] == [
            {"containerID": SANDBOX, "ifname": "net1"},
            {"containerID": SANDBOX, "ifname": IFACE},
        ]
    await daemon.cni("DEL", sandbox_netns)


async def test_connection_limit_bounds_running_calls(
    tmp_path: Path, plugins: Path, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    recording.sleep("ADD", 0.1)
    async with running_daemon(tmp_path, plugins, connectionLimit=1) as daemon:
        config: dict[str, Any] = {"cniVersion": "1.0.0", "name": "x", "type": recording.type}
        requests = []
        for number in range(3):
            environ = {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": f"sandbox{number}",
                "CNI_NETNS": str(sandbox_netns),
                "CNI_IFNAME": "net1",
                "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={POD};K8S_POD_UID={POD_UID}",
            }
            requests.append(
                daemon.post(
                    "/delegate", {"env": environ, "config": base64.b64encode(json.dumps(config).encode()).decode()}
                )
            )
        health = asyncio.create_task(daemon.http.request("GET", "/healthz"))
        assert {status for status, _ in await asyncio.gather(*requests)} == {200}
        assert (await health)[0] == 200
        spans = [span for span in daemon.spans.get_finished_spans() if span.name == "cni ADD recording"]
        spans.sort(key=lambda span: span.start_time or 0)
        for before, after in itertools.pairwise(spans):
            assert (before.end_time or 0) <= (after.start_time or 0)


@pytest.fixture
def node_root(tmp_path: Path) -> Iterator[Path]:
    """The node's root as a container sees it: the same files, except ``/mnt``, which only the node has."""
    root = tmp_path / "hostroot"
    root.mkdir()
    subprocess.run(["mount", "--rbind", "/", root], check=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "node", root / "mnt"], check=True)
        yield root
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


async def test_plugins_are_found_and_run_inside_the_nodes_root(
    tmp_path: Path, sandbox_netns: Path, node_root: Path
) -> None:
    """``chrootDir``: the daemon runs in a container, and the paths in configurations are the node's."""
    rooted = RecordingPlugin(node_root / "mnt", "rooted")
    async with running_daemon(tmp_path, Path("/mnt"), chrootDir=str(node_root)) as daemon:
        config = {"cniVersion": "1.0.0", "name": "x", "type": "rooted"}
        status, answer = await daemon.delegate("ADD", sandbox_netns, "net1", config)
        assert status == 200, answer
        assert rooted.calls[0]["netns"] == str(sandbox_netns)
        assert rooted.calls[0]["path"] == "/mnt"
        assert rooted.working_directory == "/"  # upstream: a directory outside of the root (1308)
        assert "rooted" not in os.listdir("/mnt")
        # An absolute link, as k3s has among its plugins, leads to a file below the same root.
        (node_root / "mnt" / "linked").symlink_to("/mnt/rooted")
        assert (await daemon.delegate("ADD", sandbox_netns, "net3", {**config, "type": "linked"}))[0] == 200
        assert (await daemon.delegate("DEL", sandbox_netns, "net3", {**config, "type": "linked"}))[0] == 200
        status, error = await daemon.delegate("ADD", sandbox_netns, "net2", {**config, "type": "absent"})
        assert (status, error["code"]) == (400, 999)
        assert 'failed to find plugin "absent"' in error["msg"]
        # No plugin ran, so there is no record whose DEL would need the missing plugin.
        record = daemon.record()
        assert record is not None
        assert [one.ifname for one in record.attachments] == ["net1"]
        assert (await daemon.delegate("DEL", sandbox_netns, "net1", config))[0] == 200


async def test_a_busy_plugin_file_inside_the_nodes_root_is_retried(tmp_path: Path, node_root: Path) -> None:
    telemetry, _ = recording_telemetry()
    rooted = RecordingPlugin(node_root / "mnt", "rooted")
    run = Executor(["/mnt"], tracer=telemetry.tracer, log=structlog.get_logger(), chroot=node_root)
    writer = (node_root / "mnt" / "rooted").open("ab")
    asyncio.get_running_loop().call_later(0.08, writer.close)
    await run.run("rooted", Invocation(cni.CniCommand.STATUS), b"")
    assert rooted.commands == ["STATUS"]


async def test_a_namespace_is_opened_below_the_nodes_root_and_passed_on_unchanged(
    tmp_path: Path, plugins: Path, recording: RecordingPlugin
) -> None:
    """``HOTNIC_HOST_ROOT``: the runtime passes a path of the node, where ``/var/run`` is a symbolic link."""
    node = tmp_path / "node"
    (node / "run" / "netns").mkdir(parents=True)
    (node / "var").mkdir()
    (node / "var" / "run").symlink_to("/run")
    path = "/var/run/netns/cni-1"
    config = {"cniVersion": "1.0.0", "name": "x", "type": recording.type}
    with namespaces.namespace(node / "run" / "netns", "cni-1") as netns:
        namespaces.ip(netns, "link", "add", "taken", "type", "bridge")
        # Here the plugins are not part of the node's file system.
        async with running_daemon(tmp_path, plugins, host_root=str(node), chrootDir="/") as daemon:
            status, error = await daemon.delegate("ADD", path, "taken", config)
            assert (status, error["code"]) == (400, 7)
            assert "interface name taken already exists" in error["msg"]
            assert (await daemon.delegate("ADD", path, "net1", config))[0] == 200
            assert (await daemon.delegate("DEL", path, "net1", config))[0] == 200
            assert [call["netns"] for call in recording.calls] == [path, path]
            assert await daemon.sweep.run_once() == 0
