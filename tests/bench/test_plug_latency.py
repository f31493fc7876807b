"""Duration of a plug from the PUT to the guest's own report, hop by hop, and memory of every role."""

from collections.abc import Callable
from typing import Any

from lab.guest.console import LinkEvent
from lab.layout import ROLES
from tests.bench.measure import (
    PLUG_HOPS,
    PLUG_PARTS,
    CpuIdle,
    end_of,
    first,
    hops,
    import_floor,
    parts,
    pids,
    rss,
    show,
    summary,
)
from tests.bench.vms import Vms, running_vms

PLUGS = 20
WARM_UP = 2


async def test_plug_latency(record: Callable[[str, dict[str, Any]], None]) -> None:
    async with running_vms(3) as vms:
        for i in range(WARM_UP):
            await plug(vms, vms.names[i % len(vms.names)], f"warm{i}")
        idle = CpuIdle()
        rows = [await plug(vms, vms.names[i % len(vms.names)], f"bench{i}") for i in range(PLUGS)]
        idle_share = idle.share()
        memory = {
            role: {"rss": round(rss(pid), 1), "import_floor": round(import_floor(f"services.{role}.__main__"), 1)}
            for role, pid in pids(str(vms.lab.layout.dir)).items()
            if role in ROLES
        }
    result = summary(rows, len(vms.names), idle_share) | {"memory_mib": memory}
    show("PUT addinterface -> the guest reports the NIC", result)
    print("memory:                    RSS   import floor")
    for role, figures in memory.items():
        print(f"  {role:<18}{figures['rss']:8.1f} {figures['import_floor']:10.1f} MiB")
    record("plug-latency", result)


async def plug(vms: Vms, vm: str, interface: str) -> dict[str, Any]:
    """Plug one interface; return the duration, in total and by hop."""
    async with await vms.console(vm) as console:
        known = len(console.events)
        request = await vms.plug(vm, interface)
        event = await console.wait_for(lambda e: isinstance(e, LinkEvent) and e.action == "add", 20, since=known)
    spans = await vms.spans(request, {"send hotplug.guest-attached", "guest confirm"})
    device_add = first(spans, "hotnic-handler", "qmp device_add")
    assert device_add is not None
    reported = event.arrived_at * 1000
    return {
        "ms": reported - request.at * 1000,
        "hops": hops(spans, request.at, PLUG_HOPS) | {"guest": reported - end_of(device_add)},
        "parts": parts(spans, PLUG_PARTS),
    }
