"""1,000 requests of 50 clients to 200 VMs, alone and beside 400 slow and oversized requests; node roles are played.

HOTNIC_BENCH_REQUESTS sets the number of requests. A client pauses between two, so that answers are measured and not a
queue: without a pause, 50 clients measure what one core can do. The requests of both turns go to the same VMs.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.measure import CpuIdle, cpu_time, percentile, rss
from tests.bench.scale import RunningRole, ScaledCluster, api_settings, scaled_cluster
from tests.support.lab.many_requests import Load, send_requests
from tests.support.lab.played_nodes import playing_nodes

REQUESTS = int(os.environ.get("HOTNIC_BENCH_REQUESTS", "1000"))
CLIENTS, VMS, BAD = 50, 200, 400
PAUSE = 2.5
"""Seconds between two requests of a client, on average: 20 requests a second of all."""
WARM_UP = 50
SAMPLES = 10
"""Measurements of memory in a turn."""
TURNS = {"quiet": 0, "beside bad requests": BAD}
GOALS = {"lost": "0", "p99_ms": "<= 250", "api_rss_mib": "flat", "controller_rss_mib": "flat"}


async def test_many_requests(record: Callable[[str, dict[str, Any]], None]) -> None:
    turns: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="hotnic-bench-") as directory:
        async with (
            scaled_cluster(Path(directory), VMS) as cluster,
            cluster.role("controller") as controller,
            cluster.role("api", **api_settings(cluster)) as api,
            playing_nodes(cluster.kube),
        ):
            roles = {"api": api, "controller": controller}
            await controller.idle()
            await turn(cluster, roles, Load(WARM_UP, CLIENTS, VMS, 0.1))
            first = WARM_UP
            for name, bad in TURNS.items():
                turns[name] = await turn(cluster, roles, Load(REQUESTS, CLIENTS, VMS, PAUSE, bad, first))
                first += REQUESTS
    show(turns)
    record("many-requests", {"requests": REQUESTS, "clients": CLIENTS, "vms": VMS, "bad": BAD, "turns": turns})


async def turn(cluster: ScaledCluster, roles: dict[str, RunningRole], load: Load) -> dict[str, Any]:
    """Return the figures of one turn."""
    memory: dict[str, list[float]] = {name: [round(rss(role.pid), 1)] for name, role in roles.items()}

    def sample(count: int) -> None:
        if count % max(1, load.requests // SAMPLES) == 0:
            for name, role in roles.items():
                memory[name].append(round(rss(role.pid), 1))

    idle, cpu = CpuIdle(), {name: cpu_time(role.pid) for name, role in roles.items()}
    api = ("127.0.0.1", cluster.place.api_port)
    async with asyncio.timeout(load.requests + 300):
        outcome = await send_requests(cluster.kubeconfig, api, load, sample)
    result: dict[str, Any] = {"requests": len(outcome.seconds), "lost": len(outcome.lost)}
    result["answers"] = {str(status): count for status, count in sorted(outcome.answers.items())}
    result["bad_answers"] = {str(status): count for status, count in sorted(outcome.bad_answers.items())}
    result |= {f"p{percent}_ms": round(1000 * percentile(outcome.seconds, percent), 1) for percent in (50, 95, 99)}
    result["max_ms"] = round(1000 * max(outcome.seconds), 1)
    for name, role in roles.items():
        result[f"{name}_cpu_ms_per_request"] = round((cpu_time(role.pid) - cpu[name]) / load.requests, 1)
        result[f"{name}_rss_mib"] = memory[name]
    return result | {"cpu_idle": round(idle.share(), 2)}


def show(turns: dict[str, dict[str, Any]]) -> None:
    """Print the figures; of the memory the first, the middle and the last."""
    print(f"\n{'':<28}" + "".join(f"{name:>24}" for name in turns) + "  goal")
    for name in next(iter(turns.values())):
        cells = [figures[name] for figures in turns.values()]
        shown = [f"{one[0]} {one[len(one) // 2]} {one[-1]}" if isinstance(one, list) else _text(one) for one in cells]
        print(f"{name:<28}" + "".join(f"{cell:>24}" for cell in shown) + f"  {GOALS.get(name, '')}")


def _text(figure: Any) -> str:
    if isinstance(figure, dict):
        return " ".join(f"{key}:{count}" for key, count in figure.items())
    return str(figure)
