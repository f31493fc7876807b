"""Find out what an image contains: a program for its Python, and the Debian packages behind the lab's unpacked tools.

`scripts/image/sbom.py` turns the result into a document.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

LISTING = r"""
import hashlib, importlib.metadata, json, os, pathlib, platform, re

def licenses(copyright):
    try:
        text = copyright.read_text(errors="replace")
    except OSError:
        return []
    if not text.startswith("Format:"):
        return []
    found = re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)
    return sorted({" ".join(one.split()) for one in found})

def distribution(one):
    direct = json.loads(one.read_text("direct_url.json") or "{}").get("archive_info", {})
    classifiers = one.metadata.get_all("Classifier") or ()
    classified = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    named = one.metadata.get("License") or ""
    return {
        "name": one.name,
        "version": one.version,
        "license": one.metadata.get("License-Expression"),
        "license_names": classified or [named.strip()] * bool(named.strip() and "\n" not in named.strip()),
        "sha256": direct.get("hashes", {}).get("sha256") or direct.get("hash", "").removeprefix("sha256="),
        "requires": one.requires or [],
    }

def length(data, at):
    size = shift = 0
    while True:
        byte = data[at]
        size, at, shift = size | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return size, at

def program(path):
    # The modules of a Go program: debug/buildinfo describes the format, which programs of Go 1.18 and later have.
    data = path.read_bytes()
    found = {"path": str(path), "sha256": hashlib.sha256(data).hexdigest(), "go": "", "modules": ""}
    at = data.find(b"\xff Go buildinf:")
    if at >= 0 and data[at + 15] & 2:
        size, at = length(data, at + 32)
        found["go"] = data[at:at + size].decode()
        size, at = length(data, at + size)
        # A marker of 16 bytes is on both sides.
        found["modules"] = data[at + 16:at + size - 16].decode(errors="replace")
    return found

status, release = pathlib.Path("/var/lib/dpkg/status"), platform.freedesktop_os_release()
dpkg = status.read_text() if status.exists() else ""
packages = re.findall(r"^Package: (\S+)$", dpkg, re.MULTILINE)
folders = [pathlib.Path("/opt/hotnic/bin"), pathlib.Path("/opt/hotnic/share")]
folders += [pathlib.Path("/opt/hotnic-lab/tools", name) for name in ("bin", "cni", "guest", "images")]
files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
print(json.dumps({
    "python": platform.python_version(),
    "release": release,
    "dpkg": dpkg,
    "licenses": {name: licenses(pathlib.Path("/usr/share/doc", name, "copyright")) for name in packages},
    "distributions": [distribution(one) for one in importlib.metadata.distributions()],
    "programs": [
        program(file) for file in files if file.is_file() and not file.is_symlink() and file.read_bytes()[:2] != b"#!"
    ],
}))
"""
"""A program for the image's Python; it prints what `scripts.image.sbom.bill_of_materials` takes."""

BUNDLES = ("containerd", "runc", "cni", "busybox", "agent", "monitor")
"""The folders of unpacked Debian packages whose files are copied into the lab's image or its guest's."""


def unpacked_packages(tools: Path) -> list[dict[str, Any]]:
    """Return the Debian packages that the lab's tools were unpacked from, with their licences.

    :param tools: the tools folder.
    """
    found = {}
    for documents in (folder for name in BUNDLES for folder in (tools / "unpacked" / name).glob("usr/share/doc/*")):
        changelog = next(
            (path for name in ("changelog.Debian.gz", "changelog.gz") if (path := documents / name).is_file()), None
        )
        if changelog is None:
            continue
        with gzip.open(changelog, "rt", errors="replace") as lines:
            entry = re.match(r"(\S+) \(([^)]+)\)", lines.readline())
        if entry:
            one = {"name": documents.name, "source": entry[1], "version": entry[2]}
            found[documents.name] = {**one, "licenses": _licenses(documents / "copyright")}
    if kernel := kernel_package(tools / "guest" / "vmlinuz"):
        found[kernel["name"]] = kernel
    return [found[name] for name in sorted(found)]


def kernel_package(image: Path) -> dict[str, Any] | None:
    """Return the Debian package of a kernel, by the text in its header; ``None`` if there is none."""
    if not image.is_file():
        return None
    data = image.read_bytes()[:65536]
    at = int.from_bytes(data[0x20E:0x210], "little") + 0x200
    text = data[at : data.find(b"\0", at)].decode(errors="replace")
    found = re.match(r"(\S+) .* Debian (\S+)", text)
    if not found:
        return None
    return {"name": f"linux-image-{found[1]}", "source": "linux", "version": found[2], "licenses": ["GPL-2"]}


def _licenses(copyright: Path) -> list[str]:
    if not copyright.is_file() or not (text := copyright.read_text(errors="replace")).startswith("Format:"):
        return []
    return sorted({" ".join(one.split()) for one in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)})
