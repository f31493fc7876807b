"""A daemon that dies at any moment of a call: its successor, the sweep and the runtime's DEL leave nothing behind.

A call is interrupted, a little later each time, and new parts continue with the same directories. A killed daemon
leaves the same behind as one whose call never returned. The long profile interrupts at every millisecond.
"""

import asyncio
import base64
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORKS
from services.multus.assembly import DaemonParts
from services.multus.cni.call import CniCall, decode
from tests.support.node import netns as namespaces
from tests.support.node.cni import bridge_config, leases
from tests.support.node.multus_daemon import Daemon, cni_environment

LONG = os.environ.get("HOTNIC_HYPOTHESIS_PROFILE") == "long"
MOMENTS = [ms / 1000 for ms in range(0, 120, 1 if LONG else 8)]
"""Seconds until a call is interrupted: from before its first action to after its last one on an idle machine."""
HOST = Path("/proc/self/ns/net")


def call(
    daemon: Daemon, command: str, netns: Path, ifname: str = "eth0", config: dict[str, Any] | None = None
) -> CniCall:
    document = base64.b64encode(json.dumps(config or daemon.conf).encode()).decode()
    env = {**cni_environment(command, netns), "CNI_IFNAME": ifname}
    return decode(json.dumps({"env": env, "config": document}).encode())


def remove_unusable_bridges() -> None:
    """Remove bridges that an interrupted plugin has created and not given their address.

    Without ports such a bridge has the MAC 00:00:00:00:00:00, and the plugin (1.1.1) fails at each ADD until it is
    gone.
    """
    for link in json.loads(namespaces.ip(HOST, "-j", "link", "show", "type", "bridge")):
        if link.get("address") == "00:00:00:00:00:00":
            namespaces.ip(HOST, "link", "del", link["ifname"])


async def interrupt(parts: DaemonParts, call: CniCall, after: float) -> bool:
    """Start a call and interrupt it; return whether it had finished."""
    remove_unusable_bridges()
    handle = parts.call_handler.handle_cni if call.ifname == "eth0" else parts.call_handler.handle_delegate
    task = asyncio.create_task(handle(call))
    done, _ = await asyncio.wait([task], timeout=after)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await parts.records.flush()
    await parts.pod_events.flush()
    return bool(done)


def names(netns: Path) -> set[str]:
    return {link["ifname"] for link in json.loads(namespaces.ip(netns, "-j", "link"))}


@pytest.fixture
async def node(daemon: Daemon) -> Daemon:
    """A daemon whose pod requests one network in addition to the primary one."""
    daemon.pod({NETWORKS: "blue"})
    daemon.nad("blue", bridge_config(daemon.folder))
    return daemon


def held(daemon: Daemon, name: str) -> list[str]:
    """Return the leases. ``host-local`` ignores an empty file, which it leaves when it is killed before it writes."""
    return [lease for lease in leases(daemon.folder, name) if (daemon.folder / "leases" / name / lease).stat().st_size]


def assert_nothing_is_left(daemon: Daemon, parts: DaemonParts, netns: Path) -> None:
    assert names(netns) == {"lo"}
    assert held(daemon, "blue") == held(daemon, "pods") == []
    assert parts.records.ids() == []
    assert not {name for name in names(HOST) if name.startswith("veth")}


async def test_del_after_an_interrupted_add_leaves_nothing(node: Daemon, sandbox_netns: Path) -> None:
    ends = []
    for moment in [*MOMENTS, 30.0]:
        ends.append(await interrupt(node.make_parts(), call(node, "ADD", sandbox_netns), moment))
        after = node.make_parts()
        await after.sweep.run_once()
        await after.call_handler.handle_cni(call(node, "DEL", sandbox_netns))
        await after.records.flush()
        assert_nothing_is_left(node, after, sandbox_netns)
    assert (ends[0], ends[-1]) == (False, True)


async def test_the_sweep_finishes_an_interrupted_del(node: Daemon, sandbox_netns: Path) -> None:
    for moment in MOMENTS[1:]:
        parts = node.make_parts()
        await parts.call_handler.handle_cni(call(node, "ADD", sandbox_netns))
        await parts.records.flush()
        await parts.pod_events.flush()
        await interrupt(parts, call(node, "DEL", sandbox_netns), moment)
        after = node.make_parts()
        await after.sweep.run_once()
        await after.records.flush()
        assert_nothing_is_left(node, after, sandbox_netns)


async def test_an_interrupted_hot_plug_is_rolled_back_or_complete(node: Daemon, sandbox_netns: Path) -> None:
    config = bridge_config(node.folder, name="green", bridge="br-green")
    parts = node.make_parts()
    await parts.call_handler.handle_cni(call(node, "ADD", sandbox_netns))
    for moment in MOMENTS[: len(MOMENTS) // 2]:
        parts = node.make_parts()
        await interrupt(parts, call(node, "ADD", sandbox_netns, "net7", config), moment)
        after = node.make_parts()
        await after.sweep.run_once()
        await after.records.flush()
        there = "net7" in names(sandbox_netns)
        assert len(held(node, "green")) == int(there)
        assert names(sandbox_netns) - {"net7"} == {"lo", "eth0", "net1"}
        # The controller repeats the ADD in either case, and later the DEL.
        await after.call_handler.handle_delegate(call(node, "ADD", sandbox_netns, "net7", config))
        assert len(held(node, "green")) == 1
        await interrupt(after, call(node, "DEL", sandbox_netns, "net7", config), moment)
        last = node.make_parts()
        await last.call_handler.handle_delegate(call(node, "DEL", sandbox_netns, "net7", config))
        await last.records.flush()
        assert held(node, "green") == []
        assert names(sandbox_netns) == {"lo", "eth0", "net1"}
    await node.make_parts().call_handler.handle_cni(call(node, "DEL", sandbox_netns))
