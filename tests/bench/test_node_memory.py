"""Memory of a node's roles at rest: each in a process of its own, and in one process together.

The API server, the container runtime and the bus are small stand-ins and a real NATS server. Memory of a process is
what it alone would free (USS), its share with others (PSS) and what is resident (RSS), from ``smaps_rollup``.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.supervisor.components import ALLOCATOR
from tests.bench.measure import import_floor, memory
from tests.support.bus.nats import NatsServer
from tests.support.kube.node_kube import FakeKube, serving_kube, write_kubeconfig
from tests.support.node.fake_cri import FakeCri, serving_cri

ROLES = ("multus", "networks", "handler")
AT_REST = 5.0
"""Seconds after the start that a process gets for its first lists and resync."""


@contextlib.asynccontextmanager
async def node() -> AsyncIterator[dict[str, str]]:
    """Serve what the roles of a node need; yield their environment."""
    with tempfile.TemporaryDirectory(prefix="hn-") as path:
        folder = Path(path)
        for name in ("conf", "bin"):
            (folder / name).mkdir()
        (folder / "conf" / "10-primary.conf").write_text(json.dumps({"cniVersion": "1.0.0", "name": "p", "type": "x"}))
        nats = NatsServer(folder / "nats")
        await nats.start()
        try:
            async with serving_kube(FakeKube()) as kube, serving_cri(str(folder / "cri.sock"), FakeCri([])):
                yield {
                    **ALLOCATOR,
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
                    "KUBECONFIG": write_kubeconfig(folder / "kubeconfig", kube.url),
                    "NATS_URL": nats.url,
                    "HOTNIC_NODE_NAME": "node1",
                    "HOTNIC_VM_OWNER": "hotnic",
                    "HOTNIC_CRI_SOCKET": str(folder / "cri.sock"),
                    "HOTNIC_MULTUS_SOCKET": str(folder / "run" / "multus.sock"),
                    "HOTNIC_SOCKET_DIR": str(folder / "run"),
                    "HOTNIC_CNI_CONF_DIR": str(folder / "conf"),
                    "HOTNIC_CNI_BIN_DIR": str(folder / "bin"),
                    "HOTNIC_CNI_STATE_DIR": str(folder / "state"),
                    "HOTNIC_TRACE_DIR": str(folder / "traces"),
                    "HOTNIC_LOG_FORMAT": "json",
                }
        finally:
            await nats.stop()


@contextlib.asynccontextmanager
async def running(module: str, environ: dict[str, str]) -> AsyncIterator[int]:
    """Run a process until it is ready and at rest; yield its id."""
    health = Path(environ["HOTNIC_SOCKET_DIR"]).with_name(f"{module}.health")
    environ = {**environ, "HOTNIC_HEALTH_LISTEN": f"unix:{health}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{module}", env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(120):
            while (await check(environ)) != 0:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        await asyncio.sleep(AT_REST)
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        assert await process.wait() == 0


async def check(environ: dict[str, str]) -> int:
    """Return the exit code of ``hotnic healthcheck``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", "healthcheck", env=environ, stderr=-3, stdout=-3
    )
    return await process.wait()


@pytest.mark.parametrize("roles", [ROLES[:2], ROLES], ids=["multus and networks", "all"])
async def test_node_memory(record: Callable[[str, dict[str, Any]], None], roles: Sequence[str]) -> None:
    result: dict[str, Any] = {}
    async with node() as environ, contextlib.AsyncExitStack() as stack:
        apart = {role: await stack.enter_async_context(running(role, environ)) for role in roles}
        result |= {
            role: memory(pid) | {"import_floor": import_floor(f"services.{role}.__main__")}
            for role, pid in apart.items()
        }
    async with node() as environ, running("node", environ | {"HOTNIC_ROLES": ",".join(roles)}) as pid:
        result["together"] = memory(pid)
    for name, found in result.items():
        print(f"\n{name:<10}", *(f"{kind} {mib:6.1f}" for kind, mib in found.items()), end="")
    print(f"\nsum of RSS apart {sum(result[role]['rss'] for role in roles):.1f} MiB")
    record(f"node-memory-{len(roles)}", result)
