"""The handler dies after each single netlink call of the wiring, and of the way back: the next run ends all the same.

Real links. Every case ends with the very NIC that the CNI plugin made: MAC, MTU, addresses, routes, nothing extra.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN

from schemas.operations import PodNic, RecordedRoute
from services.common.netlink.pool import NetnsPool
from services.handler.apply_netlink import walk
from services.handler.netlink_operations import Seen
from services.handler.pod_network import bridge_address, bridge_binding, bridge_mac, link_names, pod_nic_link, steps
from services.handler.teardown import release_steps
from tests.support import netns as testbed
from tests.support.broken_off import BrokenOffError, MortalNetns, mortal

NAMES = link_names("pod7e0055a6880")
POD = "22222222-2222-4222-8222-222222222222"
MAC = "3e:89:92:5a:b5:a7"
ARP_IGNORE = "net/ipv4/conf/all/arp_ignore"
ALL = 1000
"""More calls than any way takes."""

IPV4_ROUTES = (
    RecordedRoute("0.0.0.0/0", "10.0.0.1"),
    RecordedRoute("10.9.0.0/16"),
    RecordedRoute("10.8.0.0/16", "10.9.0.1", 50),
)
IPV6_ROUTES = (RecordedRoute("::/0", "fd00::1"), RecordedRoute("fd09::/64"))
SHAPES: dict[str, tuple[tuple[str, ...], tuple[RecordedRoute, ...], int]] = {
    "bare": ((), (), 1500),
    "ipv4": (("10.0.0.2/24",), IPV4_ROUTES[:1], 1500),
    "ipv6": (("fd00::2/64",), IPV6_ROUTES, 1400),
    "dual, routes": (("10.0.0.2/24", "fd00::2/64"), IPV4_ROUTES + IPV6_ROUTES, 1400),
    "several addresses, jumbo": (("10.0.0.2/24", "10.0.1.2/16", "fd00::2/64"), IPV4_ROUTES[:1], 9000),
}


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Path]:
    with testbed.namespace(tmp_path, "node") as node, testbed.namespace(tmp_path, "pod") as path:
        testbed.veth(path, NAMES.nic, node, "veth0")
        testbed.ip(node, "link", "set", "veth0", "mtu", "9000")
        yield path


@pytest.fixture
async def netns(pod: Path) -> AsyncIterator[MortalNetns]:
    pool = NetnsPool()
    yield await mortal(pool, str(pod))
    pool.close()


class Nic:
    """The pod NIC of one shape, and what the handler does with it."""

    def __init__(self, netns: MortalNetns, pod: Path, shape: str) -> None:
        ips, routes, mtu = SHAPES[shape]
        self.netns = netns
        self.record = PodNic(pod_uid=POD, sandbox_id="s", interface=NAMES.nic, mac=MAC, mtu=mtu, ips=ips, routes=routes)
        testbed.ip(pod, "link", "set", NAMES.nic, "mtu", str(mtu), "address", MAC, "up")
        for ip in ips:
            testbed.ip(pod, "address", "add", ip, "dev", NAMES.nic, "nodad")
        for route in sorted(routes, key=lambda route: route.gw is not None):
            via = ["via", route.gw] if route.gw else ["dev", NAMES.nic]
            metric = ["metric", str(route.priority)] if route.priority else []
            family = "-6" if ":" in route.dst else "-4"
            testbed.ip(pod, family, "route", "add", route.dst, *via, *metric)

    async def look(self) -> Seen:
        netns = self.netns
        sysctls = {ARP_IGNORE: await netns.sysctl(ARP_IGNORE)}
        return Seen(tuple(await netns.links()), tuple(await netns.addresses()), tuple(await netns.routes()), sysctls)

    async def wire(self, calls: int | None = None) -> bool:
        seen = await self.look()
        link = pod_nic_link(seen, NAMES)
        assert link is not None
        todo = steps(seen, bridge_binding(self.record, NAMES, link, position=1, owner=0))
        return await self._walk(todo, calls, restoring=False)

    async def release(self, calls: int | None = None) -> bool:
        return await self._walk(release_steps(await self.look(), NAMES, self.record), calls, restoring=True)

    async def _walk(self, todo: list[Any], calls: int | None, *, restoring: bool) -> bool:
        """Whether it came to its end."""
        self.netns.die_after(calls)
        try:
            await walk(self.netns, todo, INVALID_SPAN, restoring=restoring)
        except BrokenOffError:
            return False
        finally:
            self.netns.die_after(None)
        return True

    async def expect_wired(self) -> None:
        seen = await self.look()
        by_name = {link.name: link for link in seen.links}
        assert by_name.keys() == {"lo", NAMES.nic, NAMES.bridged, NAMES.bridge, NAMES.tap}
        nic, bridge, tap, keeper = (by_name[n] for n in (NAMES.bridged, NAMES.bridge, NAMES.tap, NAMES.nic))
        free, mtu = bridge_mac(POD, NAMES.nic), self.record.mtu
        assert (nic.kind, nic.mac, nic.mtu, nic.up, nic.learning) == ("veth", free, mtu, True, False)
        assert (bridge.mac, bridge.mtu, bridge.up) == (free, mtu, True)
        assert (tap.mtu, tap.up, nic.master, tap.master) == (mtu, True, bridge.index, bridge.index)
        assert (keeper.mac, keeper.mtu, keeper.up) == (MAC, mtu, False)
        ipv4 = any(":" not in ip for ip in self.record.ips)
        assert seen.addresses_of(bridge.index) == ([bridge_address(1)] if ipv4 else [])
        assert (seen.addresses_of(nic.index), seen.addresses_of(tap.index)) == ([], [])
        assert sorted(seen.addresses_of(keeper.index)) == sorted(self.record.ips)
        assert seen.sysctls[ARP_IGNORE] == ("1" if ipv4 else "0")
        assert steps(seen, bridge_binding(self.record, NAMES, nic, position=1, owner=0)) == []


Way = Callable[[int | None], Awaitable[bool]]


def plain(pod: Path) -> tuple[Any, ...]:
    """All that ``ip`` says of the pod and that is not the kernel's own."""
    links = json.loads(testbed.ip(pod, "-json", "link"))
    addresses = json.loads(testbed.ip(pod, "-json", "address"))
    routes = [
        *json.loads(testbed.ip(pod, "-json", "-4", "route")),
        *json.loads(testbed.ip(pod, "-json", "-6", "route")),
    ]
    return (
        [(link["ifindex"], link["ifname"], link.get("address"), link["mtu"], link.get("master")) for link in links],
        sorted((link["ifname"], "UP" in link["flags"]) for link in links),
        sorted(f"{a['local']}/{a['prefixlen']}" for link in addresses for a in link["addr_info"]),
        sorted((r["dst"], r.get("gateway", ""), r.get("metric", 0), r["dev"]) for r in routes),
    )


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_crash_after_each_call_costs_nothing(pod: Path, netns: MortalNetns, shape: str) -> None:
    nic = Nic(netns, pod, shape)
    before = plain(pod)
    calls = 0
    wired = released = False
    while not (wired and released):
        calls += 1
        assert calls < ALL
        # Half wired, and undone from there.
        if not wired:
            await nic.wire(calls)
            await nic.release()
            assert plain(pod) == before, f"after {calls} calls of the wiring"
        # Half wired, then wired; half released, and wired again from there; half released, then released.
        wired = await nic.wire(calls)
        await nic.wire()
        await nic.expect_wired()
        released = await nic.release(calls)
        if not released:
            await nic.wire()
            await nic.expect_wired()
            assert not await nic.release(calls)
        await nic.release()
        assert plain(pod) == before, f"after {calls} calls"
        assert await netns.sysctl(ARP_IGNORE) == "0"
    assert release_steps(await nic.look(), NAMES, nic.record) == []
