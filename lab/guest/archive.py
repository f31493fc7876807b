"""Write the two archive formats of the lab's images: a `newc` cpio and a docker-archive tar.

All functions are pure and their output is reproducible (no times, no owners), so that a hash identifies an image.
`lab.guest.image` decides what the guest's image contains.
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
class ArchiveEntry:
    """One file of an archive.

    :ivar mode: type and permission bits.
    :ivar data: content of a file, or target of a symbolic link.
    """

    name: str
    mode: int
    data: bytes = b""


def directory(name: str) -> ArchiveEntry:
    """Return a folder with mode 755."""
    return ArchiveEntry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, *, executable: bool = False) -> ArchiveEntry:
    """Return a regular file with mode 755 or 644."""
    return ArchiveEntry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(name: str, target: str) -> ArchiveEntry:
    """Return a symbolic link to `target`."""
    return ArchiveEntry(name, stat.S_IFLNK | 0o777, target.encode())


def with_parents(entries: list[ArchiveEntry]) -> list[ArchiveEntry]:
    """Return `entries` with every missing parent folder before its first child."""
    seen: set[str] = set()
    result: list[ArchiveEntry] = []
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


def cpio(entries: list[ArchiveEntry]) -> bytes:
    """Return a `newc` cpio archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = io.BytesIO()

    def write(number: int, name: str, mode: int, data: bytes) -> None:
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # Owner and time are 0, so that equal inputs give equal archives.
        fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        # The format pads the header with the name, and the data, to multiples of 4 bytes.
        out.write(b"\0" * (-out.tell() % 4))
        out.write(data)
        out.write(b"\0" * (-out.tell() % 4))

    for number, entry in enumerate(with_parents(entries), start=1):
        write(number, entry.name, entry.mode, entry.data)
    write(0, _TRAILER, 0, b"")
    return out.getvalue()


def tar(entries: list[ArchiveEntry]) -> bytes:
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


def docker_archive(name: str, layer: list[ArchiveEntry], command: list[str]) -> bytes:
    """Return a one-layer image in the format of `docker save`, which `ctr images import` reads.

    :param name: full image reference with its tag.
    :param command: the entry point.
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
