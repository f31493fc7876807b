"""Turn the list of an image's contents into a software bill of materials (CycloneDX 1.6, JSON).

It lists what is in the image, not what a lock file allows: a lock file has packages of every platform, and none of the
base image's. This module does no I/O; `scripts/image/contents.py` finds the contents, `scripts/image/build` writes the
document, and docs/install.md says how to read it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

_NAMESPACE = uuid.UUID("5d0c0f2e-1b3f-4f0a-8d0e-6a1f5a2d9c41")


def bill_of_materials(
    listed: Mapping[str, Any], *, name: str, labels: Mapping[str, str], unpacked: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the document.

    The same contents give the same document, serial number included.

    :param listed: the output of `scripts.image.contents.LISTING`.
    :param name: name of the image.
    :param labels: the image's labels.
    :param unpacked: the Debian packages whose files were copied into the image without installing them.
    """
    components = {
        one["bom-ref"]: one
        for one in (
            _component("application", f"pkg:generic/python@{listed['python']}", "python", listed["python"]),
            *_distributions(listed["distributions"]),
            *_unpacked_packages(unpacked, listed["release"]),
            # The same version may be installed, too.
            *_debian_packages(listed),
            *_programs(listed.get("programs", ())),
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
        "metadata": {
            "lifecycles": [{"phase": "post-build"}],
            "tools": {"components": [{"type": "application", "name": "scripts/image/sbom.py", "group": "hotnic"}]},
            "component": {**image, "properties": properties},
        },
        "components": [components[reference] for reference in sorted(components)],
        "dependencies": [
            {"ref": name, "dependsOn": sorted(components)},
            *_dependencies(listed["distributions"], components),
        ],
    }
    return {**document, "serialNumber": uuid.uuid5(_NAMESPACE, json.dumps(document, sort_keys=True)).urn}


def _component(
    kind: str,
    purl: str,
    name: str,
    version: str,
    *,
    expression: str | None = None,
    names: Sequence[str] = (),
    sha256: str = "",
    properties: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a component.

    :param expression: its licence as an SPDX expression.
    :param names: names of its licences, where no expression is known.
    :param sha256: of the archive or file that it comes from.
    """
    found: dict[str, Any] = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if expression:
        found["licenses"] = [{"expression": expression}]
    elif names:
        found["licenses"] = [{"license": {"name": one}} for one in names]
    if sha256:
        found["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    if properties:
        found["properties"] = [{"name": f"hotnic:{key}", "value": value} for key, value in sorted(properties.items())]
    return found


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pypi(one: Mapping[str, Any]) -> str:
    return f"pkg:pypi/{quote(_normalized(one['name']))}@{quote(one['version'])}"


def _distributions(distributions: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in distributions:
        yield _component(
            "library",
            _pypi(one),
            _normalized(one["name"]),
            one["version"],
            expression=one.get("license"),
            names=one.get("license_names", ()),
            sha256=one.get("sha256", ""),
        )


def _dependencies(
    distributions: Sequence[Mapping[str, Any]], components: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield what each Python package requires of those in the image. Extras count if their packages are there."""
    references = {_normalized(one["name"]): _pypi(one) for one in distributions}
    for one in sorted(distributions, key=_pypi):
        names = {
            _normalized(found[0])
            for text in one.get("requires", ())
            if (found := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", text))
        }
        below = sorted({references[name] for name in names if name in references} - {_pypi(one)})
        if below and _pypi(one) in components:
            yield {"ref": _pypi(one), "dependsOn": below}


def _debian(name: str, version: str, release: Mapping[str, str], architecture: str, source: str) -> str:
    """Return the package URL of a Debian package; ``upstream`` is the source package, to which advisories refer."""
    distribution = release.get("ID", "debian")
    qualifiers = f"arch={architecture}&distro={distribution}-{release.get('VERSION_ID', '')}"
    if source and source != name:
        qualifiers += f"&upstream={quote(source)}"
    return f"pkg:deb/{distribution}/{quote(name)}@{quote(version)}?{qualifiers}"


def _debian_packages(listed: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for stanza in listed["dpkg"].split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        source = fields.get("Source", "").partition(" ")[0]
        purl = _debian(name, version, listed["release"], fields["Architecture"], source)
        yield _component("library", purl, name, version, names=listed.get("licenses", {}).get(name, ()))


def _unpacked_packages(unpacked: Sequence[Mapping[str, Any]], release: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for one in unpacked:
        purl = _debian(one["name"], one["version"], release, "amd64", one["source"])
        yield _component(
            "library", purl, one["name"], one["version"], names=one["licenses"], properties={"unpacked": "true"}
        )


def _programs(programs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each program of hotnic's own folders, with the modules inside it where Go has built it."""
    for one in programs:
        name = one["path"].rpartition("/")[2]
        modules = re.findall(r"^(mod|dep)\t(\S+)\t(\S+)", one["modules"], re.MULTILINE)
        version = next((version for kind, _, version in modules if kind == "mod"), "")
        found = _component(
            "application" if one["go"] else "file",
            f"pkg:generic/{quote(name)}{f'@{quote(version)}' if version else ''}",
            name,
            version,
            sha256=one["sha256"],
            properties={"path": one["path"]},
        )
        found["bom-ref"] = f"file:{one['path']}"
        if not one["go"]:
            # A file has no package URL and no version of its own.
            del found["purl"], found["version"]
        else:
            parts = [("stdlib", one["go"].removeprefix("go")), *((path, at) for _, path, at in modules)]
            found["components"] = [
                _component("library", f"pkg:golang/{quote(path)}@{quote(at)}", path, at) | {"bom-ref": f"{path}#{name}"}
                for path, at in parts
            ]
        yield found
