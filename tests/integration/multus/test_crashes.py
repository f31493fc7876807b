"""A daemon that dies at any moment of a call: the next one, its sweep and the runtime's DEL leave nothing behind.

A call is cut off after a while, a little later each time, and all goes on with new parts on the same directories: of a
killed daemon no more is left than of one whose call never returned. The long profile cuts at every millisecond.
"""

import asyncio
import base64
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from schemas.networks import NETWORKS
from services.multus.call import Call, decode
from services.multus.parts import Parts
from tests.support import netns as namespaces
from tests.support.cni import bridge_config, leases
from tests.support.multus_daemon import Daemon, cni_environment

LONG = os.environ.get("HOTNIC_HYPOTHESIS_PROFILE") == "long"
MOMENTS = [ms / 1000 for ms in range(0, 120, 1 if LONG else 8)]
"""Seconds after which a call is cut off: from before its first step until, on an idle machine, after its last."""
HOST = Path("/proc/self/ns/net")


def call(daemon: Daemon, command: str, netns: Path, ifname: str = "eth0", config: dict[str, Any] | None = None) -> Call:
    document = base64.b64encode(json.dumps(config or daemon.conf).encode()).decode()
    env = {**cni_environment(command, netns), "CNI_IFNAME": ifname}
    return decode(json.dumps({"env": env, "config": document}).encode())


async def cut_off(parts: Parts, what: Call, after: float) -> bool:
    """Start a call and cut it off; gives whether it had come to its end."""
    on = parts.calls.on_cni if what.ifname == "eth0" else parts.calls.on_delegate
    task = asyncio.create_task(on(what))
    done, _ = await asyncio.wait([task], timeout=after)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await parts.records.settled()
    await parts.reports.written()
    return bool(done)


def names(netns: Path) -> set[str]:
    return {link["ifname"] for link in json.loads(namespaces.ip(netns, "-j", "link"))}


@pytest.fixture
async def node(daemon: Daemon) -> Daemon:
    """A daemon whose pod asks for a network beside the primary one."""
    daemon.pod({NETWORKS: "blue"})
    daemon.nad("blue", bridge_config(daemon.folder))
    return daemon


def held(daemon: Daemon, name: str) -> list[str]:
    """The leases. An empty file is none: ``host-local``, killed between making and writing one, knows it no more."""
    return [lease for lease in leases(daemon.folder, name) if (daemon.folder / "leases" / name / lease).stat().st_size]


def assert_nothing_is_left(daemon: Daemon, parts: Parts, netns: Path) -> None:
    assert names(netns) == {"lo"}
    assert held(daemon, "blue") == held(daemon, "pods") == []
    assert parts.records.ids() == []
    assert not {name for name in names(HOST) if name.startswith("veth")}


@pytest.mark.timeout(600 if LONG else 60)
async def test_an_add_that_dies_leaves_nothing_after_del(node: Daemon, sandbox_netns: Path) -> None:
    ends = []
    for moment in [*MOMENTS, 30.0]:
        ends.append(await cut_off(node.anew(), call(node, "ADD", sandbox_netns), moment))
        after = node.anew()
        await after.sweep.once()
        await after.calls.on_cni(call(node, "DEL", sandbox_netns))
        await after.records.settled()
        assert_nothing_is_left(node, after, sandbox_netns)
    assert (ends[0], ends[-1]) == (False, True)


@pytest.mark.timeout(600 if LONG else 60)
async def test_a_del_that_dies_is_finished_by_the_sweep(node: Daemon, sandbox_netns: Path) -> None:
    for moment in MOMENTS[1:]:
        parts = node.anew()
        await parts.calls.on_cni(call(node, "ADD", sandbox_netns))
        await parts.records.settled()
        await parts.reports.written()
        await cut_off(parts, call(node, "DEL", sandbox_netns), moment)
        after = node.anew()
        await after.sweep.once()
        await after.records.settled()
        assert_nothing_is_left(node, after, sandbox_netns)


@pytest.mark.timeout(600 if LONG else 60)
async def test_a_plug_that_dies_is_undone_alone_or_there_as_a_whole(node: Daemon, sandbox_netns: Path) -> None:
    config = bridge_config(node.folder, name="green", bridge="br-green")
    parts = node.anew()
    await parts.calls.on_cni(call(node, "ADD", sandbox_netns))
    for moment in MOMENTS[: len(MOMENTS) // 2]:
        parts = node.anew()
        await cut_off(parts, call(node, "ADD", sandbox_netns, "net7", config), moment)
        after = node.anew()
        await after.sweep.once()
        await after.records.settled()
        there = "net7" in names(sandbox_netns)
        assert len(held(node, "green")) == int(there)
        assert names(sandbox_netns) - {"net7"} == {"lo", "eth0", "net1"}
        # The controller asks again, whichever way it went, and for the end as well.
        await after.calls.on_delegate(call(node, "ADD", sandbox_netns, "net7", config))
        assert len(held(node, "green")) == 1
        await cut_off(after, call(node, "DEL", sandbox_netns, "net7", config), moment)
        last = node.anew()
        await last.calls.on_delegate(call(node, "DEL", sandbox_netns, "net7", config))
        await last.records.settled()
        assert held(node, "green") == []
        assert names(sandbox_netns) == {"lo", "eth0", "net1"}
    await node.anew().calls.on_cni(call(node, "DEL", sandbox_netns))
