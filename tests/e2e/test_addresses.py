"""Real guests get by DHCP and DHCPv6 the addresses that IPAM chose for their cards, and reach each other by them."""

import asyncio
import json
import re
import time
from dataclasses import dataclass
from ipaddress import ip_interface

import pytest

from schemas.operations import PodNic, pod_nic_key, pod_nic_of
from services.common.domain.status_interfaces import entry_of
from services.lab import commands
from services.lab.guest.console import AddressEvent, ConsoleFollower, GuestEvent, Ready
from tests.support import guest_shell
from tests.support.lab import Lab

NAD = "dual-net"
CONFIG = {
    "cniVersion": "1.0.0",
    "name": NAD,
    "type": "bridge",
    "bridge": "hotnic-br2",
    "isGateway": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.78.0.0/24"}], [{"subnet": "fd78::/64"}]],
        "routes": [
            {"dst": "0.0.0.0/0"},
            {"dst": "::/0"},
            {"dst": "10.99.0.0/16", "gw": "10.78.0.7"},
            {"dst": "fd97::/64", "gw": "fd78::7"},
        ],
    },
    "dns": {"nameservers": ["10.78.0.53"], "search": ["corp.example"]},
}


class Card:
    """A card of a guest: what was recorded of it, and what the guest says of it."""

    def __init__(self, lab: Lab, vm: str, interface: str, record: PodNic) -> None:
        vmi = lab.vmi(vm)
        self.lab, self.vm, self.interface, self.record = lab, vm, interface, record
        self.folder = lab.layout.guests / vmi.metadata.uid
        self.ips = [str(ip_interface(ip).ip) for ip in record.ips]
        self.link = ""

    def follower(self) -> ConsoleFollower:
        """A follower of the guest's console, from its beginning."""
        return self.lab.console(self.lab.vmi(self.vm))

    async def configured(self, console: ConsoleFollower, since: int = 0) -> list[AddressEvent]:
        """What the guest's clients and kernel say once it has every address that was recorded."""
        link = await console.wait_for_link(self.record.mac, timeout=20, since=since)
        self.link, begin = link.name, console.events.index(link)
        return [await self.told(console, ip, "bound", begin) for ip in self.ips]

    async def told(self, console: ConsoleFollower, ip: str, action: str, since: int) -> AddressEvent:
        """The guest's word about one address."""

        def wanted(event: GuestEvent) -> bool:
            return (
                isinstance(event, AddressEvent)
                and (event.name, event.action) == (self.link, action)
                and (event.address or "").split("/")[0] == ip
            )

        found = await console.wait_for(wanted, timeout=20, since=since)
        assert isinstance(found, AddressEvent)
        return found

    def shell(self, command: str) -> str:
        """Run a command in the guest, which has to succeed."""
        code, output = guest_shell.run(self.folder, command)
        assert code == 0, f"{command}: {output}"
        return output

    async def pings(self, *ips: str) -> None:
        """Reach these addresses."""
        for ip in ips:
            # The first packet may wait for the neighbour's MAC longer than its own patience.
            await asyncio.to_thread(self.shell, f"ping -c 1 -W 3 {ip} || ping -c 3 -W 5 {ip}")

    def until_status_shows(self) -> None:
        """Wait until the VMI's status has the guest's addresses, as its agent tells them."""
        deadline = time.monotonic() + 15
        while True:
            entry = entry_of(self.lab.vmi(self.vm).status.interfaces, self.interface) or {}
            if set(self.ips) <= set(entry.get("ipAddresses", ())):
                assert entry["ipAddress"] == self.ips[0]
                return
            assert time.monotonic() < deadline, entry
            time.sleep(0.2)


@dataclass
class Pair:
    """Two cards on one network."""

    one: Card
    two: Card

    async def ping_each_other(self) -> None:
        """By every address, both ways at once."""
        await asyncio.gather(self.one.pings(*self.two.ips), self.two.pings(*self.one.ips))


@pytest.fixture(scope="module")
def network(lab: Lab) -> str:
    """A bridge network with a range of each family, routes and a name server."""
    nad = {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": NAD, "namespace": "default"},
        "spec": {"config": json.dumps(CONFIG)},
    }
    lab.kubectl("apply", "-f", "-", stdin=json.dumps(nad))
    return NAD


def plug(lab: Lab, vm: str, interface: str, network: str) -> Card:
    done = lab.hotnic(
        "addinterface", vm, "--name", interface, "--network-attachment-definition-name", network, "--wait"
    )
    assert done.returncode == 0, done.stderr
    record = pod_nic_of(lab.pod(lab.vmi(vm)).metadata.annotations, pod_nic_key(interface))
    assert record is not None
    return Card(lab, vm, interface, record)


@pytest.fixture(scope="module")
def cards(lab: Lab, network: str) -> Pair:
    """A card of each of two guests on that network, with its addresses."""
    vms = (lab.vm_with_a_slot(), lab.vm_with_a_slot(empty=True))
    name = lab.interface_name()
    pair = Pair(*(plug(lab, vm, name, network) for vm in vms))

    async def configured() -> None:
        async with pair.one.follower() as one, pair.two.follower() as two:
            await asyncio.gather(pair.one.configured(one), pair.two.configured(two))

    asyncio.run(configured())
    return pair


async def test_two_guests_reach_each_other_by_the_addresses_that_ipam_chose(lab: Lab, cards: Pair) -> None:
    await cards.ping_each_other()
    # Beyond its own network a guest goes by the router, of which IPAM knows only a global address.
    lab.hotnic("lab", "exec", "--", "ip", "address", "add", "fd99::1/128", "dev", "lo")
    await cards.one.pings("fd99::1")


async def test_a_guest_has_the_routes_and_name_servers_of_the_network_and_its_status_the_addresses(cards: Pair) -> None:
    one = cards.one
    async with one.follower() as console:
        lease, *_ = await one.configured(console)
    assert (lease.address, lease.router, lease.server) == (one.record.ips[0], "10.78.0.1", "169.254.75.11")
    routes = one.shell("ip route")
    assert f"10.99.0.0/16 via 10.78.0.7 dev {one.link}" in routes
    assert f"default via 10.78.0.1 dev {one.link}" in routes
    routes = one.shell("ip -6 route")
    assert f"fd78::/64 dev {one.link}" in routes
    ways = dict(re.findall(rf"^(default|fd97::/64) via (fe80::\S+) dev {one.link} ", routes, re.MULTILINE))
    assert set(ways) == {"default", "fd97::/64"}
    assert ways["default"] != ways["fd97::/64"], "each next hop has an alias of its own"
    assert "search corp.example\nnameserver 10.78.0.53" in one.shell("cat /etc/resolv.conf")
    one.until_status_shows()


async def test_they_do_so_again_after_an_unplug_and_a_plug_of_the_same_name(
    lab: Lab, network: str, cards: Pair
) -> None:
    old = cards.one
    done = lab.hotnic("removeinterface", old.vm, "--name", old.interface, "--wait")
    assert done.returncode == 0, done.stderr
    async with old.follower() as console:
        mark = len(console.events)
        cards.one = plug(lab, old.vm, old.interface, network)
        await cards.one.configured(console, mark)
    await cards.ping_each_other()


async def test_a_lease_is_renewed_by_a_handler_that_has_just_started(lab: Lab, cards: Pair) -> None:
    one = cards.one
    assert commands.restart(lab.layout.dir, "handler") == 0
    async with one.follower() as console:
        mark = len(console.events)
        one.shell(f"kill -USR1 $(cat /tmp/udhcpc.{one.link})")
        renewed = await one.told(console, one.ips[0], "renew", mark)
    assert (renewed.address, renewed.server) == (one.record.ips[0], "169.254.75.11")


async def test_a_guest_that_reboots_gets_the_same_addresses(cards: Pair) -> None:
    one = cards.one
    async with one.follower() as console:
        mark = len(console.events)
        one.shell("{ (sleep 0.2; reboot -f) & }")
        await console.wait_for(lambda event: isinstance(event, Ready), timeout=40, since=mark)
        await one.configured(console, mark)
    await cards.ping_each_other()
    one.until_status_shows()
