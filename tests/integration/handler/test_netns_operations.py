"""The netlink adapter against the kernel: what it sees, what it changes, and how it fails."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.common.netlink import inside
from services.common.netlink.errors import LinkExists, LinkMissing, NetlinkFailure, NetnsGone
from services.common.netlink.links import Address, Route
from services.common.netlink.netns import Netns
from services.common.netlink.pool import NetnsPool
from services.common.netlink.taps import Labels
from tests.support import netns as testbed


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


async def test_a_veth_is_seen_as_ip_shows_it(inner: Path, tmp_path: Path, netns: Netns) -> None:
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


async def test_links_are_made_changed_and_removed(netns: Netns) -> None:
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


async def test_a_tap_belongs_to_its_owner_and_takes_the_queues_asked_for(inner: Path, netns: Netns) -> None:
    tap = await netns.add_tap("tap0", owner=107, queues=4)
    assert tap.multi_queue is True
    details = testbed.ip(inner, "-details", "link", "show", "tap0")
    assert "user 107" in details or "uid 107" in details or "persist" in details


async def test_a_link_that_keeps_addresses_is_made_whatever_the_kernel_has(netns: Netns) -> None:
    keeper = await netns.add_dummy("pod0", mac="02:00:00:00:00:03", mtu=9000)
    assert keeper.kind in {"dummy", "bridge"}
    assert (keeper.mac, keeper.mtu, keeper.up) == ("02:00:00:00:00:03", 9000, False)
    for _ in range(2):
        await netns.add_address(keeper.index, "10.0.0.2/24")
        await netns.add_address(keeper.index, "fd00::2/64")
    assert sorted(a.cidr for a in await netns.addresses(keeper.index)) == ["10.0.0.2/24", "fd00::2/64"]
    for _ in range(2):
        await netns.delete_address(keeper.index, "10.0.0.2/24")
    await netns.flush_addresses(keeper.index)
    assert await netns.addresses(keeper.index) == []


async def test_links_go_together_and_take_no_other_along(netns: Netns) -> None:
    tap, bridge = await netns.add_tap("tap0", owner=0), await netns.add_bridge("br0", up=True)
    other = await netns.add_bridge("br1")
    await netns.set(tap.index, master=bridge.index)
    await netns.delete_together([tap.index, bridge.index])
    assert [link.name for link in await netns.links()] == ["lo", "br1"]
    with pytest.raises(LinkMissing):
        await netns.delete_together([other.index, tap.index])
    assert await netns.link("br1") is not None


async def test_routes_are_given_back(inner: Path, netns: Netns) -> None:
    keeper = await netns.add_bridge("br0", up=True)
    await netns.add_address(keeper.index, "10.0.0.2/24")
    for _ in range(2):
        await netns.add_route(keeper.index, "0.0.0.0/0", gw="10.0.0.1", priority=9)
        await netns.add_route(keeper.index, "10.7.0.0/16")
    shown = testbed.ip(inner, "route")
    assert "default via 10.0.0.1 dev br0 proto static metric 9" in shown
    assert "10.7.0.0/16 dev br0" in shown


async def test_a_sysctl_is_the_namespaces_own(netns: Netns) -> None:
    key = "net/ipv4/conf/all/arp_ignore"
    outside = (Path("/proc/sys") / key).read_text()
    await netns.set_sysctl(key, "1")
    assert await netns.sysctl(key) == "1"
    assert (Path("/proc/sys") / key).read_text() == outside
    with pytest.raises(NetlinkFailure):
        await netns.sysctl("net/nothing")


async def test_refusals_are_told_apart(netns: Netns) -> None:
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


async def test_a_path_without_a_namespace_is_one_that_is_gone(pool: NetnsPool, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path / "nothing", plain, tmp_path):
        with pytest.raises(NetnsGone):
            await pool.open(str(path))


async def test_a_namespace_made_anew_at_its_path_is_not_the_old_one(tmp_path: Path, pool: NetnsPool) -> None:
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


async def test_an_idle_conversation_is_closed_and_opened_again(inner: Path) -> None:
    pool = NetnsPool(idle=0.05)
    netns = await pool.open(str(inner))
    wire = await netns._access.connected()
    # Its timer was armed before this one, for the same time.
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, later.set)
    await later.wait()
    assert wire.broken
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


async def test_a_tap_is_made_by_a_program_that_bears_the_guests_label(tmp_path: Path, inner: Path) -> None:
    own = tmp_path / "exec"
    pool = NetnsPool(labels=Labels(own=own))
    netns = await pool.open(str(inner))
    label = "system_u:system_r:container_t:s0:c1,c2"
    tap = await netns.add_tap("tap0", owner=107, queues=2, label=label)
    assert (tap.kind, tap.multi_queue, own.read_text()) == ("tun", True, label)
    # It outlives the program, and belongs to its user.
    assert "user 107" in testbed.ip(inner, "-detail", "link", "show", "tap0")
    with pytest.raises(LinkExists):
        await netns.add_tap("tap0", owner=107, label=label)
    pool.close()


async def test_a_label_that_may_not_be_taken_on_is_a_failure_and_makes_no_tap(tmp_path: Path, inner: Path) -> None:
    pool = NetnsPool(labels=Labels(own=tmp_path / "nowhere" / "exec"))
    netns = await pool.open(str(inner))
    with pytest.raises(NetlinkFailure, match="making tap tap0"):
        await netns.add_tap("tap0", owner=107, label="system_u:system_r:container_t:s0")
    assert [link.name for link in await netns.links()] == ["lo"]
    pool.close()


async def test_an_operation_that_was_cancelled_anywhere_does_not_spoil_the_next(inner: Path) -> None:
    """A cancelled first request closed the socket below the conversation, and the next one found a bad descriptor."""
    for steps in range(40):
        pool = NetnsPool()
        work = asyncio.create_task(links_of(pool, inner))
        for _ in range(steps):
            await asyncio.sleep(0)
        waiting = asyncio.create_task(links_of(pool, inner))
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert await waiting == await links_of(pool, inner) == ["lo"]
        pool.close()


async def test_a_socket_whose_visit_is_cancelled_as_it_is_handed_over_is_closed(inner: Path) -> None:
    go, made = threading.Event(), list[socket.socket]()

    def work() -> socket.socket:
        go.wait(5)
        made.append(inside.route_socket())
        return made[0]

    fd = os.open(inner, os.O_RDONLY)
    visit = asyncio.create_task(inside.inside(fd, work, timeout=5.0))
    await asyncio.sleep(0)
    go.set()
    while any(thread.name == "in-netns" for thread in threading.enumerate()):
        time.sleep(0.001)  # noqa: ASYNC251 - so that the loop has taken nothing from the thread yet
    await asyncio.sleep(0)
    visit.cancel()
    await asyncio.gather(visit, return_exceptions=True)
    os.close(fd)
    assert made[0].fileno() == -1


async def links_of(pool: NetnsPool, path: Path) -> list[str]:
    return [link.name for link in await (await pool.open(str(path))).links()]


async def test_a_visit_that_was_given_up_never_leads_into_another_namespace(tmp_path: Path) -> None:
    """Its descriptor is closed by then, and the number may be another namespace's."""
    found: set[int] = set()

    def look() -> None:
        found.add(os.stat(f"/proc/self/task/{threading.get_native_id()}/ns/net").st_ino)

    with testbed.namespace(tmp_path, "asked") as asked, testbed.namespace(tmp_path, "other") as other:
        for _ in range(300):
            first = os.open(asked, os.O_RDONLY)
            visit = asyncio.create_task(inside.inside(first, look, timeout=5.0))
            await asyncio.sleep(0)
            visit.cancel()
            os.close(first)
            second = os.open(other, os.O_RDONLY)
            await asyncio.gather(visit, return_exceptions=True)
            os.close(second)
        while any(thread.name == "in-netns" for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert found == {os.stat(asked).st_ino}
