#!/usr/bin/env python3
"""Check what the lock files pin for known vulnerabilities, with what the package registries of this machine serve.

Every finding is printed with its remedy and fails the check, unless scripts/check/exceptions.toml accepts it until a
day. A source that cannot be asked is never a silent success: its line begins with `warning:`, which `make lint` prints.
    checked      the source answered today, or within the last day for the same releases
    of DATE      it did not answer now; its kept answer, at most 14 days old, is used
    not served   it has no such data (a package mirror without advisories, no Go): a warning, because no try changes it
    unreachable  it did not answer, and no answer is kept: a warning, because an outage of a registry is no finding
docs/development.md has the meaning of each. Answers are kept in ${XDG_CACHE_HOME:-~/.cache}/hotnic.
"""

from __future__ import annotations

import asyncio
import datetime
import importlib.metadata
import json
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.check import advisories, locks, sources
from scripts.check.advisories import Finding

EXCEPTIONS = locks.ROOT / "scripts" / "check" / "exceptions.toml"
FRESH, KEPT = datetime.timedelta(days=1), datetime.timedelta(days=14)


class Report:
    """What the check prints, and whether it failed.

    :ivar checked: the packages whose advisories are known.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.checked: set[str] = set()
        self.failed = False

    def warn(self, text: str) -> None:
        """Add a line that is shown also when nothing failed."""
        self.lines.append(f"warning: {text}")

    def fail(self, text: str) -> None:
        """Add a line and fail the check."""
        self.lines.append(text)
        self.failed = True


def answers_of_index(
    index: sources.Index, releases: set[tuple[str, str]], cache: Path, now: datetime.datetime, report: Report
) -> dict[str, Any]:
    """Return what an index says of releases, from its kept answers if they are of the last day.

    :param cache: file with the kept answers.
    """
    try:
        kept = json.loads(cache.read_text())
    except (OSError, ValueError):
        kept = {}
    wanted = {f"{name}=={version}" for name, version in releases}
    known = {
        key: one
        for key, one in (kept.get("answers", {}) if kept.get("index") == index.simple else {}).items()
        if key in wanted and now - datetime.datetime.fromisoformat(one["at"]) < KEPT
    }
    fresh = {key for key, one in known.items() if now - datetime.datetime.fromisoformat(one["at"]) < FRESH}
    missing = {one for one in releases if "==".join(one) not in fresh}
    if missing:
        try:
            found = asyncio.run(sources.ask_index(index, missing))
        except sources.Unreachable as error:
            old = sorted(one["at"][:10] for one in known.values())
            if wanted <= known.keys():
                report.warn(f"Python packages: the index does not answer ({error}); its answer of {old[0]} is used")
            else:
                unknown = f"{len(wanted - known.keys())} releases are unchecked"
                report.warn(f"Python packages: unreachable: the index does not answer ({error}); {unknown}")
        else:
            known |= {key: {**one, "at": now.isoformat()} for key, one in found.items()}
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps({"index": index.simple, "answers": known}))
            cache.chmod(0o600)  # the address of an index may contain a password
    return known


def check_python(index: sources.Index, cache: Path, now: datetime.datetime, report: Report) -> list[Finding]:
    """Return the findings of all locked Python packages."""
    pins = {lock: locks.read_lock(lock, (locks.ROOT / lock).read_text())[0] for lock in (locks.DEV, locks.LIBVIRT)}
    releases = {(pin.name, pin.version) for found in pins.values() for pin in found}
    answers = answers_of_index(index, releases, cache, now, report)
    findings = []
    for key, answer in sorted(answers.items()):
        name, _, version = key.partition("==")
        findings += advisories.python_findings(name, version, answer)
        if "vulnerabilities" in answer:
            report.checked.add(name)
    if unserved := [key for key, answer in answers.items() if "vulnerabilities" not in answer]:
        shipped = locks.read_lock(locks.RUNTIME, (locks.ROOT / locks.RUNTIME).read_text())[0]
        # A vulnerability with a known fix is fixed in the newest release.
        old = [
            f"{pin.name} ({pin.version}, newest {newest})"
            for pin in shipped
            if (newest := answers.get(f"{pin.name}=={pin.version}", {}).get("newest")) not in (None, pin.version)
        ]
        report.warn(
            f"Python packages: not served: the index has no advisories of {len(unserved)} of {len(releases)} releases; "
            f"only withdrawn ones are found. What ships is the newest release"
            + (f" but for {', '.join(old)}; upgrade: UPGRADE=1 make lock" if old else "")
        )
    return findings


def go_programs() -> Iterator[tuple[str, str, Path]]:
    """Yield package, version and path of each Go program that a package of the lab's lock file has brought."""
    for pin in locks.read_lock("lab", (locks.ROOT / "requirements-lab.lock").read_text())[0]:
        for file in importlib.metadata.files(pin.name) or ():
            path = Path(str(file.locate()))
            if path.is_file() and path.stat().st_size > 1 << 20:
                yield pin.name, pin.version, path


def check_go(report: Report) -> list[Finding]:
    """Return the findings of the Go programs, with the Go vulnerability database."""
    try:
        try:
            folder, version = sources.fetch_database()
        except sources.Unreachable as error:
            kept = sources.kept_database()
            if kept is None:
                report.warn(f"Go programs: unreachable: the Go module proxy does not answer ({error})")
                return []
            folder, version = kept
            report.warn(f"Go programs: the Go module proxy does not answer ({error}); the database {version} is used")
        database = sources.read_database(folder)
        findings = []
        for package, locked, path in go_programs():
            modules = advisories.modules_of(sources.module_listing(path))
            findings += advisories.go_findings(package, locked, modules, database, path.read_bytes().__contains__)
            report.checked.add(package)
    except sources.NotServed as error:
        report.warn(f"Go programs: not served: {error}")
        return []
    return findings


def main() -> int:
    """Print findings and warnings; return 1 if the check failed, otherwise 0."""
    now = datetime.datetime.now(datetime.UTC)
    report = Report()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotnic" / "vulnerabilities.json"
    exceptions, problems = advisories.read_exceptions(tomllib.loads(EXCEPTIONS.read_text()), now.date())
    findings = check_go(report) + check_python(sources.pip_index(), cache, now, report)
    remaining, unused = advisories.unaccepted(findings, exceptions)
    for problem in problems:
        report.fail(problem)
    for one in remaining:
        what = f"{one.package} {one.version}" + (f" contains {one.part}" if one.part else "")
        report.fail(f"{what}: {', '.join(one.ids)}: {one.summary}\n  {one.remedy()}")
    for acceptance in (one for one in unused if one.package in report.checked):
        report.warn(
            f"scripts/check/exceptions.toml: {acceptance.package}: nothing was found that the exception accepts"
        )
    print("\n".join(report.lines), end="\n" if report.lines else "")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
