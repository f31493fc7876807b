"""Writes the two archive formats the lab's images need: a `newc` cpio and a docker-archive tar.

Bytes in, bytes out and always the same bytes for the same input (no times, no owners), so that an image is
known by its hash. What goes into the guest's image is decided in `services.lab.guest.image`.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
from dataclasses import dataclass
from typing import Final

_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive; `mode` holds type and permission bits, a link's target stands in `data`."""

    name: str
    mode: int
    data: bytes = b""


def directory(name: str) -> Entry:
    """Return a folder that everyone may read."""
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, *, executable: bool = False) -> Entry:
    """Return a regular file."""
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(name: str, target: str) -> Entry:
    """Return a symbolic link to `target`."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def with_parents(entries: list[Entry]) -> list[Entry]:
    """Return `entries` with every missing parent folder in front of its first child."""
    seen: set[str] = set()
    result: list[Entry] = []
    for entry in entries:
        parts = entry.name.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent not in seen:
                seen.add(parent)
                result.append(directory(parent))
        if entry.name not in seen:
            seen.add(entry.name)
            result.append(entry)
    return result


def cpio(entries: list[Entry]) -> bytes:
    """Return a `newc` cpio archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = io.BytesIO()

    def write(number: int, name: str, mode: int, data: bytes) -> None:
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        out.write(b"\0" * (-out.tell() % 4))
        out.write(data)
        out.write(b"\0" * (-out.tell() % 4))

    for number, entry in enumerate(with_parents(entries), start=1):
        write(number, entry.name, entry.mode, entry.data)
    write(0, _TRAILER, 0, b"")
    return out.getvalue()


def tar(entries: list[Entry]) -> bytes:
    """Return an uncompressed tar archive of `entries`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for entry in with_parents(entries):
            info = tarfile.TarInfo(entry.name)
            info.mode = stat.S_IMODE(entry.mode)
            if stat.S_ISDIR(entry.mode):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif stat.S_ISLNK(entry.mode):
                info.type = tarfile.SYMTYPE
                info.linkname = entry.data.decode()
                archive.addfile(info)
            else:
                info.size = len(entry.data)
                archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


def docker_archive(name: str, layer: list[Entry], command: list[str]) -> bytes:
    """Return a one-layer image as `docker save` writes it (what `ctr images import` reads).

    `name` is the full image reference with its tag, `command` the entry point.
    """
    layer_tar = tar(layer)
    digest = hashlib.sha256(layer_tar).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        },
        sort_keys=True,
    ).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]
    return tar(
        [
            file(config_name, config),
            file(f"{digest}/layer.tar", layer_tar),
            file("manifest.json", json.dumps(manifest).encode()),
        ]
    )
