"""Many pods at once, as after a reboot of the node: every ADD succeeds, and ``connectionLimit`` bounds the memory.

Upstream fault multus-cni#1346: a burst of pods needs more memory than the container may use, the daemon is killed, and
the burst comes again.
"""

import asyncio
import base64
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.http.client import UnixHttpClient
from services.multus.config.settings import DEFAULT_CONNECTION_LIMIT
from tests.support.kube.node_kube import PODS
from tests.support.node import netns as namespaces
from tests.support.node.cni import leases
from tests.support.node.multus_daemon import cni_environment
from tests.support.node.multus_process import MultusNode, multus_node
from tests.support.telemetry.spans import recording_telemetry

COUNT = 200
MAX_MEMORY = 384 * 1024 * 1024
"""Bytes of the daemon and its plugins together; about three times what was measured."""


@pytest.fixture
async def node(tmp_path: Path, plugins: Path, host_bridges: None) -> AsyncIterator[MultusNode]:
    async with multus_node(tmp_path, plugins) as found:
        yield found


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[list[Path]]:
    """The network namespaces of all pods."""
    paths = [tmp_path / f"ns{number}" for number in range(COUNT)]
    for path in paths:
        namespaces.add(path)
    yield paths
    for path in paths:
        namespaces.remove(path)


@dataclass
class Load:
    """The largest load of a process and its children.

    :ivar memory: bytes; memory that processes share is counted once.
    :ivar children: how many children ran at once.
    """

    memory: int = 0
    children: int = 0

    async def watch(self, pid: int) -> None:
        """Sample until cancelled."""
        while True:
            memory, children = await asyncio.to_thread(sample, pid)
            self.memory, self.children = max(self.memory, memory), max(self.children, children)
            await asyncio.sleep(0.05)


def sample(pid: int) -> tuple[int, int]:
    """Return the memory of a process with its children, and how many of them have not ended."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    sizes = [proportional_set_size(child) for child in children]
    return proportional_set_size(pid) + sum(sizes), sum(size > 0 for size in sizes)


def proportional_set_size(pid: int) -> int:
    """Return the memory of a process in bytes, its part of shared memory included; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def call(node: MultusNode, command: str, number: int, netns: Path) -> dict[str, object]:
    """Return the body of a call for one of the pods."""
    environ = cni_environment(command, netns, f"sandbox{number:03}")
    pod = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod{number};K8S_POD_UID=uid{number};IgnoreUnknown=1"
    return {"env": {**environ, "CNI_ARGS": pod}, "config": base64.b64encode(node.conf.read_bytes()).decode()}


async def test_all_pods_of_a_reboot_at_once(node: MultusNode, sandboxes: list[Path]) -> None:
    for number in range(COUNT):
        node.kube.put(PODS, "default", f"pod{number}", metadata={"uid": f"uid{number}"}, spec={}, status={})
    http = UnixHttpClient(str(node.folder / "run" / "multus.sock"), recording_telemetry("client")[0])
    seconds: list[float] = []

    async def send(command: str, number: int) -> None:
        started = time.monotonic()
        body = call(node, command, number, sandboxes[number])
        status, answer = await http.request("POST", "/cni", json=body, timeout=300)
        assert status == 200, answer
        seconds.append(time.monotonic() - started)

    load = Load()
    async with node.daemon() as process:
        before = sample(process.pid)[0]
        watching = asyncio.create_task(load.watch(process.pid))
        await asyncio.gather(*(send("ADD", number) for number in range(COUNT)))
        assert len(leases(node.folder, "pods")) == COUNT
        durations = sorted(seconds)
        await asyncio.gather(*(send("DEL", number) for number in range(COUNT)))
        watching.cancel()
        await asyncio.wait([watching])
        after = sample(process.pid)[0]
    await http.close()
    assert leases(node.folder, "pods") == []
    report = {
        "pods": COUNT,
        "limit": DEFAULT_CONNECTION_LIMIT,
        "p50 s": round(statistics.median(durations), 2),
        "p99 s": round(durations[COUNT * 99 // 100], 2),
        "MiB before": before >> 20,
        "MiB peak": load.memory >> 20,
        "MiB after": after >> 20,
        "plugins at once": load.children,
        "cpus": os.cpu_count(),
    }
    print(json.dumps(report))  # noqa: T201
    assert load.children <= DEFAULT_CONNECTION_LIMIT
    assert load.memory < MAX_MEMORY, report
