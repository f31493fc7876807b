"""A handler that dies after each single netlink call of the set-up or the teardown: the next run completes it.

Real links. Every case ends with exactly the pod interface that the CNI plugin created: MAC, MTU, addresses, routes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN

from schemas.kubernetes.operations import PodNic, RecordedRoute
from services.common.domain.nic import link_names
from services.common.netlink.pool import NetnsPool
from services.handler.pod_network.apply import apply_operations
from services.handler.pod_network.operations import ObservedLinks
from services.handler.pod_network.setup import (
    bridge_address,
    bridge_binding,
    bridge_mac,
    pod_nic_link,
    setup_operations,
)
from services.handler.pod_network.teardown import teardown_operations
from tests.support.node import netns as testbed
from tests.support.node.interruptible_netns import InterruptibleNetns, NetlinkInterrupted, open_interruptible

NAMES = link_names("pod7e0055a6880")
POD = "22222222-2222-4222-8222-222222222222"
MAC = "3e:89:92:5a:b5:a7"
ARP_IGNORE = "net/ipv4/conf/all/arp_ignore"
ALL = 1000
"""More calls than any set-up or teardown makes."""

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
        testbed.veth(path, NAMES.pod_interface, node, "veth0")
        testbed.ip(node, "link", "set", "veth0", "mtu", "9000")
        yield path


@pytest.fixture
async def netns(pod: Path) -> AsyncIterator[InterruptibleNetns]:
    pool = NetnsPool()
    yield await open_interruptible(pool, str(pod))
    pool.close()


class Nic:
    """A pod interface of one shape, and its set-up and teardown."""

    def __init__(self, netns: InterruptibleNetns, pod: Path, shape: str) -> None:
        ips, routes, mtu = SHAPES[shape]
        self.netns = netns
        self.record = PodNic(
            pod_uid=POD, sandbox_id="s", interface=NAMES.pod_interface, mac=MAC, mtu=mtu, ips=ips, routes=routes
        )
        testbed.ip(pod, "link", "set", NAMES.pod_interface, "mtu", str(mtu), "address", MAC, "up")
        for ip in ips:
            testbed.ip(pod, "address", "add", ip, "dev", NAMES.pod_interface, "nodad")
        for route in sorted(routes, key=lambda route: route.gw is not None):
            via = ["via", route.gw] if route.gw else ["dev", NAMES.pod_interface]
            metric = ["metric", str(route.priority)] if route.priority else []
            family = "-6" if ":" in route.dst else "-4"
            testbed.ip(pod, family, "route", "add", route.dst, *via, *metric)

    async def observe(self) -> ObservedLinks:
        netns = self.netns
        sysctls = {ARP_IGNORE: await netns.sysctl(ARP_IGNORE)}
        return ObservedLinks(
            tuple(await netns.links()), tuple(await netns.addresses()), tuple(await netns.routes()), sysctls
        )

    async def set_up(self, calls: int | None = None) -> bool:
        observed = await self.observe()
        link = pod_nic_link(observed, NAMES)
        assert link is not None
        operations = setup_operations(observed, bridge_binding(self.record, NAMES, link, position=1, owner=0))
        return await self._apply(operations, calls, restoring=False)

    async def tear_down(self, calls: int | None = None) -> bool:
        return await self._apply(teardown_operations(await self.observe(), NAMES, self.record), calls, restoring=True)

    async def _apply(self, operations: list[Any], calls: int | None, *, restoring: bool) -> bool:
        """Apply operations; return whether all were applied.

        :param calls: die after this number of netlink calls; ``None`` for never.
        """
        self.netns.interrupt_after(calls)
        try:
            await apply_operations(self.netns, operations, INVALID_SPAN, restoring=restoring)
        except NetlinkInterrupted:
            return False
        finally:
            self.netns.interrupt_after(None)
        return True

    async def expect_set_up(self) -> None:
        observed = await self.observe()
        by_name = {link.name: link for link in observed.links}
        assert by_name.keys() == {"lo", NAMES.pod_interface, NAMES.bridged, NAMES.bridge, NAMES.tap}
        nic, bridge, tap, dummy = (by_name[n] for n in (NAMES.bridged, NAMES.bridge, NAMES.tap, NAMES.pod_interface))
        free, mtu = bridge_mac(POD, NAMES.pod_interface), self.record.mtu
        assert (nic.kind, nic.mac, nic.mtu, nic.up, nic.learning) == ("veth", free, mtu, True, False)
        assert (bridge.mac, bridge.mtu, bridge.up) == (free, mtu, True)
        assert (tap.mtu, tap.up, nic.master, tap.master) == (mtu, True, bridge.index, bridge.index)
        assert (dummy.mac, dummy.mtu, dummy.up) == (MAC, mtu, False)
        ipv4 = any(":" not in ip for ip in self.record.ips)
        assert observed.addresses_of(bridge.index) == ([bridge_address(1)] if ipv4 else [])
        assert (observed.addresses_of(nic.index), observed.addresses_of(tap.index)) == ([], [])
        assert sorted(observed.addresses_of(dummy.index)) == sorted(self.record.ips)
        assert observed.sysctls[ARP_IGNORE] == ("1" if ipv4 else "0")
        assert setup_operations(observed, bridge_binding(self.record, NAMES, nic, position=1, owner=0)) == []


Way = Callable[[int | None], Awaitable[bool]]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_crash_after_each_netlink_call_is_recovered(pod: Path, netns: InterruptibleNetns, shape: str) -> None:
    nic = Nic(netns, pod, shape)
    before = testbed.configured(pod)
    calls = 0
    set_up = torn_down = False
    while not (set_up and torn_down):
        calls += 1
        assert calls < ALL
        # Interrupt the set-up, and tear down from there.
        if not set_up:
            await nic.set_up(calls)
            await nic.tear_down()
            assert testbed.configured(pod) == before, f"after {calls} calls of the set-up"
        # Interrupt the set-up and complete it. Interrupt the teardown, set up again and interrupt it again; then
        # complete it.
        set_up = await nic.set_up(calls)
        await nic.set_up()
        await nic.expect_set_up()
        torn_down = await nic.tear_down(calls)
        if not torn_down:
            await nic.set_up()
            await nic.expect_set_up()
            assert not await nic.tear_down(calls)
        await nic.tear_down()
        assert testbed.configured(pod) == before, f"after {calls} calls"
        assert await netns.sysctl(ARP_IGNORE) == "0"
    assert teardown_operations(await nic.observe(), NAMES, nic.record) == []
