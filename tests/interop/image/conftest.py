"""Fixtures of the image tests: every test needs the images of `make image` and a Docker engine."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interop.docker_images import HOTNIC, docker, inspect


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """Check that an engine answers and has the image.

    :raises AssertionError: it does not; the message says what to run.
    """
    done = subprocess.run(["docker", "version"], capture_output=True, text=True)
    assert done.returncode == 0, f"no Docker engine answers; run: make image-test\n{done.stderr}"
    inspect(HOTNIC)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executable that the image carries for nodes without Python, copied out of it."""
    path = tmp_path_factory.mktemp("shim") / "hotnic-multus"
    created = docker("create", HOTNIC).stdout.strip()
    try:
        docker("cp", f"{created}:/opt/hotnic/share/hotnic-multus", str(path))
    finally:
        docker("rm", created)
    return path


@pytest.fixture(autouse=True)
def no_container_left() -> Iterator[None]:
    """Fail a test that leaves a container."""
    before = set(docker("ps", "--all", "--quiet").stdout.split())
    yield
    left = set(docker("ps", "--all", "--quiet").stdout.split()) - before
    assert not left, f"containers left behind: {left}"
