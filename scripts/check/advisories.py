"""Which known vulnerabilities affect a pinned package or a Go program, and which of them are accepted for a time.

Pure. `scripts/check/sources.py` asks the registries, `scripts/check/vulnerabilities.py` reports. Advisories of Go have
the form of the Open Source Vulnerability schema, those of Python that of an index's JSON documents.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from packaging.version import InvalidVersion, Version

MAX_EXCEPTION = datetime.timedelta(days=120)
"""How far ahead an exception may end: what is accepted is looked at again."""


class Finding(NamedTuple):
    """A vulnerability of something that is pinned.

    :ivar package: the package that a lock file pins, or the program of the tests.
    :ivar ids: the advisory's id and its other names.
    :ivar part: the Go module inside it; empty for a Python package.
    :ivar fixed: the first version without it of the package or, if there is one, of the part; empty if none is known.
    """

    package: str
    version: str
    ids: tuple[str, ...]
    summary: str
    part: str = ""
    fixed: str = ""

    def remedy(self) -> str:
        """Return what to do."""
        accept = f"or accept it for a time in scripts/check/exceptions.toml (id {self.ids[0]})"
        if self.part:
            wanted = f" with {self.part} {self.fixed} or later" if self.fixed else ""
            return f"upgrade {self.package} to a release{wanted} (UPGRADE=1 make lock), {accept}"
        if self.fixed:
            return f"require {self.package}>={self.fixed} in pyproject.toml and run: make lock; {accept}"
        return f"no release without it is known: replace {self.package}, {accept}"


class Acceptance(NamedTuple):
    """An exception: vulnerabilities of a package that are accepted until a day.

    :ivar ids: ids of advisories, or ``withdrawn`` for a withdrawn release.
    """

    package: str
    ids: frozenset[str]
    until: datetime.date
    reason: str


def read_exceptions(content: Mapping[str, Any], today: datetime.date) -> tuple[list[Acceptance], list[str]]:
    """Return the exceptions that hold today, and what is wrong with the others."""
    holding, problems = [], []
    for one in content.get("exception", ()):
        where = f"scripts/check/exceptions.toml: {one.get('package', '?')}"
        until, reason = one.get("until"), one.get("reason", "")
        if not one.get("package") or not one.get("ids") or not reason or not isinstance(until, datetime.date):
            problems.append(f"{where}: an exception needs package, ids, until (a date) and reason")
        elif until < today:
            problems.append(f"{where}: the exception ended on {until}; upgrade the package, or give a new date")
        elif until - today > MAX_EXCEPTION:
            problems.append(f"{where}: the exception ends on {until}, more than {MAX_EXCEPTION.days} days from now")
        else:
            holding.append(Acceptance(one["package"], frozenset(one["ids"]), until, reason))
    return holding, problems


def unaccepted(findings: Iterable[Finding], exceptions: Sequence[Acceptance]) -> tuple[list[Finding], list[Acceptance]]:
    """Return the findings without an exception, and the exceptions without a finding."""
    used: set[Acceptance] = set()
    open_findings = []
    for finding in findings:
        matching = [one for one in exceptions if one.package == finding.package and one.ids & set(finding.ids)]
        used.update(matching)
        if not matching:
            open_findings.append(finding)
    return open_findings, [one for one in exceptions if one not in used]


def python_findings(package: str, version: str, answer: Mapping[str, Any]) -> list[Finding]:
    """Return the vulnerabilities that an index knows of a release, and whether it was withdrawn (yanked).

    :param answer: ``vulnerabilities`` as in the index's JSON document, and ``yanked``, the reason or ``None``.
    """
    found = []
    for one in answer.get("vulnerabilities") or ():
        if one.get("withdrawn"):
            continue
        later = [text for text in one.get("fixed_in") or () if _is_later(text, version)]
        fixed = min(later, key=Version, default="")
        ids = (one["id"], *one.get("aliases", ()))
        found.append(Finding(package, version, ids, _line(one.get("summary") or one.get("details") or ""), "", fixed))
    if (reason := answer.get("yanked")) is not None:
        found.append(Finding(package, version, ("withdrawn",), f"the release was withdrawn: {_line(reason or '-')}"))
    return found


def _is_later(text: str, version: str) -> bool:
    try:
        return Version(text) > Version(version)
    except InvalidVersion:
        return False


def _line(text: str) -> str:
    return " ".join(text.split())[:120]


def modules_of(listing: str) -> dict[str, str]:
    """Return the modules of a Go program by path with their versions, from the output of ``go version -m``.

    The standard library is the module ``stdlib``. A module without a version is left out.
    """
    found: dict[str, str] = {}
    last = ""
    for line in listing.splitlines():
        fields = line.split("\t")
        if not line.startswith("\t"):
            if version := re.search(r": go(\d+\.\d+(?:\.\d+)?(?:rc\d+)?)", line):
                found["stdlib"] = version[1]
        elif len(fields) > 3 and fields[1] in ("mod", "dep"):
            last = fields[2]
            found[last] = fields[3]
        elif len(fields) > 3 and fields[1] == "=>":
            del found[last]
            found[fields[2]] = fields[3]
    return {path: version for path, version in found.items() if re.match(r"v?\d", version)}


def go_findings(
    package: str,
    version: str,
    modules: Mapping[str, str],
    advisories: Mapping[str, Sequence[Mapping[str, Any]]],
    contains: Callable[[bytes], bool],
) -> list[Finding]:
    """Return the vulnerabilities of a Go program: those of its modules whose functions are linked into it.

    :param advisories: by module.
    :param contains: returns whether the program contains a text. Go keeps the names of functions, also in a stripped
        program.
    """
    found = []
    for path, at in modules.items():
        for advisory in advisories.get(path, ()):
            for affected in advisory["affected"]:
                if affected["package"]["name"] != path or advisory.get("withdrawn"):
                    continue
                fixed = fixed_version(affected.get("ranges", ()), at)
                imports = affected.get("ecosystem_specific", {}).get("imports", ())
                if fixed is not None and (not imports or any(_is_linked(one, contains) for one in imports)):
                    ids = (advisory["id"], *advisory.get("aliases", ()))
                    found.append(Finding(package, version, ids, _line(advisory.get("summary", "")), f"{path}", fixed))
    return found


def _is_linked(imported: Mapping[str, Any], contains: Callable[[bytes], bool]) -> bool:
    """Return whether a function of a vulnerable package is in a program; without names of functions, any of it."""
    folder, slash, last = imported["path"].rpartition("/")
    # Go writes a dot in the last element so, as it separates the function's name.
    prefix = f"{folder}{slash}{last.replace('.', '%2e')}."
    if not imported.get("symbols"):
        return contains(prefix.encode())
    for symbol in imported["symbols"]:
        kind, dot, method = symbol.partition(".")
        names = (f"{kind}.{method}", f"(*{kind}).{method}") if dot else (symbol,)
        if any(contains(f"{prefix}{name}\0".encode()) for name in names):
            return True
    return False


def fixed_version(ranges: Iterable[Mapping[str, Any]], version: str) -> str | None:
    """Return the first version without the vulnerability, empty if none is known; ``None``: it is not in this version.

    :param ranges: as in the Open Source Vulnerability schema; only semantic versions are compared.
    """
    at = _version_key(version)
    for one in ranges:
        if one.get("type") != "SEMVER":
            continue
        events = sorted(
            (_version_key(text), kind, text)
            for event in one["events"]
            for kind, text in event.items()
            if kind in ("introduced", "fixed")
        )
        before = [kind for key, kind, _ in events if key <= at]
        if before and before[-1] == "introduced":
            return next((text for key, kind, text in events if kind == "fixed" and key > at), "")
    return None


def _version_key(text: str) -> tuple[Any, ...]:
    """Return what orders semantic versions: a version before its release is smaller, and 0 the smallest of all."""
    if text == "0":
        return ((-1,),)
    core, _, pre = text.removeprefix("v").partition("+")[0].partition("-")
    if candidate := re.fullmatch(r"(\d+\.\d+)(rc\d+)", core):
        core, pre = candidate[1], candidate[2]
    numbers = [int(number) for number in core.split(".")]
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split("."))
    return (tuple(numbers + [0] * (3 - len(numbers))), (0, *parts) if pre else (1,))
