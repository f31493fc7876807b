"""Process 1 of a container of the lab: what a signal does in the middle of a start."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from lab.container import process
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
