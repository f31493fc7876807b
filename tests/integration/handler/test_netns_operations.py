"""The netlink adapter on real network namespaces: what it reads, what it changes, and its errors."""

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.common.netlink import netns_thread
from services.common.netlink.errors import LinkExists, LinkMissing, NetlinkFailure, NetnsGone
from services.common.netlink.links import Address, Route
from services.common.netlink.netns import Netns
from services.common.netlink.pool import NetnsPool
from services.common.netlink.taps import SelinuxLabels
from tests.support.node import netns as testbed


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[Path]:
    with testbed.namespace(tmp_path, "inner") as path:
        yield path


@pytest.fixture
async def pool() -> AsyncIterator[NetnsPool]:
    found = NetnsPool()
    yield found
    found.close()


@pytest.fixture
async def netns(inner: Path, pool: NetnsPool) -> Netns:
    return await pool.open(str(inner))


async def test_a_veth_is_read_as_ip_shows_it(inner: Path, tmp_path: Path, netns: Netns) -> None:
    with testbed.namespace(tmp_path, "outer") as outer:
        testbed.veth(inner, "pod0", outer, "host0")
        testbed.ip(inner, "address", "add", "10.0.0.2/24", "dev", "pod0")
        testbed.ip(inner, "link", "set", "pod0", "up", "mtu", "1400")
        testbed.ip(inner, "route", "add", "default", "via", "10.0.0.1", "metric", "7")
        link = await netns.link("pod0")
        assert link is not None
        assert (link.kind, link.mtu, link.up, link.master) == ("veth", 1400, True, None)
        assert link.mac in testbed.ip(inner, "link", "show", "pod0")
        assert [a for a in await netns.addresses(link.index) if not a.link_local] == [
            Address(link.index, "10.0.0.2/24")
        ]
        assert set(await netns.routes(link.index)) == {
            Route(link.index, "10.0.0.0/24"),
            Route(link.index, "0.0.0.0/0", "10.0.0.1", 7),
        } | {route for route in await netns.routes(link.index) if route.dst == "fe80::/64"}
        assert [found.name for found in await netns.links()] == ["lo", "pod0"]


@pytest.fixture
def node_root(inner: Path, tmp_path: Path) -> Iterator[Path]:
    """A node's root with a writable procfs and the namespace; the test's own ``/proc/sys`` is read-only meanwhile."""
    node = tmp_path / "node"
    below = node / inner.relative_to("/")
    for folder in (node / "proc", below.parent):
        folder.mkdir(parents=True)
    below.touch()
    with contextlib.ExitStack() as stack:
        for source, target in (("proc", node / "proc"), ("/proc/sys", "/proc/sys"), (inner, below)):
            kind = ["-t", "proc"] if source == "proc" else ["--bind"]
            subprocess.run(["mount", *kind, source, target], check=True)
            stack.callback(subprocess.run, ["umount", target], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", "/proc/sys"], check=True)
        yield node


async def test_sysctls_are_set_through_the_nodes_procfs(inner: Path, pool: NetnsPool, node_root: Path) -> None:
    """The ``/proc/sys`` of a container without privileges is read-only; the node's, below its root, is not."""
    key = "net/ipv4/conf/all/arp_ignore"
    with pytest.raises(NetlinkFailure, match="Read-only file system"):
        await (await pool.open(str(inner))).set_sysctl(key, "1")
    with contextlib.closing(NetnsPool(str(node_root))) as nodes:
        await (await nodes.open(str(inner))).set_sysctl(key, "1")
    assert await (await pool.open(str(inner))).sysctl(key) == "1"


async def test_links_are_created_changed_and_deleted(netns: Netns) -> None:
    bridge = await netns.add_bridge("br0", mac="02:00:00:00:00:01", up=True)
    assert (bridge.kind, bridge.mac, bridge.up) == ("bridge", "02:00:00:00:00:01", True)
    tap = await netns.add_tap("tap0", owner=107, mtu=9000)
    assert (tap.kind, tap.mtu, tap.multi_queue, tap.up) == ("tun", 9000, False, False)
    await netns.set(tap.index, name="tap1", mac="02:00:00:00:00:02", mtu=1400, master=bridge.index, up=True)
    await netns.set_learning(tap.index, False)
    port = await netns.link(tap.index)
    assert port is not None
    assert (port.name, port.mac, port.mtu, port.master, port.up, port.learning) == (
        "tap1",
        "02:00:00:00:00:02",
        1400,
        bridge.index,
        True,
        False,
    )
    await netns.set(tap.index, master=0)
    freed = await netns.link("tap1")
    assert freed is not None
    assert (freed.master, freed.learning) == (None, None)
    await netns.delete(tap.index)
    assert await netns.link("tap1") is None


async def test_a_tap_has_the_requested_owner_and_queues(inner: Path, netns: Netns) -> None:
    tap = await netns.add_tap("tap0", owner=107, queues=4)
    assert tap.multi_queue is True
    details = testbed.ip(inner, "-details", "link", "show", "tap0")
    assert "user 107" in details or "uid 107" in details or "persist" in details


async def test_a_dummy_is_created_whatever_drivers_the_kernel_has(netns: Netns) -> None:
    dummy = await netns.add_dummy("pod0", mac="02:00:00:00:00:03", mtu=9000)
    assert dummy.kind in {"dummy", "bridge"}
    assert (dummy.mac, dummy.mtu, dummy.up) == ("02:00:00:00:00:03", 9000, False)
    for _ in range(2):
        await netns.add_address(dummy.index, "10.0.0.2/24")
        await netns.add_address(dummy.index, "fd00::2/64")
    assert sorted(a.cidr for a in await netns.addresses(dummy.index)) == ["10.0.0.2/24", "fd00::2/64"]
    for _ in range(2):
        await netns.delete_address(dummy.index, "10.0.0.2/24")
    await netns.flush_addresses(dummy.index)
    assert await netns.addresses(dummy.index) == []


async def test_links_are_deleted_together_and_no_others(netns: Netns) -> None:
    tap, bridge = await netns.add_tap("tap0", owner=0), await netns.add_bridge("br0", up=True)
    other = await netns.add_bridge("br1")
    await netns.set(tap.index, master=bridge.index)
    await netns.delete_together([tap.index, bridge.index])
    assert [link.name for link in await netns.links()] == ["lo", "br1"]
    with pytest.raises(LinkMissing):
        await netns.delete_together([other.index, tap.index])
    assert await netns.link("br1") is not None


async def test_routes_are_added(inner: Path, netns: Netns) -> None:
    dummy = await netns.add_bridge("br0", up=True)
    await netns.add_address(dummy.index, "10.0.0.2/24")
    for _ in range(2):
        await netns.add_route(dummy.index, "0.0.0.0/0", gw="10.0.0.1", priority=9)
        await netns.add_route(dummy.index, "10.7.0.0/16")
    shown = testbed.ip(inner, "route")
    assert "default via 10.0.0.1 dev br0 proto static metric 9" in shown
    assert "10.7.0.0/16 dev br0" in shown


async def test_a_sysctl_is_set_in_the_namespace_only(netns: Netns) -> None:
    key = "net/ipv4/conf/all/arp_ignore"
    outside = (Path("/proc/sys") / key).read_text()
    await netns.set_sysctl(key, "1")
    assert await netns.sysctl(key) == "1"
    assert (Path("/proc/sys") / key).read_text() == outside
    with pytest.raises(NetlinkFailure):
        await netns.sysctl("net/nothing")


async def test_refusals_are_classified(netns: Netns) -> None:
    await netns.add_bridge("br0")
    with pytest.raises(LinkExists):
        await netns.add_bridge("br0")
    with pytest.raises(LinkExists):
        await netns.add_tap("br0", owner=0)
    with pytest.raises(LinkMissing):
        await netns.delete(4711)
    with pytest.raises(LinkMissing):
        await netns.set(4711, up=True)
    assert await netns.link("none") is None
    with pytest.raises(NetlinkFailure, match="Operation not supported"):
        await netns._add("x", "nosuchkind")


async def test_a_path_without_a_namespace_is_an_error(pool: NetnsPool, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path / "nothing", plain, tmp_path):
        with pytest.raises(NetnsGone):
            await pool.open(str(path))


async def test_a_new_namespace_at_the_same_path_is_not_the_old_one(tmp_path: Path, pool: NetnsPool) -> None:
    with testbed.namespace(tmp_path, "pod") as path:
        old = await pool.open(str(path))
        await old.add_bridge("br0")
    with pytest.raises(NetnsGone):
        await pool.open(str(path))
    with testbed.namespace(tmp_path, "pod") as path:
        new = await pool.open(str(path))
        assert new is not old
        assert await new.link("br0") is None
        old._access.close()
        with pytest.raises(NetnsGone):
            await old.links()


async def test_an_idle_connection_is_closed_and_opened_again(inner: Path) -> None:
    pool = NetnsPool(idle=0.05)
    netns = await pool.open(str(inner))
    connection = await netns._access.connect()
    # The timer of the connection was started before this one, for the same time.
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, later.set)
    await later.wait()
    assert connection.broken
    assert await netns.link("lo") is not None
    netns._access.close()


async def test_a_namespace_is_found_below_another_root(tmp_path: Path, inner: Path) -> None:
    root = tmp_path / "host"
    (root / "run" / "netns").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var" / "run").symlink_to("/run")
    pool = NetnsPool(str(root))
    with testbed.namespace(root / "run" / "netns", "pod"):
        netns = await pool.open("/var/run/netns/pod")
        assert [link.name for link in await netns.links()] == ["lo"]
    pool.close()


async def test_a_process_namespace_is_opened_by_its_magic_link(pool: NetnsPool) -> None:
    own = await pool.open(f"/proc/{os.getpid()}/ns/net")
    assert await own.link("lo") is not None


async def test_a_tap_is_created_by_a_process_with_the_label_of_the_guest(tmp_path: Path, inner: Path) -> None:
    own = tmp_path / "exec"
    pool = NetnsPool(labels=SelinuxLabels(own=own))
    netns = await pool.open(str(inner))
    label = "system_u:system_r:container_t:s0:c1,c2"
    tap = await netns.add_tap("tap0", owner=107, queues=2, label=label)
    assert (tap.kind, tap.multi_queue, own.read_text()) == ("tun", True, label)
    # The tap outlives the process, and has the requested owner.
    assert "user 107" in testbed.ip(inner, "-detail", "link", "show", "tap0")
    with pytest.raises(LinkExists):
        await netns.add_tap("tap0", owner=107, label=label)
    pool.close()


async def test_a_label_that_cannot_be_set_is_an_error_and_no_tap_is_created(tmp_path: Path, inner: Path) -> None:
    pool = NetnsPool(labels=SelinuxLabels(own=tmp_path / "nowhere" / "exec"))
    netns = await pool.open(str(inner))
    with pytest.raises(NetlinkFailure, match="cannot create tap tap0"):
        await netns.add_tap("tap0", owner=107, label="system_u:system_r:container_t:s0")
    assert [link.name for link in await netns.links()] == ["lo"]
    pool.close()


async def test_an_operation_that_is_cancelled_at_any_point_does_not_affect_the_next(inner: Path) -> None:
    """A cancelled first request once closed the socket of the connection, and the next request failed with EBADF."""
    for yields in range(40):
        pool = NetnsPool()
        work = asyncio.create_task(links_of(pool, inner))
        for _ in range(yields):
            await asyncio.sleep(0)
        waiting = asyncio.create_task(links_of(pool, inner))
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert await waiting == await links_of(pool, inner) == ["lo"]
        pool.close()


async def test_a_socket_is_closed_when_its_request_is_cancelled_during_the_hand_over(inner: Path) -> None:
    go, made = threading.Event(), list[socket.socket]()

    def work() -> socket.socket:
        go.wait(5)
        made.append(netns_thread.open_route_socket())
        return made[0]

    fd = os.open(inner, os.O_RDONLY)
    call = asyncio.create_task(netns_thread.run_in_netns(fd, work, timeout=5.0))
    await asyncio.sleep(0)
    go.set()
    while any(thread.name == "in-netns" for thread in threading.enumerate()):
        time.sleep(0.001)  # noqa: ASYNC251 - so that the event loop has not processed the result of the thread yet
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    os.close(fd)
    assert made[0].fileno() == -1


async def links_of(pool: NetnsPool, path: Path) -> list[str]:
    return [link.name for link in await (await pool.open(str(path))).links()]


async def test_a_cancelled_call_never_enters_another_namespace(tmp_path: Path) -> None:
    """Its descriptor is closed by then, and the number may belong to another namespace."""
    found: set[int] = set()

    def record_netns() -> None:
        found.add(os.stat(f"/proc/self/task/{threading.get_native_id()}/ns/net").st_ino)

    with testbed.namespace(tmp_path, "requested") as requested, testbed.namespace(tmp_path, "other") as other:
        for _ in range(300):
            first = os.open(requested, os.O_RDONLY)
            call = asyncio.create_task(netns_thread.run_in_netns(first, record_netns, timeout=5.0))
            await asyncio.sleep(0)
            call.cancel()
            os.close(first)
            second = os.open(other, os.O_RDONLY)
            await asyncio.gather(call, return_exceptions=True)
            os.close(second)
        while any(thread.name == "in-netns" for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert found == {os.stat(requested).st_ino}


@pytest.mark.parametrize("value", [2**70, -5])
async def test_a_number_that_netlink_cannot_encode_fails_its_own_change_only(netns: Netns, value: int) -> None:
    """Plugins and users write such numbers: an unexpected error would end the run of the whole VM."""
    link = await netns.add_dummy("dummy0")
    with pytest.raises(NetlinkFailure, match="cannot be encoded"):
        await netns.set(link.index, mtu=value)
    with pytest.raises(NetlinkFailure, match="cannot be encoded"):
        await netns.add_route(link.index, "192.0.2.0/24", priority=value)
    with pytest.raises(NetlinkFailure, match="cannot be encoded"):
        await netns.add_tap("tap0", owner=2**70)
    await netns.set(link.index, mtu=1400)
    assert [found.name for found in await netns.links()] == ["lo", "dummy0"]
