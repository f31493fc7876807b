"""The archives of the guest image, checked against what the kernel and containerd expect."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from lab.guest import archive
from lab.guest.image import module_dependencies


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a `newc` archive as the kernel does; fail on misaligned entries."""
    found, at = {}, 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = at + 110 + name_size
        start += -start % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[start : start + size])
        at = start + size + -size % 4


names = st.lists(st.text("abcxyz.-", min_size=1, max_size=8), min_size=1, max_size=4).map("/".join)


@given(st.dictionaries(names, st.binary(max_size=70), max_size=8))
def test_cpio_archive_reads_back(files: dict[str, bytes]) -> None:
    # A name that is also the parent folder of another one cannot be a file.
    files = {n: d for n, d in files.items() if not any(o.startswith(n + "/") for o in files)}
    found = read_cpio(archive.cpio([archive.file(name, data) for name, data in files.items()]))
    assert {name: data for name, (mode, data) in found.items() if mode & 0o170000 == 0o100000} == files
    for name in found:
        parent = name.rpartition("/")[0]
        assert not parent or parent in found


def test_cpio_links_and_modes() -> None:
    found = read_cpio(
        archive.cpio([archive.symlink("bin/sh", "busybox"), archive.file("init", b"#!", executable=True)])
    )
    assert found["bin/sh"] == (0o120777, b"busybox")
    assert found["init"] == (0o100755, b"#!")
    assert found["bin"][0] == 0o040755


def test_docker_archive_is_consistent_and_reproducible() -> None:
    layer = [archive.file("bin/sh", b"x", executable=True)]
    image = archive.docker_archive("example/pause:1", layer, ["/bin/sh"])
    assert image == archive.docker_archive("example/pause:1", layer, ["/bin/sh"])
    with tarfile.open(fileobj=io.BytesIO(image)) as opened:
        parts = {m.name: opened.extractfile(m) for m in opened.getmembers() if m.isfile()}
        content = {name: part.read() for name, part in parts.items() if part is not None}
    (manifest,) = json.loads(content["manifest.json"])
    assert manifest["RepoTags"] == ["example/pause:1"]
    config = json.loads(content[manifest["Config"]])
    (layer_tar,) = (content[name] for name in manifest["Layers"])
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer_tar).hexdigest()}"]


def test_module_dependencies_are_read_from_modinfo() -> None:
    assert module_dependencies(b"\x7fELF..\0license=GPL\0depends=virtio,net_failover\0") == [
        "virtio",
        "net_failover",
    ]
    assert module_dependencies(b"\0depends=\0") == []
    assert module_dependencies(b"") == []
