"""The lock files of the images have wheels for both platforms: no build needs a compiler."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
UV = Path(sys.executable).with_name("uv")


@pytest.mark.parametrize("platform", ["x86_64-manylinux_2_28", "aarch64-manylinux_2_28"])
@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-build.lock"])
def test_every_package_has_a_wheel(lock: str, python: str, platform: str, tmp_path: Path) -> None:
    # uv ignores files whose hash is not in the lock, so a missing hash is a missing wheel.
    done = subprocess.run(
        [UV, "pip", "install", "--dry-run", "--target", tmp_path, "--require-hashes", "--only-binary", ":all:",
         "--no-binary", "nkeys",  # pure Python, without a wheel
         "--python", sys.executable, "--python-version", python, "--python-platform", platform, "-r", lock],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stderr
