"""A hot-plugged NIC in a real guest: MTU of the pod interface, a queue for each CPU, no carrier with the link down."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lab.guest.console import ConsoleFollower
from lab.guest.qemu import BootNic, GuestSpec, QemuGuest
from lab.tools import LabTools
from schemas.kubernetes.operations import PodNic, encode_annotation, pod_nic_key
from schemas.names import pod_interface
from services.common.domain.nic import link_names
from tests.support.guest import shell as guest_shell
from tests.support.guest.qemu import PRIMARY_MAC
from tests.support.node import netns as testbed
from tests.support.node.handler_node import MAC, SANDBOX, handler_node
from tests.support.observed.objects import POD_UID, VMI_UID

MTU = 9000
LINK = pod_interface("iface1")


@asynccontextmanager
async def two_cpus(folder: Path) -> AsyncIterator[None]:
    """Run the lab's guest with two CPUs in the pod's network namespace."""
    nics = [BootNic("default", PRIMARY_MAC)]
    spec = GuestSpec.with_tools(
        LabTools.find(), name="vm1", uid=VMI_UID, folder=folder / VMI_UID, nics=nics, ports=1, cores=2
    )
    guest = await QemuGuest.start(spec, launch=["nsenter", f"--net={folder / 'pod'}", "--"])
    try:
        await guest.wait_ready()
        yield
    finally:
        await guest.stop()


async def test_a_nic_with_jumbo_mtu_and_two_queues_and_its_link_down(tmp_path: Path) -> None:
    async with handler_node(two_cpus, scripted_agent=False) as node:
        node.attach_pod_nic("iface1")
        testbed.ip(node.folder / "node", "link", "set", f"v{LINK[3:11]}", "mtu", str(MTU))
        testbed.ip(node.netns, "link", "set", LINK, "mtu", str(MTU))
        record = PodNic(pod_uid=POD_UID, sandbox_id=SANDBOX, interface=LINK, mac=MAC, mtu=MTU)
        node.put_vmi("iface1", states={"iface1": "down"}, networkInterfaceMultiqueue=True)
        node.put_network_status("iface1", **{pod_nic_key("iface1"): encode_annotation(record)})
        guest = node.folder / VMI_UID
        async with ConsoleFollower(guest / "console.log") as console:
            link = await console.wait_for_link(MAC, timeout=45)
            assert link.mtu == MTU
            await console.wait_for(lambda event: getattr(event, "mac", None) == MAC and event.up is True, timeout=45)
            # On a busy host the guest may see a carrier for a moment, between QEMU's two commands.
            assert await _carrier_becomes(0, guest, link.name)
            code, queues = await asyncio.to_thread(guest_shell.run, guest, f"ls /sys/class/net/{link.name}/queues")
            assert (code, queues.split()) == (0, ["rx-0", "rx-1", "tx-0", "tx-1"])
            node.put_vmi("iface1", networkInterfaceMultiqueue=True)
            assert await _carrier_becomes(1, guest, link.name)
        (tap,) = json.loads(testbed.ip(node.netns, "-json", "-detail", "link", "show", link_names(LINK).tap))
        data = tap["linkinfo"]["info_data"]
        assert (tap["mtu"], data["numqueues"], data["numdisabled"]) == (MTU, 2, 0)


async def _carrier_becomes(wanted: int, guest: Path, link: str) -> bool:
    """Wait in the guest until its link has a carrier (1) or none (0); return whether it did in time."""
    loop = f"until [ $(cat /sys/class/net/{link}/carrier) = {wanted} ]; do sleep 0.1; done"
    code, _ = await asyncio.to_thread(guest_shell.run, guest, loop)
    return code == 0
