"""What the number of VMs of a cluster costs: latency of a plug, CPU and memory of the controller and the api, start.

HOTNIC_BENCH_VMS lists the sizes, and HOTNIC_BENCH_REST has the seconds at rest (180 for a figure to publish).
"""

import asyncio
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from services.common.reconcile import RESYNC_INTERVAL
from services.controller.resting import MEAN_REST
from tests.bench.measure import CpuIdle, cpu_time, percentile, rss
from tests.bench.scale import RunningRole, ScaledCluster, api_settings, handler_settings, scaled_cluster

SIZES = tuple(int(size) for size in os.environ.get("HOTNIC_BENCH_VMS", "100,1000,10000").split(","))
REST = float(os.environ.get("HOTNIC_BENCH_REST", "30"))
"""Seconds without a change. No rest ends in the first five minutes; what their ends cost is measured on its own."""
FIRST_RESYNC = 1.2 * RESYNC_INTERVAL
"""Seconds. The keys are spread over each period after the first one: from here on, "at rest" contains their looks."""
PLUGS = 20
RATE = 200
"""Changes a second that are no hot-plugs. If the API server makes fewer, the controller's share is scaled to it."""
BUSY = 20.0
"""Seconds of these changes."""
SETTLE = 5.0
"""Seconds from a handler's start until its memory is measured."""
GOALS = {
    "annotated_p50_ms": "<= 1.3 x smallest",
    "rest_core_percent": "<= 5",
    "controller_rss_mib": "<= 350",
    "api_rss_mib": "<= 80",
    "handler_rss_mib": "smallest +- 5",
    "beside_resync_core_percent": "<= 3",
    "beside_rest_core_percent": "<= 5",
    "beside_controller_rss_mib": "<= 350",
    "ready_s": "<= 20",
    "busy_core_percent": "<= 30",
    "busy_annotated_p50_ms": "<= 1.3 x without",
}


async def test_scale(record: Callable[[str, dict[str, Any]], None]) -> None:
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory(prefix="hotnic-bench-") as directory:
            async with scaled_cluster(Path(directory), size) as cluster:
                row = await measure(cluster)
        with tempfile.TemporaryDirectory(prefix="hotnic-bench-") as directory:
            async with scaled_cluster(Path(directory), size, beside=True) as cluster:
                rows.append(row | await measure_beside(cluster))
    print(f"\n{'':<24}" + "".join(f"{row['vms']:>10}" for row in rows) + "  goal")
    for name in rows[0]:
        print(f"{name:<24}" + "".join(f"{row[name]:>10}" for row in rows) + f"  {GOALS.get(name, '')}")
    record("scale", {"rest_seconds": REST, "changes_per_second": RATE, "sizes": rows})


async def measure(cluster: ScaledCluster) -> dict[str, float]:
    """Return the figures of a cluster of this size."""
    async with cluster.role("controller") as controller, cluster.role("api", **api_settings(cluster)) as api:
        ready = controller.seconds
        await controller.idle()
        await asyncio.sleep(FIRST_RESYNC)
        idle = CpuIdle()
        rest = await core_percent(controller, REST)
        result: dict[str, float] = {"vms": cluster.vms, "ready_s": round(ready, 1), "rest_core_percent": rest}
        names = vm_names(cluster.vms)
        await cluster.plug(next(names), request=True)
        edits = [await cluster.plug(next(names)) for _ in range(PLUGS)]
        requests = [await cluster.plug(next(names), request=True) for _ in range(PLUGS)]
        result |= times("edited", [answered for answered, _ in edits])
        result |= times("annotated", [annotated for _, annotated in edits])
        result |= times("answered", [answered for answered, _ in requests])
        async with cluster.changing(RATE) as made:
            await asyncio.sleep(2)
            began = made[0]
            taken = await core_percent(controller, BUSY)
            rate = (made[0] - began) / BUSY
            busy = [await cluster.plug(next(names)) for _ in range(PLUGS)]
        # What the controller takes is proportional to the changes.
        result |= {"busy_core_percent": round(taken * RATE / rate, 2), "busy_changes_per_s": round(rate)}
        result |= times("busy_edited", [answered for answered, _ in busy])
        result |= times("busy_annotated", [annotated for _, annotated in busy])
        async with cluster.role("handler", **handler_settings(cluster)) as handler:
            await asyncio.sleep(SETTLE)
            result["handler_rss_mib"] = round(rss(handler.pid), 1)
        result["controller_rss_mib"] = round(rss(controller.pid), 1)
        result["api_rss_mib"] = round(rss(api.pid), 1)
        result["cpu_idle"] = round(idle.share(), 2)
    return result


async def measure_beside(cluster: ScaledCluster) -> dict[str, float]:
    """Return the figures of a controller at rest beside KubeVirt."""
    async with cluster.role("controller") as controller:
        await controller.idle()
        await asyncio.sleep(FIRST_RESYNC)
        rest = await core_percent(controller, REST)
        result = {"beside_rest_core_percent": rest, "beside_controller_rss_mib": round(rss(controller.pid), 1)}
    # Rests that end at once: each VM is looked at in each pass, and so as often as it costs without any rest.
    async with cluster.role("controller", HOTNIC_REST_SECONDS="1") as controller:
        await controller.idle()
        await asyncio.sleep(FIRST_RESYNC)
        taken = await core_percent(controller, RESYNC_INTERVAL)
    return result | {"beside_resync_core_percent": round(taken * RESYNC_INTERVAL / MEAN_REST, 2)}


async def core_percent(role: RunningRole, seconds: float) -> float:
    """Return the share of a core that a role takes for some seconds."""
    before = cpu_time(role.pid)
    await asyncio.sleep(seconds)
    return round((cpu_time(role.pid) - before) / seconds / 10, 2)


def times(name: str, seconds: list[float]) -> dict[str, float]:
    """Return median and 95th percentile in milliseconds."""
    return {f"{name}_p{percent}_ms": round(1000 * percentile(seconds, percent), 1) for percent in (50, 95)}


def vm_names(count: int) -> Iterator[str]:
    """Yield names of VMs, spread over the cluster; without an end."""
    return (f"vm{(number * 37) % count}" for number in itertools.count())
