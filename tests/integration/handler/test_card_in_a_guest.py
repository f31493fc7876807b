"""What a real guest finds of a card: the MTU of the pod NIC, a queue for each processor, no carrier where none is."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from schemas.names import pod_interface
from schemas.operations import PodNic, encode, pod_nic_key
from services.handler.pod_network import link_names
from services.lab.guest.console import ConsoleFollower
from services.lab.guest.qemu import BootNic, Guest, GuestSpec
from services.lab.tools import Tools
from tests.support import guest_shell
from tests.support import netns as testbed
from tests.support.handler_node import MAC, SANDBOX, handler_node
from tests.support.objects import POD_UID, VMI_UID
from tests.support.qemu import PRIMARY_MAC

MTU = 9000
LINK = pod_interface("iface1")


@asynccontextmanager
async def two_processors(folder: Path) -> AsyncIterator[None]:
    """The lab's guest in the pod's network namespace."""
    nics = [BootNic("default", PRIMARY_MAC)]
    spec = GuestSpec.with_tools(
        Tools.find(), name="vm1", uid=VMI_UID, folder=folder / VMI_UID, nics=nics, ports=1, cores=2
    )
    guest = await Guest.start(spec, launch=["nsenter", f"--net={folder / 'pod'}", "--"])
    try:
        await guest.wait_ready()
        yield
    finally:
        await guest.stop()


async def test_a_jumbo_card_of_two_queues_without_a_carrier(tmp_path: Path) -> None:
    async with handler_node(two_processors, scripted_agent=False) as node:
        node.attach_pod_nic("iface1")
        testbed.ip(node.folder / "node", "link", "set", f"v{LINK[3:11]}", "mtu", str(MTU))
        testbed.ip(node.netns, "link", "set", LINK, "mtu", str(MTU))
        record = PodNic(pod_uid=POD_UID, sandbox_id=SANDBOX, interface=LINK, mac=MAC, mtu=MTU)
        node.wish("iface1", states={"iface1": "down"}, networkInterfaceMultiqueue=True)
        node.show_network_status("iface1", **{pod_nic_key("iface1"): encode(record)})
        guest = node.folder / VMI_UID
        async with ConsoleFollower(guest / "console.log") as console:
            link = await console.wait_for_link(MAC, timeout=20)
            assert link.mtu == MTU
            await console.wait_for(lambda event: getattr(event, "mac", None) == MAC and event.up is True, timeout=10)
            # A busy host may show the guest a carrier for a moment, between QEMU's two commands; it does not last.
            assert await _carrier_becomes(0, guest, link.name)
            code, queues = await asyncio.to_thread(guest_shell.run, guest, f"ls /sys/class/net/{link.name}/queues")
            assert (code, queues.split()) == (0, ["rx-0", "rx-1", "tx-0", "tx-1"])
            node.wish("iface1", networkInterfaceMultiqueue=True)
            assert await _carrier_becomes(1, guest, link.name)
        (tap,) = json.loads(testbed.ip(node.netns, "-json", "-detail", "link", "show", link_names(LINK).tap))
        data = tap["linkinfo"]["info_data"]
        assert (tap["mtu"], data["numqueues"], data["numdisabled"]) == (MTU, 2, 0)


async def _carrier_becomes(wanted: int, guest: Path, link: str) -> bool:
    """Wait, in the guest, until its link has a carrier (1) or none (0)."""
    loop = f"until [ $(cat /sys/class/net/{link}/carrier) = {wanted} ]; do sleep 0.1; done"
    code, _ = await asyncio.to_thread(guest_shell.run, guest, loop, timeout=10)
    return code == 0
