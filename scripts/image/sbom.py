"""Turn the list of an image's contents into a software bill of materials (CycloneDX 1.6, JSON).

It lists what is in the image, not what a lock file allows: a lock file has packages of every platform, and none of the
base image's. This module does no I/O; `scripts/image/build` runs `LISTING` in the image and writes the document.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

LISTING = """
import importlib.metadata, json, pathlib, platform
status, release = pathlib.Path("/var/lib/dpkg/status"), platform.freedesktop_os_release()
print(json.dumps({
    "python": platform.python_version(),
    "release": release,
    "dpkg": status.read_text() if status.exists() else "",
    "distributions": [
        {"name": one.name, "version": one.version, "license": one.metadata.get("License-Expression")}
        for one in importlib.metadata.distributions()
    ],
}))
"""
"""A program for the image's Python; it prints what `bill_of_materials` takes."""

_NAMESPACE = uuid.UUID("5d0c0f2e-1b3f-4f0a-8d0e-6a1f5a2d9c41")


def bill_of_materials(listed: Mapping[str, Any], *, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the document.

    The same contents give the same document, serial number included.

    :param listed: the output of `LISTING`.
    :param name: name of the image.
    :param labels: the image's labels.
    """
    components = {
        one["bom-ref"]: one
        for one in (
            _component("application", f"pkg:generic/python@{listed['python']}", "python", listed["python"], None),
            *_distributions(listed["distributions"]),
            *_debian_packages(listed["dpkg"], listed["release"]),
        )
    }
    image = {"type": "container", "bom-ref": name, "name": name}
    if version := labels.get("org.opencontainers.image.version"):
        image["version"] = version
    properties = [{"name": key, "value": value} for key, value in sorted(labels.items())]
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**image, "properties": properties}},
        "components": [components[reference] for reference in sorted(components)],
    }
    return {**document, "serialNumber": uuid.uuid5(_NAMESPACE, json.dumps(document, sort_keys=True)).urn}


def _component(kind: str, purl: str, name: str, version: str, expression: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if expression:
        found["licenses"] = [{"expression": expression}]
    return found


def _distributions(distributions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in distributions:
        name = re.sub(r"[-_.]+", "-", one["name"]).lower()
        purl = f"pkg:pypi/{quote(name)}@{quote(one['version'])}"
        yield _component("library", purl, name, one["version"], one["license"])


def _debian_packages(status: str, release: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    distribution = release.get("ID", "debian")
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        qualifiers = f"arch={fields['Architecture']}&distro={distribution}-{release.get('VERSION_ID', '')}"
        purl = f"pkg:deb/{distribution}/{quote(name)}@{quote(version)}?{qualifiers}"
        yield _component("library", purl, name, version, None)
