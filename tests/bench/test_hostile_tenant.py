"""Plugs and unplugs of a tenant: alone, beside a hostile tenant for a minute, alone again; and what that one leaves."""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.measure import CpuIdle, cpu_time, percentile, pids
from tests.support.hostile.beside import hostile_tenant
from tests.support.hostile.remains import nothing_left, take
from tests.support.lab.running import SAMPLE_VM, running_lab
from tests.support.lab.timed_plugs import TimedPlugs, timed_plugs

SECONDS = 60.0
ALONE = 25
"""Plugs in each of the quiet turns."""
WARM_UP = 3
PAUSE = 0.2
"""Seconds between two operations."""

Times = dict[str, list[float]]


async def test_hostile_tenant(record: Callable[[str, dict[str, Any]], None]) -> None:
    seed = os.environ.get("HOTNIC_TEST_SEED") or os.urandom(4).hex()
    with (
        tempfile.TemporaryDirectory(prefix="hotnic-bench-") as directory,
        running_lab(Path(directory), guests="double") as lab,
    ):
        async with timed_plugs(lab.layout.kubeconfig, SAMPLE_VM) as plugs:
            await alone(plugs, WARM_UP)
            before = await take(lab)
            # The runtime's plugins and shims are short-lived; their time is that of the process that has reaped them.
            running = pids(str(lab.layout.dir))
            turns = {"quiet": await turn(alone(plugs, ALONE), running)}
            async with hostile_tenant(lab, SECONDS, seed=seed) as tenant:
                attack = asyncio.create_task(tenant.attack())
                turns["hostile"] = await turn(beside(plugs, attack), running)
                attacked = await attack
                await tenant.leave()
            after = await nothing_left(lab, before)
            turns["quiet again"] = await turn(alone(plugs, ALONE), running)
    result: dict[str, Any] = {"seed": seed, "turns": turns}
    for kind in ("plug", "unplug"):
        quiet = min(turns[name][kind]["p50_ms"] for name in ("quiet", "quiet again"))
        result[f"{kind}_p50_ratio"] = round(turns["hostile"][kind]["p50_ms"] / quiet, 2)
    result["sent"], result["answers"] = dict(attacked.sent), dict(attacked.answers)
    result["roles"] = {
        name: {"before": asdict(before.roles[name]), "after": asdict(role)} for name, role in after.roles.items()
    }
    show(result)
    record("hostile-tenant", result)


async def alone(plugs: TimedPlugs, count: int) -> Times:
    """Plug and unplug a number of times."""
    times: Times = {"plug": [], "unplug": []}
    for _ in range(count):
        await both(plugs, times)
    return times


async def beside(plugs: TimedPlugs, attack: "asyncio.Task[Any]") -> Times:
    """Plug and unplug as long as the attack lasts."""
    times: Times = {"plug": [], "unplug": []}
    while not attack.done():
        await both(plugs, times)
    return times


async def both(plugs: TimedPlugs, times: Times) -> None:
    """Plug and unplug once."""
    times["plug"].append(await plugs.plug("bench"))
    await asyncio.sleep(PAUSE)
    times["unplug"].append(await plugs.unplug("bench"))
    await asyncio.sleep(PAUSE)


async def turn(measured: Awaitable[Times], running: dict[str, int]) -> dict[str, Any]:
    """Return the figures of one turn: times, and CPU time by process.

    :param running: ids of processes.
    """
    idle, before, began = CpuIdle(), {name: cpu_time(pid) for name, pid in running.items()}, time.monotonic()
    times = await measured
    seconds = time.monotonic() - began
    used = {name: round((cpu_time(pid) - before[name]) / seconds / 10, 1) for name, pid in running.items()}
    result: dict[str, Any] = {
        kind: {
            "count": len(values),
            "p50_ms": round(percentile(values, 50), 1),
            "p95_ms": round(percentile(values, 95), 1),
            "max_ms": round(max(values), 1),
        }
        for kind, values in times.items()
    }
    return result | {"cpu_idle": round(idle.share(), 2), "core_percent": used, "seconds": round(seconds, 1)}


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    print(f"\none tenant's operations beside a hostile one (HOTNIC_TEST_SEED={result['seed']}):")
    for name, figures in result["turns"].items():
        for kind in ("plug", "unplug"):
            one = figures[kind]
            print(
                f"  {name:<12} {kind:<7} p50 {one['p50_ms']:7.1f} ms  p95 {one['p95_ms']:7.1f} ms  "
                f"max {one['max_ms']:8.1f} ms  ({one['count']}, CPU idle {figures['cpu_idle']:.0%})"
            )
        used = ", ".join(
            f"{name.rpartition('.')[2]} {share}" for name, share in figures["core_percent"].items() if share
        )
        print(f"  {name:<12} percent of a core: {used}")
    print(f"ratio of the p50: plug {result['plug_p50_ratio']}, unplug {result['unplug_p50_ratio']}")
    print(f"sent {result['sent']}\nanswers {result['answers']}")
    for name, role in result["roles"].items():
        before, after = role["before"], role["after"]
        print(
            f"  {name:<12} {before['mib']:6.1f} -> {after['mib']:6.1f} MiB, "
            f"{before['descriptors']} -> {after['descriptors']} descriptors"
        )
