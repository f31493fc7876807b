"""Build the guest's initramfs (busybox, virtio modules, guest agent) and the pods' pause image.

The input is the unpacked Debian packages in the tools folder, the output two files. The script `init.sh` beside this
file runs inside the guest. `lab.guest.qemu` starts guests from the image, and `lab.guest.console`
parses the lines that they print.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import subprocess
from pathlib import Path
from typing import Final

from lab.guest import archive
from lab.tools import PAUSE_IMAGE, ToolsMissingError

WANTED_MODULES: Final = ("virtio_net", "virtio_pci", "virtio_console")
"""The drivers that the guest needs, loaded in this order; their dependencies are added."""

# A shell runs its trap after the command in the foreground has ended; a signal ends `wait` at once.
_PAUSE_SCRIPT: Final = 'trap "exit 0" TERM INT; sleep 2147483647 & wait'
_INIT: Final = Path(__file__).with_name("init.sh")


def busybox(unpacked: Path) -> list[archive.ArchiveEntry]:
    """Return busybox with a link for each of its commands."""
    binary = _find(unpacked / "busybox", "busybox")
    listed = subprocess.run([binary, "--list"], check=True, capture_output=True, text=True, timeout=10)
    names = [name for name in listed.stdout.split() if name not in ("busybox", "linuxrc")]
    return [
        archive.file("bin/busybox", binary.read_bytes(), executable=True),
        *(archive.symlink(f"bin/{name}", "busybox") for name in names),
    ]


def modules(unpacked: Path) -> list[archive.ArchiveEntry]:
    """Return the guest's kernel modules, their `modules.dep` for modprobe, and the list of modules to load.

    They are stored uncompressed, because busybox reads no `.ko.xz`. Modules that are built into the kernel (in Debian
    13 all of virtio except the network driver) are left out.

    :raises ToolsMissingError: a module is not in the package.
    """
    loaded: dict[str, bytes] = {}
    needs: dict[str, list[str]] = {}

    def load(name: str) -> list[str]:
        if name not in loaded:
            path = _find(unpacked / "kernel", f"{name}.ko*")
            data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            # A module's dependencies come before the module itself.
            before = [other for needed in module_dependencies(data) for other in [*load(needed), needed]]
            loaded[name] = data
            needs[name] = list(dict.fromkeys(before))
        return needs[name]

    built_in = built_in_modules(unpacked)
    wanted = [name for name in WANTED_MODULES if name not in built_in]
    for name in wanted:
        load(name)
    release = _find(unpacked / "kernel", "vmlinuz-*").name.removeprefix("vmlinuz-")
    folder = f"lib/modules/{release}"
    # modprobe loads the modules of a line in modules.dep from right to left.
    table = "".join(f"{name}.ko: {' '.join(f'{other}.ko' for other in reversed(needs[name]))}\n" for name in loaded)
    return [
        archive.file("etc/modules", f"{' '.join(wanted)}\n".encode()),
        archive.file(f"{folder}/modules.dep", table.encode()),
        *(archive.file(f"{folder}/{name}.ko", data) for name, data in loaded.items()),
    ]


def built_in_modules(unpacked: Path) -> set[str]:
    """Return the modules that the kernel package lists as built into the kernel."""
    lists = [path.read_text() for path in (unpacked / "kernel").rglob("modules.builtin")]
    return {Path(line).stem for text in lists for line in text.splitlines()}


def module_dependencies(module: bytes) -> list[str]:
    """Return the names in the `depends=` field of a kernel module's `.modinfo` section."""
    field = re.search(rb"\0depends=([^\0]*)\0", module)
    names = field[1].decode() if field else ""
    return [name for name in names.split(",") if name]


def program(tree: Path, name: str, target: str) -> list[archive.ArchiveEntry]:
    """Return a program of an unpacked package as `target`, with its shared libraries and their loader.

    :param tree: the package together with its libraries; the machine's own libraries are not used.
    :raises ToolsMissingError: the program or a library is not in `tree`.
    """
    executable = _find(tree, name)
    loader = _find(tree, "ld-linux-x86-64.so.2")
    folders = sorted({str(path.parent) for path in tree.rglob("*.so*")})
    listed = subprocess.run(
        [loader, "--library-path", ":".join(folders), "--list", executable],
        check=True, capture_output=True, text=True, timeout=10,
    )  # fmt: skip
    libraries = []
    for line in listed.stdout.splitlines():
        library, arrow, rest = line.strip().partition(" => ")
        if arrow and not library.startswith("/"):
            path = Path(rest.split(" (")[0])
            if not path.is_relative_to(tree):
                raise ToolsMissingError(f"{library} of {name} is missing: remove {tree} and run `make setup`")
            libraries.append(archive.file(f"lib/{library}", path.read_bytes(), executable=True))
    return [
        archive.file("lib64/ld-linux-x86-64.so.2", loader.read_bytes(), executable=True),
        *libraries,
        archive.file(target, executable.read_bytes(), executable=True),
    ]


def initramfs(unpacked: Path) -> bytes:
    """Return the guest's root file system, a gzip-compressed cpio archive."""
    entries = [
        *(archive.directory(name) for name in ("dev", "proc", "sys", "tmp", "run", "var/run", "var/lib/dhcpv6", "etc")),
        *busybox(unpacked),
        *modules(unpacked),
        *program(unpacked / "agent", "qemu-ga", "bin/qemu-ga"),
        *program(unpacked / "monitor", "ip", "sbin/ip"),
        *program(unpacked / "monitor", "dhcp6c", "sbin/dhcp6c"),
        archive.file("init", _INIT.read_bytes(), executable=True),
        archive.file("bin/udhcpc-lease", _INIT.with_name("udhcpc-lease.sh").read_bytes(), executable=True),
    ]
    # mtime=0: equal inputs give equal images.
    return gzip.compress(archive.cpio(entries), compresslevel=1, mtime=0)


def pause_image(unpacked: Path) -> bytes:
    """Return the pods' image: it sleeps until SIGTERM and contains a shell for `kubectl exec` and the like."""
    return archive.docker_archive(PAUSE_IMAGE, busybox(unpacked), ["/bin/sh", "-c", _PAUSE_SCRIPT])


def recipe_hash(unpacked: Path) -> str:
    """Return a hash of all inputs of the images; unpacked files count by name and size, which is fast."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*")):
        if source.suffix in (".py", ".sh"):
            digest.update(source.read_bytes())
    for path in sorted(unpacked.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(unpacked)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def build(tools: Path) -> bool:
    """Write `guest/initramfs.cpio.gz` and `images/pause.tar` unless they are up to date; return whether it did.

    :raises ToolsMissingError: an input is missing.
    """
    unpacked = tools / "unpacked"
    stamp = tools / "guest" / "recipe"
    targets = {tools / "guest" / "initramfs.cpio.gz": initramfs, tools / "images" / "pause.tar": pause_image}
    recipe = recipe_hash(unpacked)
    if all(target.is_file() for target in targets) and stamp.is_file() and stamp.read_text() == recipe:
        return False
    for target, make in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        # An interrupted build must not leave half an image that looks up to date.
        scratch = target.with_name(target.name + ".new")
        scratch.write_bytes(make(unpacked))
        scratch.replace(target)
    stamp.write_text(recipe)
    return True


def _find(tree: Path, pattern: str) -> Path:
    """Return the first regular file below `tree` that matches `pattern`.

    :raises ToolsMissingError: there is none.
    """
    for path in sorted(tree.rglob(pattern)):
        if path.is_file() and not path.is_symlink():
            return path
    raise ToolsMissingError(f"{pattern} is not in {tree}: run `make setup`")
