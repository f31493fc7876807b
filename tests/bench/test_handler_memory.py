"""Memory of the handler on a full node: 100 NICs on 25 guests that support QMP, every lease acquired and renewed once.

The guests are the lab's doubles. Everything else is the lab's: sandboxes, plugins, bus, traces, and the handler.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from schemas.names import tap
from services.common.domain.status_interfaces import find_entry
from services.handler.addresses.dhcp.dhcp4 import Dhcp4MessageType
from tests.bench.measure import import_floor, pids, rss
from tests.bench.vms import Vms, running_vms
from tests.support.guest.end import DhcpClient, borrowed_taps, guest_process

GUESTS, EACH = 25, 4


async def test_handler_memory(record: Callable[[str, dict[str, Any]], None]) -> None:
    async with running_vms(GUESTS, guests="double") as vms:
        handler = pids(str(vms.lab.layout.dir))["handler"]
        before = rss(handler)
        began = time.monotonic()
        for number in range(EACH):
            await asyncio.gather(*(vms.plug(vm, f"nic{number}") for vm in vms.names))
            for vm in vms.names:
                await vms.until_links(vm, number + 1)
        plugged, seconds = rss(handler), time.monotonic() - began
        leases = 0
        for vm in vms.names:
            leases += await renew_leases(vms, vm)
        served = rss(handler)
    assert leases == GUESTS * EACH
    result = {
        "guests": GUESTS,
        "nics": GUESTS * EACH,
        "leases_taken_and_renewed": leases,
        "seconds_to_plug": round(seconds, 1),
        "rss_mib": round(served, 1),
        "rss_before_the_nics_mib": round(before, 1),
        "rss_before_the_leases_mib": round(plugged, 1),
        "import_floor_mib": round(import_floor("services.handler.__main__"), 1),
    }
    print(
        f"\nhandler with {GUESTS * EACH} NICs on {GUESTS} guests, {leases} leases acquired and renewed: "
        f"{result['rss_mib']} MiB ({result['rss_before_the_nics_mib']} before the NICs, "
        f"{result['rss_before_the_leases_mib']} before the leases, imports {result['import_floor_mib']})"
    )
    record("handler-memory", result)


async def renew_leases(vms: Vms, vm: str) -> int:
    """Acquire and renew a lease on every NIC of a guest; return the number of leases."""
    vmi = await vms.vmi(vm)
    macs = {}
    for number in range(EACH):
        entry = find_entry(vmi.status.interfaces, f"nic{number}")
        assert entry is not None
        macs[tap(f"nic{number}")] = str(entry["mac"])
    clients = [DhcpClient(fd, macs[name]) for name, fd in borrowed_taps(guest_process(vmi.metadata.uid))]
    try:
        async with asyncio.timeout(20):
            leases = await asyncio.gather(*(client.lease() for client in clients))
            renewed = await asyncio.gather(
                *(client.renew(lease) for client, lease in zip(clients, leases, strict=True))
            )
    finally:
        for client in clients:
            client.close()
    assert all(one.message_type == Dhcp4MessageType.ACK for one in (*leases, *renewed))
    assert [one.yiaddr for one in renewed] == [one.yiaddr for one in leases]
    return len(renewed)
