"""The executable that the image carries for nodes without Python."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interop.docker_images import docker, import_root, run_in

CHECKOUT = Path(__file__).parents[3]
NEWEST_GLIBC = (2, 36)
"""What a node must have at most; docs/install.md says it."""

NODE = "hotnic-test-node:local"


@pytest.fixture
def node(shim: Path) -> Iterator[str]:
    """An image of a node with the executable: the C library, zlib, and no Python."""
    library = Path("/lib/x86_64-linux-gnu")
    # What glibc consists of (some parts are empty since 2.34), and the library that PyInstaller's bootloader needs.
    names = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libz.so.1")
    files = {f"lib/x86_64-linux-gnu/{name}": library / name for name in names}
    files["lib64/ld-linux-x86-64.so.2"] = Path("/lib64/ld-linux-x86-64.so.2")
    import_root(NODE, {**files, "opt/cni/bin/hotnic-multus": shim})
    yield NODE
    docker("image", "rm", NODE)


def test_answers_on_a_node_without_python(node: str) -> None:
    options = ("--env=CNI_COMMAND=VERSION", "--tmpfs=/tmp:exec")
    answer = json.loads(run_in(node, "/opt/cni/bin/hotnic-multus", options=options).stdout)
    assert "1.1.0" in answer["supportedVersions"]


def test_needs_no_newer_c_library_than_documented(shim: Path) -> None:
    packed = shim.read_bytes()
    assert packed[:4] == b"\x7fELF"
    extracted = subprocess.run(
        [sys.executable, "-c", EXTRACT, str(shim), str(shim.with_name("parts"))], capture_output=True, text=True
    )
    assert extracted.returncode == 0, extracted.stderr
    unpacked = [path for path in shim.with_name("parts").rglob("*") if path.is_file()]
    parts = [shim, *(path for path in unpacked if path.read_bytes()[:4] == b"\x7fELF")]
    assert any("libpython" in part.name for part in parts), parts
    found = {tuple(map(int, one)) for part in parts for one in re.findall(rb"GLIBC_(\d+)\.(\d+)", part.read_bytes())}
    assert found
    assert max(found) <= NEWEST_GLIBC, f"it needs glibc {max(found)}"


EXTRACT = """
import sys
from pathlib import Path
from PyInstaller.archive.readers import CArchiveReader
archive = CArchiveReader(sys.argv[1])
for name, (_, _, _, _, kind) in archive.toc.items():
    if kind in ("b", "x"):
        target = Path(sys.argv[2]) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(archive.extract(name))
"""


def test_passes_the_tests_of_its_source(shim: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/unit/multus/test_multus_shim.py"],
        cwd=CHECKOUT, env={**os.environ, "HOTNIC_TEST_SHIM": str(shim)}, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
