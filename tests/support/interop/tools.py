"""Paths of the Go programs that ``make interop-tools`` builds, and of their sources."""

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "tools" / "interop-tools"


def tool(name: str) -> Path:
    """Return the path of a program that is built; its tests fail with the remedy if it is not.

    :param name: a folder of ``tests/interop/tools``, followed by ``/TOOL`` if its module has several tools.
    """
    done = subprocess.run([str(SCRIPT), "--path", name], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def source(name: str) -> Path:
    """Return the folder with the source of a program; `go` fetches it if it is missing.

    :param name: a folder of ``tests/interop/tools``.
    """
    done = subprocess.run([str(SCRIPT), "--source", name], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])
