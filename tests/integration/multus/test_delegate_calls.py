"""``/delegate`` over the real socket, with real bridge and host-local plugins and real network namespaces."""

import asyncio
import itertools
import json
from pathlib import Path

from schemas.kubernetes.networks import NETWORKS
from schemas.multus import InterfaceAttributes
from services.common.telemetry.propagation import context_of
from services.multus.records.sandbox import AttachmentOrigin, AttachmentState
from tests.support.node import netns as namespaces
from tests.support.node.cni import RecordingPlugin, bridge_config, leases
from tests.support.node.multus_daemon import POD, POD_UID, SANDBOX, Daemon, running_daemon
from tests.support.telemetry.spans import named, tree

IFACE = "pod7e0055a6880"


def link_names(netns: Path) -> set[str]:
    return {link["ifname"] for link in json.loads(namespaces.ip(netns, "-j", "link"))}


async def test_add_creates_the_link_and_del_leaves_nothing(daemon: Daemon, sandbox_netns: Path) -> None:
    config = bridge_config(daemon.folder)
    status, answer = await daemon.delegate("ADD", sandbox_netns, IFACE, config)
    assert status == 200
    result = answer["Result"]
    assert result["cniVersion"] == "1.1.0"
    inside = next(link for link in result["interfaces"] if link.get("sandbox"))
    assert (inside["name"], inside["mtu"]) == (IFACE, 1500)
    assert result["ips"][0]["address"].startswith("10.55.0.")
    assert IFACE in link_names(sandbox_netns)
    record = daemon.record()
    assert record is not None
    [attachment] = record.attachments
    assert (attachment.ifname, attachment.origin, attachment.state) == (
        IFACE,
        AttachmentOrigin.DELEGATE,
        AttachmentState.ADDED,
    )
    assert (attachment.mac, attachment.kind) == (inside["mac"], "veth")
    assert attachment.ifindex > 1
    assert len(leases(daemon.folder)) == 1

    assert await daemon.delegate("DEL", sandbox_netns, IFACE, config) == (200, None)
    assert IFACE not in link_names(sandbox_netns)
    assert leases(daemon.folder) == []
    assert daemon.record() is None
    assert await daemon.delegate("DEL", sandbox_netns, IFACE, config) == (200, None)


async def test_add_for_another_pod_of_that_name_changes_nothing(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.pod(uid="33333333-3333-4333-8333-333333333333")
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder))
    assert (status, error["code"]) == (400, 3)
    for part in (f"default/{POD}", POD_UID, "33333333-3333-4333-8333-333333333333"):
        assert part in error["msg"]
    assert link_names(sandbox_netns) == {"lo"}
    assert leases(daemon.folder) == []
    assert daemon.record() is None


async def test_add_for_a_pod_that_is_gone_changes_nothing(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.kube.delete("pods", "default", POD)
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder))
    assert (status, error["code"]) == (400, 3)
    assert f"default/{POD}" in error["msg"]
    assert POD_UID in error["msg"]
    assert link_names(sandbox_netns) == {"lo"}
    assert leases(daemon.folder) == []
    assert daemon.record() is None


async def test_a_network_of_which_only_the_node_has_the_configuration(daemon: Daemon, sandbox_netns: Path) -> None:
    """multus-cni#716: the NAD has no spec.config; each node has the configuration in a file of its own."""
    daemon.nad("blue", "")
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, None, network="default/blue")
    assert (status, error["code"]) == (400, 7)
    assert "default/blue is empty and no file configures 'blue' on this node" in error["msg"]
    (daemon.config.named_dir / "any.conf").write_text(json.dumps(bridge_config(daemon.folder)))
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, None, network="default/blue"))[0] == 200
    assert len(leases(daemon.folder)) == 1
    assert await daemon.delegate("DEL", sandbox_netns, IFACE, None) == (200, None)
    assert leases(daemon.folder) == []


async def test_the_shim_in_a_network_is_refused_at_once(daemon: Daemon, sandbox_netns: Path) -> None:
    """multus-cni#1099. Run as a plugin, it would wait for the lock of the sandbox that its own call holds."""
    config = {"cniVersion": "1.0.0", "name": "blue", "type": "hotnic-multus", "logFile": str(daemon.folder / "log")}
    for broken in (config, {**bridge_config(daemon.folder), "ipam": {"type": "hotnic-multus"}}):
        async with asyncio.timeout(10):
            status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, broken)
        assert (status, error["code"]) == (400, 7)
        assert "plugin type hotnic-multus is not allowed in a network" in error["msg"]
        daemon.nad("blue", broken)
        daemon.pod({NETWORKS: "blue"})
        status, error = await daemon.cni("ADD", sandbox_netns)
        assert (status, error["code"]) == (400, 7)
        assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert daemon.record() is None
    assert link_names(sandbox_netns) == {"lo"}
    assert not (daemon.folder / "log").exists()


async def test_a_directory_of_the_node_is_no_place_for_leases(daemon: Daemon, sandbox_netns: Path) -> None:
    """host-local would make it beside the daemon's socket, where the next daemon has to listen."""
    run_dir = daemon.config.socket_dir
    before = sorted(entry.name for entry in run_dir.iterdir())
    ipam = {"type": "host-local", "subnet": "10.55.0.0/24", "dataDir": str(run_dir)}
    hostile = {**bridge_config(daemon.folder), "name": "other.sock", "ipam": ipam}
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, hostile)
    assert (status, error["code"]) == (400, 7)
    assert "ipam.dataDir" in error["msg"]
    assert "is not allowed in a network" in error["msg"]
    daemon.nad("blue", hostile)
    daemon.pod({NETWORKS: "blue"})
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert (status, error["code"]) == (400, 7)
    assert "network default/blue: ipam.dataDir" in error["msg"]
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert sorted(entry.name for entry in run_dir.iterdir()) == before
    assert daemon.record() is None
    assert link_names(sandbox_netns) == {"lo"}


async def test_del_needs_no_configuration(daemon: Daemon, sandbox_netns: Path) -> None:
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder)))[0] == 200
    assert await daemon.delegate("DEL", sandbox_netns, IFACE, {}) == (200, None)
    assert leases(daemon.folder) == []
    assert await daemon.delegate("DEL", sandbox_netns, IFACE, {}) == (200, None)


async def test_del_passes_a_plugin_the_configuration_of_add(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    """The NAD has changed meanwhile, and the caller posts the new configuration."""
    before = {"cniVersion": "1.0.0", "name": "red", "type": recording.type, "vlan": 7}
    daemon.pod({NETWORKS: "red@net1"})
    daemon.nad("red", before)
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert (await daemon.delegate("ADD", sandbox_netns, "net2", before))[0] == 200
    now = {**before, "name": "green", "vlan": 8}
    daemon.nad("red", now)
    assert (await daemon.delegate("DEL", sandbox_netns, "net2", now))[0] == 200
    assert (await daemon.cni("DEL", sandbox_netns))[0] == 200
    assert recording.commands == ["ADD net1", "ADD net2", "DEL net2", "DEL net1"]
    for call in (2, 3):
        passed = recording.stdin(call)
        assert passed.pop("prevResult")["cniVersion"] == "1.0.0"
        assert passed == before


async def test_a_repeated_add_is_one_attachment(daemon: Daemon, sandbox_netns: Path) -> None:
    config = bridge_config(daemon.folder)
    first = await daemon.delegate("ADD", sandbox_netns, IFACE, config)
    # The notation differs: the networks controller may fill in names and order keys differently.
    again = await daemon.delegate("ADD", sandbox_netns, IFACE, dict(reversed(config.items())))
    assert first == again
    assert len(leases(daemon.folder)) == 1
    await daemon.delegate("DEL", sandbox_netns, IFACE, config)


async def test_add_with_other_settings_is_refused_and_changes_nothing(daemon: Daemon, sandbox_netns: Path) -> None:
    config = bridge_config(daemon.folder)
    await daemon.delegate("ADD", sandbox_netns, IFACE, config)
    attributes = InterfaceAttributes(mac="02:00:00:00:00:07")
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, config, attributes)
    assert (status, error["code"]) == (400, 7)
    assert f"validateIfName: interface name {IFACE} already exists" in error["msg"]
    assert IFACE in link_names(sandbox_netns)
    await daemon.delegate("DEL", sandbox_netns, IFACE, config)


async def test_a_foreign_link_is_never_touched(daemon: Daemon, sandbox_netns: Path) -> None:
    namespaces.ip(sandbox_netns, "link", "add", IFACE, "type", "bridge")
    config = bridge_config(daemon.folder)
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, config)
    assert (status, error["code"]) == (400, 7)
    assert "validateIfName" in error["msg"]
    assert await daemon.delegate("DEL", sandbox_netns, IFACE, config) == (200, None)
    assert IFACE in link_names(sandbox_netns)
    assert daemon.record() is None


async def test_a_link_without_a_record_is_removed_if_it_has_the_mac_of_network_status(
    daemon: Daemon, sandbox_netns: Path
) -> None:
    config = bridge_config(daemon.folder)
    await daemon.delegate("ADD", sandbox_netns, IFACE, config)
    record = daemon.record()
    assert record is not None
    # As after multus-cni, whose files are gone.
    daemon.records.write(record.without_attachment(IFACE))
    assert daemon.record() is None
    other = InterfaceAttributes(mac="02:00:00:00:00:07")
    assert await daemon.delegate("DEL", sandbox_netns, IFACE, config, other) == (200, None)
    assert IFACE in link_names(sandbox_netns)
    mine = InterfaceAttributes(mac=record.attachments[0].mac or "")
    assert await daemon.delegate("DEL", sandbox_netns, IFACE, config, mine) == (200, None)
    assert IFACE not in link_names(sandbox_netns)
    assert leases(daemon.folder) == []
    assert daemon.record() is None


async def test_a_failed_add_is_rolled_back(daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin) -> None:
    recording.fail("ADD", 123, "no more")
    plain = bridge_config(daemon.folder)
    chain = {"cniVersion": "1.0.0", "name": "blue", "plugins": [plain, {"type": recording.type}]}
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, chain)
    assert (status, error["code"]) == (400, 123)
    assert error["msg"].endswith('plugin type="recording" failed (add): no more')
    assert IFACE not in link_names(sandbox_netns)
    assert leases(daemon.folder) == []
    assert daemon.record() is None
    assert recording.commands == [f"ADD {IFACE}", f"DEL {IFACE}"]


async def test_a_failed_rollback_stays_in_the_record_until_the_sweep(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    recording.fail("ADD", 123)
    recording.fail("DEL", 11)
    config = {"cniVersion": "1.0.0", "name": "x", "type": recording.type}
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, config))[0] == 400
    record = daemon.record()
    assert record is not None
    assert [a.state for a in record.attachments] == [AttachmentState.ADDING]
    recording.stop_failing("DEL")
    await daemon.sweep.run_once()
    assert daemon.record() is None


async def test_attributes_reach_the_plugin(daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin) -> None:
    config = {
        "cniVersion": "1.0.0",
        "name": "x",
        "plugins": [
            {"type": recording.type, "capabilities": {"mac": True, "ips": True}, "args": {"cni": {"a": "old"}}}
        ],
    }
    attributes = InterfaceAttributes(cni_args={"a": "new", "b": 1}, ips=["10.9.0.4/24"], mac="02:00:00:00:00:07")
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, config, attributes))[0] == 200
    call = recording.calls[0]
    assert call["args"] == (
        f"IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME={POD};K8S_POD_INFRA_CONTAINER_ID={SANDBOX};"
        f"K8S_POD_UID={POD_UID};MAC=02:00:00:00:00:07;IP=10.9.0.4/24"
    )
    assert (call["netns"], call["path"]) == (str(sandbox_netns), str(daemon.config.bin_dir))
    read = recording.stdin(0)
    assert read["runtimeConfig"] == {"mac": "02:00:00:00:00:07", "ips": ["10.9.0.4/24"]}
    assert read["args"] == {"cni": {"a": "new", "b": 1}}
    assert (read["name"], read["cniVersion"]) == ("x", "1.0.0")
    assert (await daemon.delegate("DEL", sandbox_netns, IFACE, config))[0] == 200
    # DEL passes the plugin what ADD passed it, although the caller of DEL sends no attributes.
    assert recording.stdin(1)["runtimeConfig"] == read["runtimeConfig"]
    assert "prevResult" in recording.stdin(1)


async def test_calls_for_one_sandbox_run_one_after_the_other(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    recording.sleep("ADD", 0.05)
    configs = [{"cniVersion": "1.0.0", "name": f"n{i}", "type": recording.type} for i in range(4)]
    added = [daemon.delegate("ADD", sandbox_netns, f"net{i}", config) for i, config in enumerate(configs)]
    assert {status for status, _ in await asyncio.gather(*added)} == {200}
    record = daemon.record()
    assert record is not None
    assert sorted(a.ifname for a in record.attachments) == ["net0", "net1", "net2", "net3"]
    spans = [span for span in daemon.spans.get_finished_spans() if span.name == "cni ADD recording"]
    spans.sort(key=lambda span: span.start_time or 0)
    for before, after in itertools.pairwise(spans):
        assert (before.end_time or 0) <= (after.start_time or 0)
    for i, config in enumerate(configs):
        await daemon.delegate("DEL", sandbox_netns, f"net{i}", config)


async def test_the_trace_reaches_the_plugin(daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin) -> None:
    config = {"cniVersion": "1.0.0", "name": "x", "type": recording.type}
    await daemon.delegate("ADD", sandbox_netns, IFACE, config)
    # The record is synced in the background, at any time during the call or after it.
    spans = [span for span in daemon.spans.get_finished_spans() if span.name != "record sync"]
    calls = ["kube get pods", "record write", "cni ADD recording", "record write"]
    assert tree(spans) == [("POST /delegate", [(name, []) for name in calls])]
    seen = context_of(recording.calls[0]["traceparent"])
    assert seen is not None
    executed = named(spans, "cni ADD recording")
    assert executed.context is not None
    assert f"{executed.context.span_id:016x}" in recording.calls[0]["traceparent"]
    assert named(spans, "POST /delegate").parent is not None
    await daemon.delegate("DEL", sandbox_netns, IFACE, config)


async def test_a_plugin_that_hangs_is_killed(tmp_path: Path, plugins: Path, sandbox_netns: Path) -> None:
    slow = RecordingPlugin(plugins)
    slow.sleep("ADD", 30)
    # The DEL after it has the same time, and ends.
    async with running_daemon(tmp_path, plugins, timeout=3.0) as daemon:
        config = {"cniVersion": "1.0.0", "name": "x", "type": slow.type}
        status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, config)
        assert (status, error["code"]) == (400, 11)
        assert "did not end within 3 s" in error["msg"]
        assert slow.commands == [f"ADD {IFACE}", f"DEL {IFACE}"]
        assert daemon.record() is None


async def test_a_failed_check_names_the_network(daemon: Daemon, sandbox_netns: Path) -> None:
    """The annotation names the NAD of a hot-plugged network; the call has the CNI network's name only."""
    daemon.pod({NETWORKS: f"other/blue-nad@{IFACE}"})
    config = bridge_config(daemon.folder)
    assert (await daemon.cni("CHECK", sandbox_netns)) == (200, None)
    for ifname in (IFACE, "net7"):
        assert (await daemon.delegate("ADD", sandbox_netns, ifname, config))[0] == 200
    for ifname, network in (("net7", "blue"), (IFACE, "other/blue-nad")):
        namespaces.ip(sandbox_netns, "addr", "flush", "dev", ifname)
        status, error = await daemon.delegate("CHECK", sandbox_netns, ifname, config)
        assert (status, error["code"]) == (400, 999)
        assert error["msg"].startswith(
            f'network {network} on interface {ifname}: plugin type="bridge" failed (check): '
        )
    status, error = await daemon.cni("CHECK", sandbox_netns)
    assert status == 400
    assert error["msg"].startswith(f"network other/blue-nad on interface {IFACE}: ")
    namespaces.ip(sandbox_netns, "link", "del", IFACE)
    status, error = await daemon.cni("CHECK", sandbox_netns)
    assert status == 400
    assert error["msg"].startswith(f"network other/blue-nad on interface {IFACE}: the link (index ")
    for ifname in (IFACE, "net7"):
        assert (await daemon.delegate("DEL", sandbox_netns, ifname, config))[0] == 200


async def test_check_runs_the_plugin_or_reports_a_lost_link(daemon: Daemon, sandbox_netns: Path) -> None:
    config = bridge_config(daemon.folder)
    await daemon.delegate("ADD", sandbox_netns, IFACE, config)
    assert await daemon.delegate("CHECK", sandbox_netns, IFACE, config) == (200, None)
    namespaces.ip(sandbox_netns, "link", "del", IFACE)
    status, error = await daemon.delegate("CHECK", sandbox_netns, IFACE, config)
    assert status == 400
    assert "is gone" in error["msg"]
    # The next ADD creates the lost link again and takes no second lease.
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, config))[0] == 200
    assert len(leases(daemon.folder)) == 1
    await daemon.delegate("DEL", sandbox_netns, IFACE, config)
    status, error = await daemon.delegate("CHECK", sandbox_netns, IFACE, config)
    assert (status, error["code"]) == (400, 3)
