"""DEL and CHECK while a guest uses the link. The pod network is set up as the handler does it; the plugins are real."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import netns as namespaces
from tests.support.node.cni import bridge_config, leases
from tests.support.node.multus_daemon import Daemon

HASH = "7e0055a6880"
POD_LINK, BRIDGE, NIC = f"pod{HASH}", f"k6t-{HASH}", f"{HASH}-nic"


def links(netns: Path) -> dict[str, dict[str, Any]]:
    return {link["ifname"]: link for link in json.loads(namespaces.ip(netns, "-j", "-d", "link"))}


def identities(netns: Path) -> dict[str, tuple[Any, ...]]:
    """Return the attributes of links that do not change by themselves, as the carrier does."""
    keys = ("ifindex", "link_index", "master", "address", "mtu")
    return {name: tuple(link.get(key) for key in keys) for name, link in links(netns).items()}


def bridge(netns: Path) -> None:
    """Create the in-pod bridge with the renamed link as its port, and the dummy interface.

    The dummy interface is a bridge without ports, because not every kernel has dummy links.
    """
    for arguments in (
        f"link add {BRIDGE} type bridge",
        f"link set {POD_LINK} down",
        f"link set {POD_LINK} name {NIC}",
        f"link set {NIC} master {BRIDGE}",
        f"link set {NIC} up",
        f"link add {POD_LINK} type bridge",
    ):
        namespaces.ip(netns, *arguments.split())


@pytest.fixture
async def config(daemon: Daemon, sandbox_netns: Path) -> dict[str, Any]:
    """The configuration of an attachment that was added and then bridged for a guest."""
    made = bridge_config(daemon.folder)
    assert (await daemon.delegate("ADD", sandbox_netns, POD_LINK, made))[0] == 200
    bridge(sandbox_netns)
    return made


async def test_del_of_a_bridged_link_is_refused_and_changes_nothing(
    daemon: Daemon, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    before = identities(sandbox_netns)
    status, error = await daemon.delegate("DEL", sandbox_netns, POD_LINK, config)
    assert (status, error["code"]) == (400, 11)
    assert "still in use by a guest" in error["msg"]
    assert identities(sandbox_netns) == before
    assert len(leases(daemon.folder)) == 1
    assert daemon.record() is not None


async def test_del_is_refused_while_the_bridge_exists(
    daemon: Daemon, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    namespaces.ip(sandbox_netns, "link", "set", NIC, "nomaster")
    status, error = await daemon.delegate("DEL", sandbox_netns, POD_LINK, config)
    assert (status, error["code"]) == (400, 11)
    assert BRIDGE in error["msg"]


async def test_del_of_a_renamed_link_finds_the_link_itself(
    daemon: Daemon, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    namespaces.ip(sandbox_netns, "link", "del", BRIDGE)
    assert set(links(sandbox_netns)) >= {NIC, POD_LINK}
    assert await daemon.delegate("DEL", sandbox_netns, POD_LINK, config) == (200, None)
    assert set(links(sandbox_netns)) == {"lo"}
    assert leases(daemon.folder) == []
    host = {link["ifname"] for link in json.loads(namespaces.ip(Path("/proc/self/ns/net"), "-j", "link"))}
    assert not [name for name in host if name.startswith("veth")]


async def test_check_of_a_bridged_link_checks_the_link_itself(
    daemon: Daemon, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    assert await daemon.delegate("CHECK", sandbox_netns, POD_LINK, config) == (200, None)
    namespaces.ip(sandbox_netns, "link", "del", NIC)
    status, error = await daemon.delegate("CHECK", sandbox_netns, POD_LINK, config)
    assert status == 400
    assert "is gone" in error["msg"]


async def test_add_of_a_bridged_attachment_returns_its_result_again(
    daemon: Daemon, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    status, answer = await daemon.delegate("ADD", sandbox_netns, POD_LINK, config)
    assert status == 200
    assert answer["Result"]["ips"][0]["address"] == f"{leases(daemon.folder)[0]}/24"
    assert len(leases(daemon.folder)) == 1


async def test_del_of_the_sandbox_deletes_a_bridged_link(
    daemon: Daemon, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert POD_LINK not in links(sandbox_netns)
    assert NIC not in links(sandbox_netns)
    assert leases(daemon.folder) == []
    assert daemon.record() is None


async def test_del_without_a_namespace_frees_the_lease(
    daemon: Daemon, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    namespaces.remove(sandbox_netns)
    assert await daemon.delegate("DEL", sandbox_netns, POD_LINK, config) == (200, None)
    assert leases(daemon.folder) == []
    assert daemon.record() is None
