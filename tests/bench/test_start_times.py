"""Run time of the short-lived programs: the help of the command line, and the CNI shim."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNS = 15


def milliseconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Return the median run time of a command."""
    took = []
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30)
        took.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(took), 1)


def test_start_times(record: Callable[[str, dict[str, Any]], None]) -> None:
    shim = Path("services/multus/container_runtime/shim.py").resolve()
    floor = milliseconds(["/usr/bin/python3", "-IS", "-c", "import json, os, socket, sys"])
    result = {
        "interpreter_ms": floor,
        "shim_version_ms": milliseconds(["/usr/bin/python3", "-IS", str(shim)], {"CNI_COMMAND": "VERSION"}),
        "help_ms": milliseconds([sys.executable, "-m", "services.cli", "--help"]),
        "usage_error_ms": milliseconds([sys.executable, "-m", "services.cli", "addinterface"]),
    }
    for name, value in result.items():
        print(f"\n  {name.removesuffix('_ms').replace('_', ' '):<18}{value:7.1f} ms", end="")
    print()
    record("start-times", result)
