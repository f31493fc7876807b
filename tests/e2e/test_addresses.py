"""Real guests get the addresses that IPAM assigned by DHCP and DHCPv6, and reach each other at these addresses."""

import asyncio
import json
import re
import time
from dataclasses import dataclass
from ipaddress import ip_interface

import pytest

from lab.cli import commands
from lab.guest.console import AddressEvent, ConsoleFollower, GuestEvent, Ready
from schemas.kubernetes.operations import PodNic, pod_nic_key, read_pod_nic
from services.common.domain.status_interfaces import find_entry
from services.handler.pod_network.setup import bridge_address
from tests.support.guest import shell as guest_shell
from tests.support.lab.process import DEADLINE
from tests.support.lab.running import Lab, wait_until

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


class GuestNic:
    """A NIC of a guest with its pod NIC record.

    :ivar link: name of the link in the guest, once it is known.
    """

    def __init__(self, lab: Lab, vm: str, interface: str, record: PodNic) -> None:
        vmi = lab.vmi(vm)
        self.lab, self.vm, self.interface, self.record = lab, vm, interface, record
        self.folder = lab.layout.guests / vmi.metadata.uid
        self.ips = [str(ip_interface(ip).ip) for ip in record.ips]
        self.link = ""

    def server(self) -> str:
        """Return the address of the NIC's DHCP server, which depends on the other NICs that the VM has."""
        interfaces = self.lab.vmi(self.vm).spec.domain.devices.interfaces or []
        position = [one["name"] for one in interfaces].index(self.interface)
        return str(ip_interface(bridge_address(position)).ip)

    def follower(self) -> ConsoleFollower:
        """Return a follower of the guest's console, from its beginning."""
        return self.lab.console(self.lab.vmi(self.vm))

    async def configured(self, console: ConsoleFollower, since: int = 0) -> list[AddressEvent]:
        """Wait until the guest has every recorded address, and return the events of its DHCP clients and kernel."""
        link = await console.wait_for_link(self.record.mac, timeout=45, since=since)
        self.link, begin = link.name, console.events.index(link)
        found = [await self.wait_for_address(console, ip, "bound", begin) for ip in self.ips]
        # Addresses come by DHCPv6 and routes by router advertisements, neither of which waits for the other.
        await asyncio.to_thread(wait_until, lambda: set(self.next_hops()) == {"default", "fd97::/64"})
        return found

    def next_hops(self) -> dict[str, str]:
        """Return the routers of the guest's IPv6 routes by destination."""
        routes = self.shell("ip -6 route")
        return dict(re.findall(rf"^(default|fd97::/64) via (fe80::\S+) dev {self.link} ", routes, re.MULTILINE))

    async def wait_for_address(self, console: ConsoleFollower, ip: str, action: str, since: int) -> AddressEvent:
        """Wait for the guest's event about an address."""

        def wanted(event: GuestEvent) -> bool:
            return (
                isinstance(event, AddressEvent)
                and (event.name, event.action) == (self.link, action)
                and (event.address or "").split("/")[0] == ip
            )

        found = await console.wait_for(wanted, timeout=45, since=since)
        assert isinstance(found, AddressEvent)
        return found

    def shell(self, command: str) -> str:
        """Run a command in the guest, which must succeed, and return its output."""
        code, output = guest_shell.run(self.folder, command)
        assert code == 0, f"{command}: {output}"
        return output

    async def pings(self, *ips: str) -> None:
        """Ping these addresses, each of which must reply."""
        for ip in ips:
            # The first packet may be lost while the neighbour's MAC is resolved.
            await asyncio.to_thread(self.shell, f"ping -c 1 -W 3 {ip} || ping -c 3 -W 5 {ip}")

    def wait_for_status(self) -> None:
        """Wait until the VMI's status has the guest's addresses, which the guest agent reports."""
        deadline = time.monotonic() + 30
        while True:
            entry = find_entry(self.lab.vmi(self.vm).status.interfaces, self.interface) or {}
            if set(self.ips) <= set(entry.get("ipAddresses", ())):
                assert entry["ipAddress"] == self.ips[0]
                return
            assert time.monotonic() < deadline, entry
            time.sleep(0.2)


@dataclass
class Pair:
    """Two NICs on one network."""

    one: GuestNic
    two: GuestNic

    async def ping_each_other(self) -> None:
        """Ping every address of the other one, in both directions at once."""
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


def plug(lab: Lab, vm: str, interface: str, network: str) -> GuestNic:
    done = lab.hotnic(
        "addinterface", vm, "--name", interface, "--network-attachment-definition-name", network, "--wait"
    )
    assert done.returncode == 0, done.stderr
    record = read_pod_nic(lab.pod(lab.vmi(vm)).metadata.annotations, pod_nic_key(interface))
    assert record is not None
    return GuestNic(lab, vm, interface, record)


@pytest.fixture(scope="module")
def nics(lab: Lab, network: str) -> Pair:
    """A NIC of each of two guests on the network, with its addresses."""
    vms = (lab.take_slot(), lab.take_slot(empty=True))
    name = lab.interface_name()
    pair = Pair(*(plug(lab, vm, name, network) for vm in vms))

    async def configured() -> None:
        async with pair.one.follower() as one, pair.two.follower() as two:
            await asyncio.gather(pair.one.configured(one), pair.two.configured(two))

    asyncio.run(configured())
    return pair


async def test_two_guests_reach_each_other_at_the_addresses_of_ipam(lab: Lab, nics: Pair) -> None:
    await nics.ping_each_other()
    # Other networks are reached by the router, of which IPAM has a global address only.
    lab.hotnic("lab", "exec", "--", "ip", "address", "add", "fd99::1/128", "dev", "lo")
    await nics.one.pings("fd99::1")


async def test_guest_has_routes_and_name_servers_and_status_has_addresses(nics: Pair) -> None:
    one = nics.one
    async with one.follower() as console:
        lease, *_ = await one.configured(console)
    assert (lease.address, lease.router, lease.server) == (one.record.ips[0], "10.78.0.1", one.server())
    routes = one.shell("ip route")
    assert f"10.99.0.0/16 via 10.78.0.7 dev {one.link}" in routes
    assert f"default via 10.78.0.1 dev {one.link}" in routes
    routes = one.shell("ip -6 route")
    assert f"fd78::/64 dev {one.link}" in routes
    gateways = one.next_hops()
    assert set(gateways) == {"default", "fd97::/64"}
    assert gateways["default"] != gateways["fd97::/64"], "each next hop has its own alias"
    assert "search corp.example\nnameserver 10.78.0.53" in one.shell("cat /etc/resolv.conf")
    one.wait_for_status()


async def test_guests_reach_each_other_after_an_unplug_and_a_plug_of_the_same_name(
    lab: Lab, network: str, nics: Pair
) -> None:
    old = nics.one
    done = lab.hotnic("removeinterface", old.vm, "--name", old.interface, "--wait")
    assert done.returncode == 0, done.stderr
    async with old.follower() as console:
        mark = len(console.events)
        nics.one = plug(lab, old.vm, old.interface, network)
        await nics.one.configured(console, mark)
    await nics.ping_each_other()


async def test_lease_is_renewed_after_a_restart_of_the_handler(lab: Lab, nics: Pair) -> None:
    one = nics.one
    assert commands.restart(lab.layout.dir, "handler") == 0
    async with one.follower() as console:
        mark = len(console.events)
        one.shell(f"kill -USR1 $(cat /tmp/udhcpc.{one.link})")
        renewed = await one.wait_for_address(console, one.ips[0], "renew", mark)
    assert (renewed.address, renewed.server) == (one.record.ips[0], one.server())


@pytest.mark.timeout(300)
async def test_guest_has_the_same_addresses_after_a_reboot(nics: Pair) -> None:
    one = nics.one
    async with one.follower() as console:
        mark = len(console.events)
        one.shell("{ (sleep 0.2; reboot -f) & }")
        # An emulated guest boots with the CPU time that others leave.
        await console.wait_for(lambda event: isinstance(event, Ready), timeout=DEADLINE, since=mark)
        await one.configured(console, mark)
    await nics.ping_each_other()
    one.wait_for_status()
