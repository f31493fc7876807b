"""What the images contain and do not contain."""

import json
import sys

import pytest

from tests.support.interop.docker_images import BASE_LABEL, HOTNIC, LAB, base_of, docker, inspect, run_in

MAX_MEGABYTES = 120
"""How much larger than its base the production image may be."""

UNWANTED = (
    "gcc", "cc", "g++", "c++", "clang", "make", "ld", "as", "strip", "go", "cargo", "git", "pip", "pip3", "uv",
    "pytest", "mypy", "ruff", "pyinstaller", "hatch", "hatchling", "nats-server", "kubectl", "qemu-system-x86_64",
)  # fmt: skip

FIND_PROGRAMS = "import json, shutil, sys; print(json.dumps([n for n in sys.argv[1:] if shutil.which(n)]))"

FIND_FILES = """
import json, pathlib
root = pathlib.Path("/opt/hotnic")
unwanted = {".git", ".cache", "pip", "setuptools", "wheel", "hatchling", "PyInstaller", "pytest", "lab", "tests"}
code = [path for path in root.glob("lib/python*/site-packages/**/*.py") if "kubernetes_asyncio" not in path.parts]
print(json.dumps({
    "unwanted": [str(p) for p in (*root.glob("*"), *root.glob("lib/python*/site-packages/*")) if p.name in unwanted],
    "caches": [str(p) for p in pathlib.Path("/").glob("root/.cache/*")] if pathlib.Path("/root").is_dir() else [],
    "modules": len(code),
    "uncompiled": [str(p) for p in code if not list(p.parent.glob(f"__pycache__/{p.stem}.*.pyc"))],
    "sources": [str(p) for p in pathlib.Path("/").glob("*") if p.name in {"src", "staging", "wheels", "lab"}],
}))
"""

FIND_SECRETS = """
import json, pathlib
secrets = ("etc/pip.conf", "run/secrets/pip.conf", "run/secrets/ca.crt", "root/.config/pip/pip.conf", "root/.pip")
print(json.dumps([path for path in secrets if (pathlib.Path("/") / path).exists()]))
"""

VERSION = "import importlib.metadata; print(importlib.metadata.version('hotnic'))"

FIND_TOOLS = """
import json, pathlib, subprocess
from lab.tools import LabTools
tools = LabTools.find()
programs = [tools.containerd, tools.ctr, tools.runc, tools.nats_server, tools.qemu, *tools.cni_dir.glob("bridge")]
codes = {p.name: subprocess.run([p, "--version"], capture_output=True).returncode for p in programs}
kubectl = subprocess.run([tools.kubectl, "version", "--client"], capture_output=True).returncode
print(json.dumps({**codes, "kubectl": kubectl, "root": str(tools.root)}))
"""


def programs(image: str) -> set[str]:
    """Return which of the unwanted programs an image has."""
    return set(json.loads(run_in(image, "python3", "-c", FIND_PROGRAMS, *UNWANTED).stdout))


def test_production_image_adds_no_build_tools_to_its_base() -> None:
    assert programs(HOTNIC) - programs(base_of(HOTNIC)) == set()


def test_production_image_contains_only_hotnic_and_its_dependencies() -> None:
    found = json.loads(run_in(HOTNIC, "python3", "-c", FIND_FILES, options=("--user=0:0",)).stdout)
    assert found["modules"] > 500
    assert found == {"unwanted": [], "caches": [], "modules": found["modules"], "uncompiled": [], "sources": []}


def test_size(capsys: pytest.CaptureFixture[str]) -> None:
    base = inspect(base_of(HOTNIC))["Size"] / 1e6
    above = {image: inspect(image)["Size"] / 1e6 - base for image in (HOTNIC, LAB)}
    with capsys.disabled():
        sizes = ", ".join(f"{image} {size:.0f} MB" for image, size in above.items())
        sys.stdout.write(f"\nsize above {base_of(HOTNIC)} ({base:.0f} MB): {sizes}\n")
    assert 10 < above[HOTNIC] <= MAX_MEGABYTES


def test_metadata() -> None:
    config = inspect(HOTNIC)["Config"]
    assert (config["User"], config["Entrypoint"]) == ("65532:65532", ["hotnic"])
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == "hotnic"
    assert labels["version"] == run_in(HOTNIC, "python3", "-c", VERSION).stdout.strip()
    assert BASE_LABEL in config["Labels"]
    assert all(labels.values()), f"a label that is not known is left out: {labels}"
    assert not [entry for entry in config["Env"] if "proxy" in entry.lower() or "index" in entry.lower()]


@pytest.mark.parametrize("image", [HOTNIC, LAB])
def test_no_secret_of_the_build_is_in_the_image(image: str) -> None:
    found = run_in(image, "python3", "-c", FIND_SECRETS, options=("--user=0:0",)).stdout
    assert json.loads(found) == []
    history = docker("history", "--no-trunc", "--format={{.CreatedBy}}", image).stdout
    assert "index-url" not in history


def test_lab_image_has_the_tools_of_the_lab() -> None:
    found = json.loads(run_in(LAB, "python3", "-c", FIND_TOOLS).stdout)
    assert found.pop("root") == "/opt/hotnic-lab/tools"
    assert set(found.values()) == {0}, found
    assert {"containerd", "ctr", "runc", "nats-server", "kubectl", "qemu-system-x86_64", "bridge"} == set(found)


def test_lab_image_has_the_command_of_the_lab() -> None:
    assert "hotnic lab" in run_in(LAB, "hotnic", "lab", "up", "--help").stdout
    refused = run_in(HOTNIC, "hotnic", "lab", "up", "--help", check=False)
    assert (refused.returncode, "is not installed" in refused.stderr) == (1, True)
