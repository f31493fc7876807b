"""The bills of materials that `make image` has written list what is in the images; tests/unit/supply has the rest."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.check.locks import read_lock
from tests.support.interop.docker_images import HOTNIC, LAB, run_in

CHECKOUT = Path(__file__).parents[3]
BUILT_HERE = {"hotnic", "hotnic-lab", "nkeys"}
"""Packages whose wheels no index has."""
VERSION = "import importlib.metadata as m; print(m.version('hotnic'))"


def document(name: str) -> dict[str, Any]:
    found = json.loads((CHECKOUT / "build" / "image" / f"{name}.cdx.json").read_text())
    assert isinstance(found, dict)
    return found


def of_kind(name: str, kind: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in document(name)["components"] if one.get("purl", "").startswith(f"pkg:{kind}/")}


def locked(*locks: str) -> dict[str, tuple[str, frozenset[str]]]:
    pins = [pin for lock in locks for pin in read_lock(lock, (CHECKOUT / lock).read_text())[0]]
    return {pin.name: (pin.version, pin.hashes) for pin in pins}


@pytest.mark.parametrize(
    ("name", "locks"),
    [("hotnic", ["requirements.lock"]), ("hotnic-lab", ["requirements.lock", "requirements-lab.lock"])],
)
def test_python_packages_are_those_of_the_lock_files(name: str, locks: list[str]) -> None:
    found, pins = of_kind(name, "pypi"), locked(*locks)
    for package, one in found.items():
        assert one.get("licenses"), f"{package} has no licence"
        if package not in BUILT_HERE:
            version, hashes = pins[package]
            assert one["version"] == version
            # pip before 23.1, such as Debian 12's, does not record the hash of what it installs.
            assert {recorded["content"] for recorded in one.get("hashes", ())} <= hashes, package
    # A lock file has packages of other platforms, too.
    assert set(pins) - set(found) == {"win-inet-pton"}
    assert found["hotnic"]["version"] == run_in(HOTNIC, "python3", "-c", VERSION).stdout.strip()


@pytest.mark.parametrize("name", ["hotnic", "hotnic-lab"])
def test_every_installed_debian_package_is_listed(name: str) -> None:
    image = {"hotnic": HOTNIC, "hotnic-lab": LAB}[name]
    listed = run_in(image, "dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n").stdout
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    found = of_kind(name, "deb")
    unpacked = {one for one, component in found.items() if component.get("properties")}
    assert installed
    assert set(found) - unpacked == installed - unpacked
    assert ("containerd" in unpacked) is (name == "hotnic-lab")
    licensed = [one for one in found.values() if one.get("licenses")]
    assert len(licensed) > len(found) / 2


def test_the_labs_programs_have_their_modules() -> None:
    programs = {one["name"]: one for one in document("hotnic-lab")["components"] if "components" in one}
    assert {"nats-server", "kubectl"} <= set(programs)
    modules = {one["name"]: one["version"] for one in programs["nats-server"]["components"]}
    assert re.match(r"v2\.", modules["github.com/nats-io/nats-server/v2"])
    assert re.match(r"1\.", modules["stdlib"])


def test_files_that_no_package_has_brought_are_listed_by_hash() -> None:
    files = {one["name"]: one for one in document("hotnic")["components"] if one["bom-ref"].startswith("file:")}
    sha256 = run_in(HOTNIC, "sha256sum", "/opt/hotnic/share/hotnic-multus").stdout.split()[0]
    assert files["hotnic-multus"]["hashes"][0]["content"] == sha256
