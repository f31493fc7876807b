"""One compose project for all tests of this folder: up before the first test, down after the last."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.interop.compose import Compose
from tests.support.interop.local_images import image_sources, import_image


@pytest.fixture(scope="session")
def compose() -> Compose:
    """A project whose third-party images are made here; nothing is started yet."""
    assert os.environ.get("DOCKER_HOST"), "no Docker engine: run `make compose-test`"
    for image in ("hotnic:dev", "hotnic-lab:dev"):
        found = subprocess.run(["docker", "image", "inspect", image], capture_output=True)
        assert found.returncode == 0, f"image {image} is missing: run `make compose-test`, which builds it"
    images = {f"{name.upper()}_IMAGE": import_image(name, program) for name, program in image_sources().items()}
    return Compose("hotnic-test", images)


@pytest.fixture(scope="session")
def stack(compose: Compose) -> Iterator[Compose]:
    """The project after `docker compose up --detach --wait`."""
    try:
        compose.run("up", "--detach", "--wait", "--wait-timeout", "400", timeout=420)
        yield compose
    except AssertionError as error:
        raise AssertionError(f"{error}\n{compose.run('logs', '--tail', '60', check=False)}") from None
    finally:
        compose.run("down", "--volumes", "--timeout", "20", timeout=300)
