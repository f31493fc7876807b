"""Benchmarks print medians and ratios of one run and write them as JSON. They assert no times."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path("build/bench")


@pytest.fixture
def record() -> Callable[[str, dict[str, Any]], None]:
    """Write the result of a benchmark to ``build/bench/<name>.json`` and print it."""

    def write(name: str, result: dict[str, Any]) -> None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {"benchmark": name, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **result}, indent=2
        )
        (RESULTS / f"{name}.json").write_text(text + "\n")
        print(f"written to {RESULTS / name}.json")

    return write
