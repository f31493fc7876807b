"""The set-up in a real network namespace: complete, idempotent, and forwarding frames.

From every intermediate state: tests/integration/handler/test_crashes_during_setup.py.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from opentelemetry.trace import INVALID_SPAN

from schemas.kubernetes.operations import PodNic
from services.common.domain.nic import link_names
from services.common.netlink.netns import Netns
from services.common.netlink.pool import NetnsPool
from services.handler.pod_network.apply import apply_operations
from services.handler.pod_network.operations import NetlinkOperation, ObservedLinks
from services.handler.pod_network.setup import (
    LinkNames,
    bridge_address,
    bridge_binding,
    bridge_mac,
    cannot_be_bridged,
    pod_nic_link,
    setup_operations,
)
from services.handler.pod_network.teardown import teardown_operations
from tests.support.node import netns as testbed

NAMES = link_names("pod7e0055a6880")
POD = "22222222-2222-4222-8222-222222222222"
ARP_IGNORE = "net/ipv4/conf/all/arp_ignore"


class Pod:
    """A namespace with a pod interface as CNI leaves it, and the record of it."""

    def __init__(
        self, path: Path, netns: Netns, record: PodNic, names: LinkNames = NAMES, *, position: int = 1
    ) -> None:
        self.path = path
        self.netns = netns
        self.record = record
        self.names = names
        self.position = position

    async def observe(self) -> ObservedLinks:
        netns = self.netns
        sysctls = {ARP_IGNORE: await netns.sysctl(ARP_IGNORE)}
        return ObservedLinks(
            tuple(await netns.links()), tuple(await netns.addresses()), tuple(await netns.routes()), sysctls
        )

    async def operations(self, queues: int = 1) -> list[NetlinkOperation]:
        observed = await self.observe()
        link = pod_nic_link(observed, self.names)
        assert link is not None
        binding = bridge_binding(self.record, self.names, link, position=self.position, owner=0, queues=queues)
        return setup_operations(observed, binding)

    async def set_up(self, queues: int = 1) -> None:
        await apply_operations(self.netns, await self.operations(queues), INVALID_SPAN)

    async def expect_set_up(self) -> None:
        links = {link.name: link for link in await self.netns.links()}
        names = self.names
        bridge, nic, tap, dummy = (links[n] for n in (names.bridge, names.bridged, names.tap, names.pod_interface))
        mac = bridge_mac(POD, names.pod_interface)
        assert (bridge.kind, bridge.up, bridge.mac, bridge.mtu) == ("bridge", True, mac, self.record.mtu)
        assert (nic.kind, nic.up, nic.mac, nic.mtu) == ("veth", True, mac, self.record.mtu)
        assert (nic.master, nic.learning) == (bridge.index, False)
        assert (tap.kind, tap.up, tap.mtu, tap.master) == ("tun", True, self.record.mtu, bridge.index)
        assert (dummy.up, dummy.mac, dummy.mtu) == (False, self.record.mac, self.record.mtu)
        addresses = [a for a in await self.netns.addresses() if not a.link_local]
        ipv4 = any(":" not in ip for ip in self.record.ips)
        assert [a.cidr for a in addresses if a.index == bridge.index] == (
            [bridge_address(self.position)] if ipv4 else []
        )
        assert [a.cidr for a in addresses if a.index == nic.index] == []
        assert sorted(a.cidr for a in addresses if a.index == dummy.index) == sorted(self.record.ips)
        assert await self.netns.sysctl(ARP_IGNORE) == ("1" if ipv4 else "0")
        assert await self.operations() == []


@pytest.fixture
async def pool() -> AsyncIterator[NetnsPool]:
    found = NetnsPool()
    yield found
    found.close()


@contextmanager
def pod_at(directory: Path, ips: tuple[str, ...], mtu: int) -> Iterator[tuple[Path, PodNic]]:
    with testbed.namespace(directory, "node") as node, testbed.namespace(directory, "pod") as path:
        testbed.veth(path, NAMES.pod_interface, node, "veth0")
        testbed.ip(node, "link", "set", "veth0", "mtu", str(mtu))
        testbed.ip(path, "link", "set", NAMES.pod_interface, "mtu", str(mtu), "address", "3e:89:92:5a:b5:a7", "up")
        for ip in ips:
            testbed.ip(path, "address", "add", ip, "dev", NAMES.pod_interface, "nodad")
        record = PodNic(
            pod_uid=POD, sandbox_id="s", interface=NAMES.pod_interface, mac="3e:89:92:5a:b5:a7", mtu=mtu, ips=ips
        )
        yield path, record


DUAL = ("10.0.0.2/24", "fd00::2/64")


@pytest.mark.parametrize("ips", [(), ("10.0.0.2/24",), ("fd00::2/64",), DUAL], ids=["bare", "ipv4", "ipv6", "dual"])
@pytest.mark.parametrize("mtu", [1400, 9000])
async def test_the_pod_network_is_set_up(tmp_path: Path, pool: NetnsPool, ips: tuple[str, ...], mtu: int) -> None:
    with pod_at(tmp_path, ips, mtu) as (path, record):
        pod = Pod(path, await pool.open(str(path)), record)
        before = await pod.netns.link(NAMES.pod_interface)
        await pod.set_up()
        await pod.expect_set_up()
        after = await pod.netns.link(NAMES.bridged)
        assert before is not None
        assert after is not None
        assert before.index == after.index


async def test_a_tap_is_created_again_for_several_queues(tmp_path: Path, pool: NetnsPool) -> None:
    with pod_at(tmp_path, (), 1500) as (path, record):
        pod = Pod(path, await pool.open(str(path)), record)
        await pod.set_up()
        await pod.set_up(queues=2)
        tap = await pod.netns.link(NAMES.tap)
        assert tap is not None
        assert tap.multi_queue is True
        assert await pod.operations(queues=2) == []


async def test_frames_are_forwarded_between_the_bridge_and_the_node(tmp_path: Path, pool: NetnsPool) -> None:
    with pod_at(tmp_path, (), 1500) as (path, record):
        pod = Pod(path, await pool.open(str(path)), record)
        await pod.set_up()
        # In place of a guest: an address on the bridge itself, reached through the bridged pod interface.
        testbed.ip(path, "address", "add", "10.9.0.2/24", "dev", NAMES.bridge)
        node = tmp_path / "node"
        testbed.ip(node, "address", "add", "10.9.0.1/24", "dev", "veth0")
        testbed.ping(node, "10.9.0.2")


async def test_two_pod_networks_are_set_up_in_parallel_and_torn_down_independently(
    tmp_path: Path, pool: NetnsPool
) -> None:
    other = link_names("poddec0dec0de0")
    with pod_at(tmp_path, DUAL, 1500) as (path, record):
        testbed.veth(path, other.pod_interface, tmp_path / "node", "veth1")
        testbed.ip(path, "link", "set", other.pod_interface, "address", "3e:89:92:5a:b5:a8", "up")
        testbed.ip(path, "address", "add", "10.1.0.2/24", "dev", other.pod_interface)
        second = msgspec.structs.replace(
            record, interface=other.pod_interface, mac="3e:89:92:5a:b5:a8", ips=("10.1.0.2/24",)
        )
        netns = await pool.open(str(path))
        pods = [Pod(path, netns, record), Pod(path, netns, second, other, position=2)]
        await asyncio.gather(*(pod.set_up() for pod in pods))
        for pod in pods:
            await pod.expect_set_up()
        observed = await pods[0].observe()
        await apply_operations(netns, teardown_operations(observed, NAMES, record), INVALID_SPAN, restoring=True)
        # For the other guest, the pod must still not answer ARP requests for its address.
        await pods[1].expect_set_up()
        await apply_operations(
            netns, teardown_operations(await pods[0].observe(), other, second), INVALID_SPAN, restoring=True
        )
        assert {link.name for link in await netns.links()} == {"lo", NAMES.pod_interface, other.pod_interface}
        assert await netns.sysctl(ARP_IGNORE) == "0"


async def test_a_macvlan_in_passthru_mode_is_bridged(tmp_path: Path, pool: NetnsPool) -> None:
    with testbed.namespace(tmp_path, "node") as node, testbed.namespace(tmp_path, "pod") as path:
        testbed.veth(path, "master0", node, "veth0")
        testbed.ip(path, "link", "set", "master0", "up")
        testbed.ip(
            path, "link", "add", "link", "master0", "name", NAMES.pod_interface, "type", "macvlan", "mode", "passthru"
        )
        testbed.ip(path, "link", "set", NAMES.pod_interface, "up")
        netns = await pool.open(str(path))
        link = await netns.link(NAMES.pod_interface)
        assert link is not None
        assert not cannot_be_bridged(link)
        record = PodNic(pod_uid=POD, sandbox_id="s", interface=NAMES.pod_interface, mac=link.mac, mtu=1500)
        pod = Pod(path, netns, record)
        await pod.set_up()
        testbed.ip(path, "address", "add", "10.9.0.2/24", "dev", NAMES.bridge)
        testbed.ip(node, "address", "add", "10.9.0.1/24", "dev", "veth0")
        testbed.ping(node, "10.9.0.2")
        await apply_operations(
            netns, teardown_operations(await pod.observe(), NAMES, record), INVALID_SPAN, restoring=True
        )
        assert await netns.link(NAMES.pod_interface) == link
