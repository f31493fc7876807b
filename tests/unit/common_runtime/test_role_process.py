"""The frame of a role, as a process of its own: options, health, signals, ordered shutdown."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec

ROOT = Path(__file__).parents[3]

ROLE = '''
import asyncio, contextlib, sys, time
from typing import Annotated
import msgspec
from services.common.runtime import RoleRuntime, main
from services.common.settings import Common, SettingsError

class Settings(Common, frozen=True, kw_only=True):
    """Settings of a role that does as it is told."""
    act: Annotated[str, msgspec.Meta(description="what to do")] = ""
    token: Annotated[str | None, msgspec.Meta(description="not for eyes", extra={"secret": True})] = None

@contextlib.asynccontextmanager
async def resource(name):
    yield
    print("closed", name, flush=True)

async def fails():
    raise RuntimeError("task broke")

async def ignores_its_end():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue

async def works(runtime):
    try:
        await asyncio.sleep(3600)
    finally:
        print("task ended; stopping", runtime.stopping.is_set(), flush=True)

async def start(runtime: RoleRuntime[Settings]) -> None:
    await runtime.stack.enter_async_context(resource("first"))
    await runtime.stack.enter_async_context(resource("second"))
    runtime.readiness.set("kube", False, "no list yet")
    match runtime.settings.act:
        case "fail": raise RuntimeError("cannot start")
        case "setting": raise SettingsError("HOTNIC_ACT", "contradicts another")
        case "hang": runtime.spawn("stubborn", ignores_its_end)
        case "slow start": await asyncio.sleep(3600)
    runtime.spawn("broken", fails)
    runtime.spawn("worker", lambda: works(runtime))
    with runtime.telemetry.tracer.start_as_current_span("started"):
        pass
    runtime.readiness.set("kube", True)

sys.exit(main("test", Settings, start))
'''


class Process:
    """The role, running."""

    def __init__(self, process: asyncio.subprocess.Process, health: Path) -> None:
        self.process = process
        self.health = health
        self.lines: list[str] = []

    async def get(self, path: str) -> tuple[int, str]:
        """Ask its health endpoints."""
        connector = aiohttp.UnixConnector(str(self.health))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.get(f"http://x{path}") as response,
        ):
            return response.status, await response.text()

    async def logged(self, event: str, **fields: object) -> None:
        """Wait until it has logged this."""
        assert self.process.stderr is not None
        wanted = {"event": event} | fields
        async with asyncio.timeout(20):
            while line := (await self.process.stderr.readline()).decode():
                self.lines.append(line)
                if line.startswith("{") and wanted.items() <= msgspec.json.decode(line).items():
                    return
        raise AssertionError(f"it ended without logging {event}: {self.lines}")

    async def ready(self) -> None:
        """Wait until its start is done."""
        await self.logged("condition met", condition="started")

    async def output(self) -> tuple[str, str]:
        """What it wrote until its end."""
        out, err = await asyncio.wait_for(self.process.communicate(), 20)
        return out.decode(), "".join(self.lines) + err.decode()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int | None, str, str]:
        """Signal it and wait: exit code, output, logs."""
        self.process.send_signal(number)
        out, err = await self.output()
        return self.process.returncode, out, err


@asynccontextmanager
async def role(tmp_path: Path, *argv: str, **settings: str) -> AsyncIterator[Process]:
    script = tmp_path / "role.py"
    script.write_text(ROLE)
    health = tmp_path / "health.sock"
    environ: Mapping[str, str] = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOTNIC_HEALTH_LISTEN": f"unix:{health}",
        "HOTNIC_TRACE_DIR": str(tmp_path / "traces"),
        **{f"HOTNIC_{name.upper()}": value for name, value in settings.items()},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(script),
        *argv,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process, health)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_health_says_what_is_missing_and_the_end_is_in_order(tmp_path: Path) -> None:
    async with role(tmp_path) as running:
        await running.ready()
        assert await running.get("/healthz") == (200, "ok\n")
        status, text = await running.get("/readyz")
        assert (status, text) == (200, "[+]started ok\n[+]kube ok\nreadyz check passed\n")
        status, text = await running.get("/metrics")
        assert status == 200
        assert "hotnic_bus_up" in text
        assert (await running.get("/nowhere"))[0] == 404
        code, out, err = await running.stop()
    assert code == 0
    assert out.splitlines() == ["task ended; stopping True", "closed second", "closed first"]
    assert "task broke" in err, "and it did not end the process"
    events = [msgspec.json.decode(line)["event"] for line in err.splitlines()]
    assert events[-1] == "stopped"
    assert not running.health.exists()
    (trace,) = (tmp_path / "traces").iterdir()
    assert '"started"' in trace.read_text()


async def test_readiness_names_each_condition_and_its_cause(tmp_path: Path) -> None:
    async with role(tmp_path, act="slow start") as running:
        await running.logged("condition not met", condition="kube")
        status, text = await running.get("/readyz")
        assert (status, text) == (
            503,
            "[-]started failed: starting\n[-]kube failed: no list yet\nreadyz check failed\n",
        )
        code, out, _ = await running.stop(signal.SIGINT)
    assert code == 0
    assert out.splitlines() == ["closed second", "closed first"]


async def test_a_start_that_fails_ends_in_order_with_1(tmp_path: Path) -> None:
    async with role(tmp_path, act="fail") as running:
        out, err = await running.output()
    assert running.process.returncode == 1
    assert out.splitlines() == ["closed second", "closed first"]
    assert "cannot start" in err


async def test_settings_that_contradict_each_other_are_exit_2(tmp_path: Path) -> None:
    async with role(tmp_path, act="setting") as running:
        _, err = await running.output()
    assert running.process.returncode == 2
    assert "contradicts another" in err


async def test_what_ignores_its_end_is_named_and_left_behind(tmp_path: Path) -> None:
    async with role(tmp_path, act="hang") as running:
        await running.ready()
        code, out, err = await running.stop()
    assert code == 1
    assert "closed first" in out
    hanging = [line for line in map(msgspec.json.decode, err.splitlines()) if "hang" in line["event"]]
    assert hanging[0]["tasks"] == ["stubborn"]
