"""The lab in containers: what a signal does in the middle of a start, and who gets which credentials."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml

from lab.container import cluster, process
from lab.layout import BUS_ROLES, Layout
from lab.supervisor.processes import Child, Processes, ProcessSpec


async def test_a_signal_in_the_middle_of_a_start_ends_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "READY", tmp_path / "ready")
    started: list[Child] = []

    def spec(name: str) -> ProcessSpec:
        code = "import time; time.sleep(60)"
        return ProcessSpec(name, (sys.executable, "-I", "-S", "-c", code), tmp_path / f"{name}.log")

    async def start(processes: Processes) -> None:
        started.append(processes.start(spec("runtime")))
        running = asyncio.ensure_future(processes.run(spec("import"), timeout=50))
        await asyncio.sleep(0)
        started.append(processes.children["import"])
        os.kill(os.getpid(), signal.SIGTERM)
        await running

    assert await process.run(start) == 0
    assert [child.code for child in started] == [-signal.SIGTERM, -signal.SIGKILL]
    assert not (tmp_path / "ready").exists()


def test_the_api_server_inherits_nothing_but_what_is_named(tmp_path: Path) -> None:
    environ = {"PATH": "/bin", "HOTNIC_LOG_LEVEL": "debug", "AWS_SECRET_ACCESS_KEY": "canary", "PYTHONHOME": "/other"}
    spec = cluster.apiserver(Layout(tmp_path), "cluster", 6443, environ)
    assert spec.env["PATH"] == "/bin"
    assert spec.env["HOTNIC_LOG_LEVEL"] == "debug"
    assert not {"AWS_SECRET_ACCESS_KEY", "PYTHONHOME"} & set(spec.env)


def test_every_container_has_the_credentials_of_its_own_alone(tmp_path: Path) -> None:
    files = cluster.files_of_readers(Layout(tmp_path))
    services = yaml.safe_load((Path(__file__).parents[3] / "docker-compose.yml").read_text())["services"]
    mounted: dict[str, list[str]] = {}
    for name, service in services.items():
        found = [volume for volume in service.get("volumes", []) if volume.startswith("credentials-")]
        if found:
            mounted[name] = found
    assert mounted.pop("cluster") == [f"credentials-{reader}:/credentials/{reader}" for reader in files]
    assert mounted == {reader: [f"credentials-{reader}:/credentials:ro"] for reader in files}
    for name, service in services.items():
        bus = {key: value for key, value in service.get("environment", {}).items() if key.startswith("NATS_")}
        assert bool(bus) == (name in (*BUS_ROLES, "cli"))
        assert {Path(value).name for value in bus.values() if value.startswith("/")} <= set(files.get(name, {}))
