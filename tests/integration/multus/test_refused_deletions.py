"""A network whose real plugins refuse ADD and DEL: its name, its pod and its record do not depend on it."""

import json
from pathlib import Path
from typing import Any

from schemas.kubernetes.networks import NETWORKS
from services.multus.plan import DELETE_TRIES, DELETE_TRIES_OF_ADDED
from tests.support.kube.node_kube import EVENTS
from tests.support.node import netns as namespaces
from tests.support.node.cni import RecordingPlugin, bridge_config, leases
from tests.support.node.multus_daemon import Daemon

IFACE = "pod7e0055a6880"


def refusing_config(folder: Path) -> dict[str, Any]:
    """Return a network that ``host-local`` refuses at ADD and at DEL."""
    config = bridge_config(folder)
    config["ipam"]["subnet"] = "203.0.113.0/33"
    return config


def links_of(netns: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(namespaces.ip(netns, "-j", "link"))
    return found


def link_names(netns: Path) -> set[str]:
    return {link["ifname"] for link in links_of(netns)}


async def given_up(daemon: Daemon) -> list[str]:
    """Return the messages of the Events about deletions that were given up."""
    await daemon.parts.pod_events.flush()
    return [body["message"] for body in daemon.kube.of(EVENTS) if body["reason"] == "NetworkCleanupFailed"]


def refusing_chain(folder: Path, recording: RecordingPlugin) -> dict[str, Any]:
    """Return a network whose last plugin refuses ADD and DEL after the bridge plugin has made a link."""
    recording.fail("ADD", 100)
    recording.fail("DEL", 100)
    bridge = bridge_config(folder)
    head = {key: bridge.pop(key) for key in ("cniVersion", "name")}
    return {**head, "plugins": [bridge, {"type": recording.type}]}


async def test_a_corrected_network_gets_the_name_at_once(daemon: Daemon, sandbox_netns: Path) -> None:
    status, error = await daemon.delegate("ADD", sandbox_netns, IFACE, refusing_config(daemon.folder))
    assert status == 400
    assert "invalid CIDR address: 203.0.113.0/33" in error["msg"]
    # The DEL is owed: the plugin may hold a lease.
    assert daemon.record() is not None
    assert await given_up(daemon) == []
    assert await daemon.cni("CHECK", sandbox_netns) == (200, None)

    status, answer = await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder))
    assert status == 200, answer
    assert IFACE in link_names(sandbox_netns)
    assert len(leases(daemon.folder)) == 1
    [message] = await given_up(daemon)
    assert message.startswith(f"network blue on interface {IFACE}: ")
    assert "invalid CIDR address: 203.0.113.0/33" in message

    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert link_names(sandbox_netns) == {"lo"}
    assert leases(daemon.folder) == []
    assert daemon.record() is None


async def test_the_pod_of_a_refusing_network_is_deleted(daemon: Daemon, sandbox_netns: Path) -> None:
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, refusing_config(daemon.folder)))[0] == 400
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert daemon.record() is None
    assert len(await given_up(daemon)) == 1


async def test_a_refused_pod_creation_leaves_no_record(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.nad("blue", refusing_config(daemon.folder))
    daemon.pod({NETWORKS: f"blue@{IFACE}"})
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert (status, "invalid CIDR address" in error["msg"]) == (400, True)
    # The runtime deletes a sandbox whose ADD failed.
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert daemon.record() is None
    assert leases(daemon.folder, "pods") == []
    assert link_names(sandbox_netns) == {"lo"}


async def test_the_sweep_tries_a_refused_deletion_a_few_times(daemon: Daemon, sandbox_netns: Path) -> None:
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, refusing_config(daemon.folder)))[0] == 400
    for tried in range(1, DELETE_TRIES):
        record = daemon.record()
        assert record is not None
        assert [one.failed_deletes for one in record.attachments] == [tried]
        await daemon.sweep.run_once()
    assert daemon.record() is None
    assert len(await given_up(daemon)) == 1


async def test_the_networks_controller_gets_rid_of_a_refused_attachment(daemon: Daemon, sandbox_netns: Path) -> None:
    config = refusing_config(daemon.folder)
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, config))[0] == 400
    answers = [(await daemon.delegate("DEL", sandbox_netns, IFACE, config))[0] for _ in range(1, DELETE_TRIES)]
    assert answers == [400] * (DELETE_TRIES - 2) + [200]
    assert daemon.record() is None


async def test_a_refusing_plugin_of_a_chain_keeps_neither_name_nor_lease(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    chain = refusing_chain(daemon.folder, recording)
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, chain))[0] == 400
    # The chain's DEL ended at its last plugin.
    [index] = [link["ifindex"] for link in links_of(sandbox_netns) if link["ifname"] == IFACE]
    assert len(leases(daemon.folder)) == 1
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(daemon.folder)))[0] == 200
    assert [link["ifindex"] for link in links_of(sandbox_netns) if link["ifname"] == IFACE] != [index]
    assert len(leases(daemon.folder)) == 1
    assert len(await given_up(daemon)) == 1


async def test_the_networks_controller_gets_rid_of_a_refusing_chain(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    chain = refusing_chain(daemon.folder, recording)
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, chain))[0] == 400
    answers = [(await daemon.delegate("DEL", sandbox_netns, IFACE, chain))[0] for _ in range(1, DELETE_TRIES)]
    assert answers == [400] * (DELETE_TRIES - 2) + [200]
    assert (link_names(sandbox_netns), leases(daemon.folder), daemon.record()) == ({"lo"}, [], None)


async def test_the_link_goes_even_if_no_plugin_of_the_chain_can_delete_it(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin, plugins: Path
) -> None:
    chain = refusing_chain(daemon.folder, recording)
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, chain))[0] == 400
    (plugins / "bridge").unlink()
    answers = [(await daemon.delegate("DEL", sandbox_netns, IFACE, chain))[0] for _ in range(1, DELETE_TRIES)]
    assert answers[-1] == 200
    assert (link_names(sandbox_netns), daemon.record()) == ({"lo"}, None)
    assert len(await given_up(daemon)) == 1


async def test_a_network_that_cannot_be_deleted_any_more_keeps_its_record_for_some_tries_only(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    """ADD succeeded; then, for example, the network's plugin was uninstalled."""
    config = {"cniVersion": "1.0.0", "name": "red", "type": recording.type}
    assert (await daemon.delegate("ADD", sandbox_netns, IFACE, config))[0] == 200
    recording.fail("DEL", 999, "gone for good")
    # A hot-unplug is repeated without an end: the pod runs, and the obstacle may be removed.
    answers = [(await daemon.delegate("DEL", sandbox_netns, IFACE, config))[0] for _ in range(DELETE_TRIES_OF_ADDED)]
    assert answers == [400] * DELETE_TRIES_OF_ADDED
    answers = [(await daemon.cni("DEL", sandbox_netns))[0] for _ in range(DELETE_TRIES_OF_ADDED)]
    assert answers == [400] * (DELETE_TRIES_OF_ADDED - 1) + [200]
    assert daemon.record() is None
    [message] = await given_up(daemon)
    assert message.startswith(f"network red on interface {IFACE}: ")
    assert "gone for good" in message
