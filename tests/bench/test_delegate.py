"""Time that the multus daemon adds to a CNI plugin, from a client's connect to the response, and its memory.

The plugin is ``true``, which creates no link, in a network namespace of its own: only the daemon is measured, and
nothing of the machine is changed. The daemon is a process with traces on, as in production.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lab.supervisor.components import ALLOCATOR
from schemas.multus import build_delegate_request
from services.common.http.client import UnixHttpClient
from tests.bench.measure import import_floor, percentile, rss
from tests.support.kube.node_kube import PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.node import netns as namespaces
from tests.support.telemetry.spans import recording_telemetry

WARM_UP = 50
PAIRS = 1000
"""Attachments that are added and deleted; the first 200 are measured one by one."""
TIMED = 200
PODS_OF_CALLS = 20
CONFIG = json.dumps({"cniVersion": "1.0.0", "name": "x", "type": "noop"}).encode()


@asynccontextmanager
async def daemon(
    folder: Path, *, traces: bool = True
) -> AsyncIterator[tuple[asyncio.subprocess.Process, UnixHttpClient]]:
    """Run the daemon as a process; yield it and a client of it."""
    for name in ("bin", "conf"):
        (folder / name).mkdir()
    os.symlink("/bin/true", folder / "bin" / "noop")
    async with serving_kube(FakeKube()) as kube:
        for number in range(PODS_OF_CALLS):
            kube.put(PODS, "default", f"pod{number}", metadata={"uid": f"uid{number}"}, spec={}, status={})
        environ = {
            **os.environ,
            **ALLOCATOR,
            "KUBECONFIG": write_kubeconfig(folder / "kubeconfig", kube.url),
            "HOTNIC_SOCKET_DIR": str(folder / "run"),
            "HOTNIC_CNI_CONF_DIR": str(folder / "conf"),
            "HOTNIC_CNI_BIN_DIR": str(folder / "bin"),
            "HOTNIC_CNI_STATE_DIR": str(folder / "state"),
            **({"HOTNIC_TRACE_DIR": str(folder / "traces")} if traces else {}),
        }
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.multus", env=environ, stderr=log
            )
        socket = folder / "run" / "multus.sock"
        http = UnixHttpClient(str(socket), recording_telemetry("client")[0])
        try:
            async with asyncio.timeout(120):
                while not socket.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            yield process, http
        finally:
            await http.close()
            process.terminate()
            await process.wait()


async def call(http: UnixHttpClient, command: str, netns: Path, number: int) -> float:
    """Send one call; return the milliseconds it took."""
    pod = number % PODS_OF_CALLS
    request = build_delegate_request(
        command=command,
        sandbox_id=f"sandbox{pod}",
        netns=str(netns),
        interface=f"net{number}",
        pod_namespace="default",
        pod_name=f"pod{pod}",
        pod_uid=f"uid{pod}",
        config=CONFIG,
    )
    began = time.perf_counter()
    status, body = await http.request("POST", "/delegate", json=request)
    assert status == 200, body
    return (time.perf_counter() - began) * 1000


def plugin_times(folder: Path) -> list[float]:
    """Return the durations of the executions of ADD in the daemon's spans, in milliseconds."""
    spans = [
        span
        for file in sorted(folder.iterdir())
        for line in file.read_text().splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
        if span["name"].startswith("cni ADD")
    ]
    return [(int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e6 for span in spans]


async def test_delegate(record: Callable[[str, dict[str, Any]], None], tmp_path: Path) -> None:
    with namespaces.namespace(tmp_path, "pod") as netns:
        async with daemon(tmp_path) as (process, http):
            adds, dels = [], []
            for number in range(WARM_UP):
                await call(http, "ADD", netns, number)
                await call(http, "DEL", netns, number)
            before = rss(process.pid)
            for number in range(WARM_UP, WARM_UP + PAIRS):
                adds.append(await call(http, "ADD", netns, number))
                dels.append(await call(http, "DEL", netns, number))
            after = rss(process.pid)
            health = [await healthz(http) for _ in range(TIMED)]
    plugin = statistics.median(plugin_times(tmp_path / "traces")[WARM_UP : WARM_UP + TIMED])
    result = {
        "add_p50_ms": round(percentile(adds[:TIMED], 50), 2),
        "add_p90_ms": round(percentile(adds[:TIMED], 90), 2),
        "del_p50_ms": round(percentile(dels[:TIMED], 50), 2),
        "plugin_p50_ms": round(plugin, 2),
        "own_p50_ms": round(percentile(adds[:TIMED], 50) - plugin, 2),
        "healthz_p50_ms": round(statistics.median(health), 2),
        "rss_mib": round(after, 1),
        "import_floor_mib": round(import_floor("services.multus.__main__"), 1),
        "rss_growth_mib_per_1000": round((after - before) * 1000 / PAIRS, 1),
    }
    print(
        f"\n/delegate ADD p50 {result['add_p50_ms']} ms, p90 {result['add_p90_ms']} ms,"
        f" DEL p50 {result['del_p50_ms']} ms"
        f"\n  the plugin {result['plugin_p50_ms']} ms, everything else {result['own_p50_ms']} ms"
        f" (an empty request: {result['healthz_p50_ms']} ms)"
        f"\n  daemon {result['rss_mib']} MiB (imports {result['import_floor_mib']}),"
        f" {result['rss_growth_mib_per_1000']} MiB more after 1,000 attachments added and deleted"
    )
    record("delegate", result)


async def healthz(http: UnixHttpClient) -> float:
    """Send a request that does nothing; return the milliseconds it took."""
    began = time.perf_counter()
    await http.request("GET", "/healthz")
    return (time.perf_counter() - began) * 1000
