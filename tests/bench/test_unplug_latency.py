"""Duration of an unplug: PUT ``removeinterface``, unplug by the guest, teardown of the pod network, CNI DEL."""

from collections.abc import Callable
from typing import Any

from lab.guest.console import LinkEvent
from tests.bench.measure import (
    UNPLUG_HOPS,
    UNPLUG_PARTS,
    CpuIdle,
    end_of,
    first,
    hops,
    parts,
    percentile,
    show,
    summary,
)
from tests.bench.vms import Vms, running_vms

UNPLUGS = 20
WARM_UP = 2


async def test_unplug_latency(record: Callable[[str, dict[str, Any]], None]) -> None:
    async with running_vms(2) as vms:
        for i in range(WARM_UP):
            await unplug(vms, vms.names[i % len(vms.names)], f"warm{i}")
        idle = CpuIdle()
        rows = [await unplug(vms, vms.names[i % len(vms.names)], f"bench{i}") for i in range(UNPLUGS)]
        idle_share = idle.share()
    result = summary(rows, len(vms.names), idle_share)
    result["guest_reports_p50_ms"] = round(percentile([row["reported"] for row in rows], 50), 1)
    show("PUT removeinterface -> device gone from the guest -> CNI DEL done", result)
    print(f"the guest reports the removed link after {result['guest_reports_p50_ms']} ms (p50)")
    record("unplug-latency", result)


async def unplug(vms: Vms, vm: str, interface: str) -> dict[str, Any]:
    """Plug an interface, then unplug it; return the duration of the unplug, in total and by hop."""
    request = await vms.plug(vm, interface)
    await vms.spans(request, {"send hotplug.guest-attached", "guest confirm"})
    await vms.until_links(vm, 1)
    async with await vms.console(vm) as console:
        known = len(console.events)
        request = await vms.unplug(vm, interface)
        event = await console.wait_for(lambda e: isinstance(e, LinkEvent) and e.action == "remove", 20, since=known)
    spans = await vms.spans(request, {"send hotplug.multus-detached", "cni DEL"})
    gone = first(spans, "hotnic-multus", "cni DEL")
    assert gone is not None
    await vms.until_links(vm, 0)
    return {
        "ms": end_of(gone) - request.at * 1000,
        "reported": (event.arrived_at - request.at) * 1000,
        "hops": hops(spans, request.at, UNPLUG_HOPS),
        "parts": parts(spans, UNPLUG_PARTS),
    }
