"""Plugs per second that reach ``multus-attached`` if 20 are requested at once, five on each of four VMs."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lab.layout import GuestKind
from tests.bench.measure import CpuIdle, cpu_time, end_of, first, medians, percentile, pids
from tests.bench.vms import SentRequest, Vms, running_vms

VMS, EACH = 4, 5
ROUNDS = 6
"""The first one is a warm-up and does not count."""
STAGES = {
    "requested": ("hotnic-api", "kube patch virtualmachineinstances"),
    "pod-annotated": ("hotnic-controller", "kube patch pods"),
    "multus-attached": ("hotnic-networks", "kube patch pods/status"),
    "guest-attached": ("hotnic-handler", "kube patch virtualmachineinstances"),
}
"""The stages, each with the write that completes it."""


@pytest.mark.parametrize("guests", ["qemu", "double"])
async def test_plugs_at_once(record: Callable[[str, dict[str, Any]], None], guests: GuestKind) -> None:
    """Emulated guests use more CPU time for a new device than all roles together; doubles use none."""
    async with running_vms(VMS, guests=guests) as vms:
        rounds = []
        # QEMU has an option -m, too; its value is a number.
        running = {name: pid for name, pid in pids(str(vms.lab.layout.dir)).items() if name[0].isalpha()}
        for number in range(ROUNDS):
            before = {name: cpu_time(pid) for name, pid in running.items()}
            rounds.append(await plug_all(vms, number))
            rounds[-1]["cpu"] = {name: (cpu_time(pid) - before[name]) / (VMS * EACH) for name, pid in running.items()}
            await unplug_all(vms, number)
    counted = rounds[1:]
    result = {
        "plugs_at_once": VMS * EACH,
        "vms": VMS,
        "guests": guests,
        "rounds": len(counted),
        "cpu_idle_before": round(percentile([row["idle_before"] for row in counted], 50), 2),
        "cpu_idle_during": round(percentile([row["idle_during"] for row in counted], 50), 2),
        "per_second": {
            stage: round(VMS * EACH / seconds, 1)
            for stage, seconds in medians([row["seconds"] for row in counted]).items()
        },
        "cpu_ms_per_plug": {
            name: round(value, 1) for name, value in sorted(medians([row["cpu"] for row in counted]).items())
        },
        "slowest_round_per_second": round(VMS * EACH / max(row["seconds"]["multus-attached"] for row in counted), 1),
    }
    print(f"\n{VMS * EACH} plugs on {VMS} VMs ({guests}) at once, median of {len(counted)} rounds; all reach")
    for stage, rate in result["per_second"].items():
        print(f"  {stage:<18}{rate:6.1f} per second")
    print(
        f"the slowest round: {result['slowest_round_per_second']} per second at multus-attached; "
        f"CPU idle {result['cpu_idle_before']:.0%} before, {result['cpu_idle_during']:.0%} during it"
    )
    print("CPU time of one plug, including the plugins, in ms:")
    for name, value in result["cpu_ms_per_plug"].items():
        print(f"  {name:<18}{value:6.1f}")
    record(f"plugs-at-once-{guests}", result)


async def plug_all(vms: Vms, number: int) -> dict[str, Any]:
    """Plug all at once; return the seconds from the first request until the last plug reached each stage."""
    before = CpuIdle()
    await asyncio.sleep(2)
    idle_before, during = before.share(), CpuIdle()
    plugs = [(vm, f"r{number}n{i}") for i in range(EACH) for vm in vms.names]
    requests = await asyncio.gather(*(vms.plug(vm, name) for vm, name in plugs))
    for vm in vms.names:
        await vms.until_links(vm, EACH)
    idle_during = during.share()
    began = min(one.at for one in requests)
    reached = await asyncio.gather(*(times(vms, one) for one in requests))
    return {
        "idle_before": idle_before,
        "idle_during": idle_during,
        "seconds": {stage: max(row[stage] for row in reached) - began for stage in STAGES},
    }


async def times(vms: Vms, request: SentRequest) -> dict[str, float]:
    """Return the time of each stage of one plug, in seconds since the epoch."""
    spans = await vms.spans(request, {"send hotplug.guest-attached"})
    found = {}
    for stage, (service, name) in STAGES.items():
        span = first(spans, service, name)
        if span is None:
            # One patch served several operations and is in another one's trace: use the event's span.
            span = first(spans, service, f"send hotplug.{stage}")
        assert span is not None, f"{stage}: {sorted(span['name'] for span in spans)}"
        found[stage] = end_of(span) / 1000
    return found


async def unplug_all(vms: Vms, number: int) -> None:
    """Unplug all."""
    await asyncio.gather(*(vms.unplug(vm, f"r{number}n{i}") for i in range(EACH) for vm in vms.names))
    for vm in vms.names:
        await vms.until_links(vm, 0)
