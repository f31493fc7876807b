"""Ask the registries that are configured on this machine for known vulnerabilities of what the lock files pin.

Python packages: the index of pip's configuration, which may serve advisories in its JSON documents and says which
releases were withdrawn. Go programs: the Go vulnerability database, which is itself a Go module that `go` fetches.
The answers are interpreted by `scripts/check/advisories.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from packaging.version import InvalidVersion, Version

DATABASE = "golang.org/x/vulndb"
_SIMPLE = {"Accept": "application/vnd.pypi.simple.v1+json"}
_PROBES = 4
"""Releases that are asked for before an index counts as one without advisories."""


class Unreachable(Exception):
    """A registry gave no answer, so another try may succeed."""


class NotServed(Exception):
    """A registry answered that it has no such thing."""


class Index(NamedTuple):
    """A package index.

    :ivar simple: its address for pip.
    :ivar json: where it serves a document for each release, if it does.
    :ivar certificates: file with the CAs to trust; ``None``: those of the system.
    """

    simple: str
    json: str
    certificates: str | None = None


def configured_index(listing: str, default: str) -> Index:
    """Return the index of pip's configuration.

    :param listing: the output of ``pip config list``.
    :param default: pip's own default.
    """
    found = dict(re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", listing, re.MULTILINE))
    simple = found.get("index-url", default).rstrip("/")
    return Index(simple, re.sub(r"/simple$", "/pypi", simple), found.get("cert"))


def pip_index() -> Index:
    """Return the index that pip uses on this machine."""
    from pip._internal.models.index import PyPI

    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=False, capture_output=True, text=True, timeout=30
    ).stdout
    return configured_index(listing, PyPI.simple_url)


async def ask_index(index: Index, releases: Iterable[tuple[str, str]], timeout: float = 10.0) -> dict[str, Any]:
    """Return what an index says of releases, by ``NAME==VERSION``.

    Each answer has ``yanked`` (the reason, or ``None``) and ``newest`` and, where the index serves advisories,
    ``vulnerabilities``.

    :raises Unreachable: it did not answer, or not for every release.
    """
    context = ssl.create_default_context(cafile=index.certificates) if index.certificates else True
    limit = asyncio.Semaphore(16)
    async with aiohttp.ClientSession(trust_env=True, connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def get(url: str, headers: Mapping[str, str] | None = None) -> Any:
            async with limit, session.get(url, headers=headers) as response:
                if response.status in (401, 403, 404, 406, 410):
                    return None
                response.raise_for_status()
                if "json" not in (response.content_type or ""):
                    return None
                return json.loads(await response.read())

        async def release(name: str, version: str, advisories: bool) -> dict[str, Any]:
            page = await get(f"{index.simple}/{name}/", _SIMPLE)
            answer = summarize(page, version) if page else {}
            document = await get(f"{index.json}/{name}/{version}/json") if advisories else None
            return answer | ({"vulnerabilities": document.get("vulnerabilities") or []} if document else {})

        asked = sorted(set(releases))
        try:
            async with asyncio.timeout(timeout):
                first = await asyncio.gather(*(release(*one, True) for one in asked[:_PROBES]))
                served = any("vulnerabilities" in one for one in first)
                rest = await asyncio.gather(*(release(*one, served) for one in asked[_PROBES:]))
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            # The text of the error may contain the address, and that a password.
            raise Unreachable(type(error).__name__) from None
    return {f"{name}=={version}": answer for (name, version), answer in zip(asked, [*first, *rest], strict=True)}


def summarize(page: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return whether a release was withdrawn, and the newest release, from an index's page of a package."""
    yanked: str | None = None
    usable: set[Version] = set()
    for file in page["files"]:
        text = _version_of(file["filename"])
        try:
            found = Version(text)
        except InvalidVersion:
            continue
        if found == Version(version) and file.get("yanked"):
            yanked = file["yanked"] if isinstance(file["yanked"], str) else ""
        elif not file.get("yanked") and not found.is_prerelease:
            usable.add(found)
    return {"yanked": yanked, "newest": str(max(usable, default=Version(version)))}


def _version_of(filename: str) -> str:
    stem = re.sub(r"\.(whl|tar\.gz|zip|tar\.bz2)$", "", filename)
    return stem.split("-")[1] if filename.endswith(".whl") else stem.rpartition("-")[2]


def _go(*arguments: str, folder: str) -> str:
    """Run ``go`` and return its output.

    :raises Unreachable: it failed.
    :raises NotServed: there is no ``go``.
    """
    environ = {**os.environ, "GOFLAGS": "-mod=mod", "GOWORK": "off"}
    try:
        return subprocess.run(
            ["go", *arguments], check=True, capture_output=True, text=True, timeout=60, cwd=folder, env=environ
        ).stdout
    except FileNotFoundError:
        raise NotServed("Go is not installed") from None
    except (subprocess.SubprocessError, OSError) as error:
        raise Unreachable(type(error).__name__) from None


def fetch_database() -> tuple[Path, str]:
    """Return the folder of the newest Go vulnerability database, and its version; `go` downloads it if it is new.

    :raises Unreachable: the Go module proxy did not answer.
    :raises NotServed: there is no ``go``.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(_go("mod", "download", "-json", f"{DATABASE}@latest", folder=folder))
    return Path(found["Dir"]), found["Version"]


def kept_database() -> tuple[Path, str] | None:
    """Return the newest Go vulnerability database that an earlier check has downloaded."""
    with tempfile.TemporaryDirectory() as folder:
        modules = Path(_go("env", "GOMODCACHE", folder=folder).strip())
    kept = sorted(modules.glob(f"{DATABASE}@*"))
    return (kept[-1], kept[-1].name.partition("@")[2]) if kept else None


def read_database(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the advisories of a Go vulnerability database by module."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in (folder / "data" / "osv").glob("*.json"):
        advisory = json.loads(file.read_bytes())
        for module in {one["package"]["name"] for one in advisory["affected"]}:
            found[module].append(advisory)
    return found


def module_listing(program: Path) -> str:
    """Return the modules of a Go program, as ``go version -m`` prints them.

    :raises NotServed: there is no ``go``.
    """
    return _go("version", "-m", str(program.resolve()), folder=str(program.parent))
