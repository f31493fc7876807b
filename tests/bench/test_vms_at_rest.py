"""What the controller does and costs beside KubeVirt while nothing changes: writes, and share of a core.

The controller runs in this process, so that its periods can be shortened; its bus is in memory, and it holds no Lease.
"""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from services.common.kube.client import Kube
from services.common.telemetry import configure
from services.controller.role import PERIODS, Periods
from tests.bench.measure import CpuIdle
from tests.support.lab.kubevirt import api_server
from tests.support.lab.resting import VERSION, create_running_vms, measure_rest

VMS = 1000
FASTER = 10
"""How many times as often the controller repeats its work: a minute covers ten."""
SECONDS = 60.0


async def test_vms_at_rest(record: Callable[[str, dict[str, Any]], None]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    telemetry = configure("bench", environ={})
    periods = Periods(**{name: seconds / FASTER for name, seconds in msgspec.structs.asdict(PERIODS).items()})
    with (
        tempfile.TemporaryDirectory(prefix="hotnic-bench-") as directory,
        api_server(Path(directory), VERSION) as (kubeconfig, account),
    ):
        async with await Kube.connect(kubeconfig=str(account), telemetry=telemetry, user_agent="bench") as kube:
            await create_running_vms(kube, VMS)
        idle = CpuIdle()
        rest = await measure_rest(kubeconfig, VMS, SECONDS, telemetry, periods)
    result = {
        "vms": VMS,
        "seconds": SECONDS * FASTER,
        "writes": rest.writes,
        "messages": rest.messages,
        "core_percent": round(100 * rest.cpu_seconds / (SECONDS * FASTER), 2),
        "resync_ms": round(1000 * rest.cpu_seconds * periods.resync / SECONDS, 1),
        "cpu_idle": round(idle.share(), 2),
    }
    print(f"\n{VMS} VMs at rest, {result['seconds']:.0f} s (CPU idle {result['cpu_idle']:.0%}):")
    for name, unit in (("writes", ""), ("messages", ""), ("core_percent", " %"), ("resync_ms", " ms")):
        print(f"  {name.partition('_')[0]:<12}{result[name]:>8}{unit}")
    record("vms-at-rest", result)
