"""A role as a process: options, health endpoints, signals, ordered shutdown."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

from services.common.runtime.process import HEALTH_TIMEOUT, STACK_TIMEOUT, TASKS_TIMEOUT
from services.common.telemetry.setup import ABANDON_TIMEOUT, SHUTDOWN_TIMEOUT

ROOT = Path(__file__).parents[3]

ROLE = '''
import asyncio, contextlib, os, sys, time
from typing import Annotated
import msgspec
from services.common.runtime.process import RoleRuntime, main
from services.common.runtime.settings import CommonSettings, SettingsError
from services.common.telemetry import configure

class Settings(CommonSettings, frozen=True, kw_only=True):
    """Settings of a role whose behaviour the test chooses."""
    act: Annotated[str, msgspec.Meta(description="what to do")] = ""
    token: Annotated[str | None, msgspec.Meta(description="a secret", extra={"secret": True})] = None

@contextlib.asynccontextmanager
async def resource(name):
    yield
    print("closed", name, flush=True)

async def fail():
    raise RuntimeError("task broke")

async def ignore_cancellation():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue

async def work(runtime):
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
        case "hang": runtime.spawn("stubborn", ignore_cancellation)
        case "slow start": await asyncio.sleep(3600)
    runtime.spawn("broken", fail)
    runtime.spawn("worker", lambda: work(runtime))
    with runtime.telemetry.tracer.start_as_current_span("started"):
        pass
    runtime.telemetry.metrics.record_dropped()
    runtime.readiness.set("kube", True)

def instrument(telemetry):
    other = configure("other")
    other.metrics.set_bus_up(True)
    return other

sys.exit(main("test", Settings, start, instrument=instrument if os.environ.get("HOTNIC_ACT") == "instrument" else None))
'''


class Process:
    """The running role."""

    def __init__(self, process: asyncio.subprocess.Process, health: Path) -> None:
        self.process = process
        self.health = health
        self.lines: list[str] = []

    async def get(self, path: str) -> tuple[int, str]:
        """Get a path of its health endpoints."""
        connector = aiohttp.UnixConnector(str(self.health))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.get(f"http://x{path}") as response,
        ):
            return response.status, await response.text()

    async def logged(self, event: str, **fields: object) -> None:
        """Wait until it has logged this event with these fields."""
        assert self.process.stderr is not None
        wanted = {"event": event} | fields
        async with asyncio.timeout(20):
            while line := (await self.process.stderr.readline()).decode():
                self.lines.append(line)
                if line.startswith("{") and wanted.items() <= msgspec.json.decode(line).items():
                    return
        raise AssertionError(f"the role ended without logging {event}: {self.lines}")

    async def ready(self) -> None:
        """Wait until it has started."""
        await self.logged("condition met", condition="started")

    async def output(self) -> tuple[str, str]:
        """Wait for its end; return its output and its logs."""
        out, err = await asyncio.wait_for(self.process.communicate(), 20)
        return out.decode(), "".join(self.lines) + err.decode()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int | None, str, str]:
        """Send a signal and wait; return exit code, output and logs."""
        self.process.send_signal(number)
        out, err = await self.output()
        return self.process.returncode, out, err


@asynccontextmanager
async def role(
    tmp_path: Path, *argv: str, environ: Mapping[str, str] | None = None, **settings: str
) -> AsyncIterator[Process]:
    script = tmp_path / "role.py"
    script.write_text(ROLE)
    health = tmp_path / "health.sock"
    variables: Mapping[str, str] = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOTNIC_HEALTH_LISTEN": f"unix:{health}",
        "HOTNIC_TRACE_DIR": str(tmp_path / "traces"),
        **{f"HOTNIC_{name.upper()}": value for name, value in settings.items()},
        **(environ or {}),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(script),
        *argv,
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process, health)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_health_endpoints_work_and_the_shutdown_is_ordered(tmp_path: Path) -> None:
    async with role(tmp_path) as running:
        await running.ready()
        assert await running.get("/healthz") == (200, "ok\n")
        status, text = await running.get("/readyz")
        assert (status, text) == (200, "[+]started ok\n[+]kube ok\nreadyz check passed\n")
        status, text = await running.get("/metrics")
        assert status == 200
        assert "hotnic_bus_dropped_total 1.0" in text
        assert (await running.get("/nowhere"))[0] == 404
        code, out, err = await running.stop()
    assert code == 0
    assert out.splitlines() == ["task ended; stopping True", "closed second", "closed first"]
    assert "task broke" in err, "the failed task is logged and does not end the process"
    events = [msgspec.json.decode(line)["event"] for line in err.splitlines()]
    assert events[-1] == "stopped"
    assert not running.health.exists()
    (trace,) = (tmp_path / "traces").iterdir()
    assert '"started"' in trace.read_text()


async def test_readyz_names_each_condition_and_its_reason(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("freed", [True, False], ids=["freed", "held"])
async def test_a_role_works_while_another_process_holds_its_health_port(tmp_path: Path, freed: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        listen = f"127.0.0.1:{holder.getsockname()[1]}"
        async with role(tmp_path, health_listen=listen) as running:
            await running.logged("address held by another process", listen=listen, endpoints="health-port")
            await running.ready()
            if freed:
                holder.close()
                await running.logged("listening", address=listen)
                async with aiohttp.ClientSession() as client, client.get(f"http://{listen}/readyz") as response:
                    assert await response.text() == "[+]started ok\n[+]kube ok\nreadyz check passed\n"
            code, out, _ = await running.stop()
    assert code == 0
    assert out.splitlines() == ["task ended; stopping True", "closed second", "closed first"]


async def test_a_role_answers_on_its_socket_while_another_process_holds_its_port(tmp_path: Path) -> None:
    """The probes of a pod with the node's network use the socket: each pod there may hold the port."""
    path = tmp_path / "probe.sock"
    with socket.create_server(("127.0.0.1", 0)) as holder:
        listen = f"127.0.0.1:{holder.getsockname()[1]}"
        async with role(tmp_path, health_listen=f"{listen},unix:{path}") as running:
            await running.logged("address held by another process", listen=listen, endpoints="health-port")
            await running.logged("listening", endpoints="health-socket")
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
                client.get("http://localhost/healthz") as response,
            ):
                assert (response.status, await response.text()) == (200, "ok\n")
            code, _, _ = await running.stop()
    assert code == 0
    assert not path.exists()


@pytest.mark.parametrize("listen", ["192.0.2.1:8080", "8080"], ids=["address-of-others", "malformed"])
async def test_a_health_address_that_never_can_be_served_is_exit_1(tmp_path: Path, listen: str) -> None:
    async with role(tmp_path, health_listen=listen) as running:
        out, err = await running.output()
    assert (running.process.returncode, out) == (1, "")
    assert "cannot serve health endpoints" in err


async def test_the_role_uses_the_telemetry_that_instrument_returns(tmp_path: Path) -> None:
    async with role(tmp_path, act="instrument") as running:
        await running.ready()
        _, text = await running.get("/metrics")
        assert "hotnic_bus_up 1.0" in text
        await running.stop()
    assert ['"started"' in trace.read_text() for trace in (tmp_path / "traces").glob("other-*")] == [True]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("listening", [False, True], ids=["refused", "silent"])
async def test_an_unreachable_collector_is_no_failure(tmp_path: Path, protocol: str, listening: bool) -> None:
    with socket.socket() as collector:
        collector.bind(("127.0.0.1", 0))
        if listening:
            # The kernel accepts connections, and nothing answers.
            collector.listen()
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        async with role(tmp_path, environ=environ) as running:
            await running.ready()
            started = time.monotonic()
            code, out, err = await running.stop()
            took = time.monotonic() - started
    events = [msgspec.json.decode(line) for line in err.splitlines() if line.startswith("{")]
    assert code == 0, err
    # Ten times what it takes is the time that the kubelet and Docker grant.
    assert took < 10
    assert out.splitlines()[-1] == "closed first"
    assert [event["count"] for event in events if event["event"] == "spans not delivered"] == [1]
    # The exporter logs in a thread of its own.
    assert "stopped" in [event["event"] for event in events]
    assert "Traceback" not in err.partition("signal received")[2]
    (trace,) = (tmp_path / "traces").iterdir()
    assert '"started"' in trace.read_text(), "the file has the span that the collector has not"


async def test_a_failed_start_is_exit_1_after_an_ordered_shutdown(tmp_path: Path) -> None:
    async with role(tmp_path, act="fail") as running:
        out, err = await running.output()
    assert running.process.returncode == 1
    assert out.splitlines() == ["closed second", "closed first"]
    assert "cannot start" in err


async def test_contradicting_settings_are_exit_2(tmp_path: Path) -> None:
    async with role(tmp_path, act="setting") as running:
        _, err = await running.output()
    assert running.process.returncode == 2
    assert "contradicts another" in err


async def test_a_task_that_ignores_its_cancellation_is_logged_and_left_behind(tmp_path: Path) -> None:
    async with role(tmp_path, act="hang") as running:
        await running.ready()
        code, out, err = await running.stop()
    assert code == 1
    assert "closed first" in out
    hanging = [
        line for line in map(msgspec.json.decode, err.splitlines()) if line["event"] == "cancelled tasks still running"
    ]
    assert hanging[0]["tasks"] == ["stubborn"]


def test_the_timeouts_of_a_shutdown_end_before_the_kubelet_kills_the_process() -> None:
    assert ABANDON_TIMEOUT < SHUTDOWN_TIMEOUT
    assert TASKS_TIMEOUT + STACK_TIMEOUT + SHUTDOWN_TIMEOUT + HEALTH_TIMEOUT < 10
