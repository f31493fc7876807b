"""Download the lab's tools with apt and unpack them below the tools folder; nothing is installed.

It uses the standard library only, because it runs before the virtual environment is filled, and needs no root. No
service is started or replaced, because a package that is only unpacked runs no maintainer script. The guest image is
built by `lab.guest.prepare`.
Called by `scripts/setup`; `lab/tools.py` has the resulting paths.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.tools import default_root

APT_OPTIONS = (
    "-qq",
    "-o", "APT::Sandbox::User=root",
    "-o", "Acquire::Retries=1",
    "-o", "Acquire::http::Timeout=15",
    "-o", "Acquire::https::Timeout=15",
)  # fmt: skip

GUEST_MODULES = (
    "modules.builtin",
    "kernel/drivers/virtio/",
    "kernel/drivers/net/net_failover.ko",
    "kernel/drivers/net/virtio_net.ko",
    "kernel/drivers/char/virtio_console.ko",
    "kernel/net/core/failover.ko",
)
"""Files of the kernel package that are unpacked besides the kernel, relative to `lib/modules/<release>/`."""


class MissingError(Exception):
    """Something could not be fetched; each argument is one missing thing."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Debian packages that are unpacked together into `unpacked/<name>/`.

    :ivar library_closure: whether to add the libraries that the packages depend on.
    :ivar keep: files to unpack; all if empty.
    """

    name: str
    packages: tuple[str, ...]
    library_closure: bool = False
    keep: tuple[str, ...] = ()


BUNDLES = (
    Bundle("containerd", ("containerd",)),
    Bundle("runc", ("runc", "libseccomp2")),
    Bundle("cni", ("containernetworking-plugins",)),
    Bundle("busybox", ("busybox-static",)),
    Bundle("agent", ("qemu-guest-agent",), library_closure=True),
    Bundle("monitor", ("iproute2", "wide-dhcpv6-client"), library_closure=True),
    Bundle("kernel", ("linux-image-cloud-amd64",), keep=GUEST_MODULES),
)

LIBVIRT = Bundle("libvirt", ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-dev"), library_closure=True)
"""For the tests of the libvirt driver only: the daemon, and the sources for building its Python binding."""


def report(text: str) -> None:
    """Print a progress message, flushed, so that it appears before a slow step is done."""
    sys.stdout.write(f"setup: {text}\n")  # one write, because bundles are fetched in parallel
    sys.stdout.flush()


def run(*command: str, cwd: Path | None = None, timeout: float = 300) -> str:
    """Run a command and return its output.

    :raises subprocess.SubprocessError: it failed or took too long.
    """
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin",
    }
    done = subprocess.run(
        command, cwd=cwd, check=True, env=environment, timeout=timeout, text=True,
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    return done.stdout


def which(command: str) -> str | None:
    """Return the path of a command, searched in the sbin folders, too, which are not in the PATH of plain users."""
    return shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


class Apt:
    """Downloads by apt. The package lists are refreshed at most once, and only if a package was not found."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._refreshed: bool | None = None

    def refresh(self) -> bool:
        """Run `apt-get update` unless it ran before; return whether the lists are up to date."""
        with self._lock:
            if self._refreshed is None:
                self._refreshed = os.geteuid() == 0 and self._update()
            return self._refreshed

    def _update(self) -> bool:
        report("refreshing the package lists (apt-get update)")
        try:
            run("apt-get", *APT_OPTIONS, "update")
        except (subprocess.SubprocessError, OSError):
            return False
        return True

    def depends(self, package: str) -> dict[str, list[str]]:
        """Return the dependency graph below `package`: the direct dependencies of every package in it."""
        kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
        output = run("apt-cache", "depends", "--recurse", *(f"--no-{kind}" for kind in kinds), package)
        graph: dict[str, list[str]] = {}
        for line in output.splitlines():
            if line[:1] not in (" ", "|"):
                below = graph.setdefault(line, [])
            elif "Depends: " in line:
                below.append(line.partition("Depends: ")[2])
        return graph

    def resolve(self, bundle: Bundle) -> list[str]:
        """Return the packages to download for a bundle.

        A meta package is replaced by the real one. With `library_closure`, libraries are added recursively.
        """
        names: list[str] = []
        for package in bundle.packages:
            if package.startswith("linux-image-"):
                names += [name for name in self.depends(package)[package] if name.startswith("linux-image-")][:1]
                continue
            names.append(package)
            graph = self.depends(package) if bundle.library_closure else {}
            waiting = [package]
            while waiting:
                libraries = [n for n in graph.get(waiting.pop(), []) if n == "zlib1g" or n.startswith("lib")]
                new = [name for name in libraries if name not in names]
                names += new
                waiting += new
        return names

    def download(self, bundle: Bundle, into: Path) -> list[Path]:
        """Download the packages of a bundle into a folder and return their files.

        :raises MissingError: a package cannot be downloaded.
        """
        for _ in range(2):
            try:
                run("apt-get", *APT_OPTIONS, "download", *self.resolve(bundle), cwd=into)
                return sorted(into.glob("*.deb"))
            except (subprocess.SubprocessError, OSError, IndexError):
                if not self.refresh():
                    break
        raise MissingError(*(f"Debian package {name}" for name in bundle.packages))


def unpack(deb: Path, into: Path, keep: tuple[str, ...]) -> None:
    """Unpack a package.

    :param keep: modules to unpack besides the kernel; everything if empty. The rest is most of the kernel package.
    :raises MissingError: the package contains no kernel.
    """
    if not keep:
        run("dpkg", "-x", str(deb), str(into))
        return
    patterns = ["./boot/vmlinuz-*"]
    for base in ("./lib/modules/*/", "./usr/lib/modules/*/"):
        patterns += [base + part + "*" for part in keep]
    stream = subprocess.Popen(["dpkg", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
    # tar exits with 2 for a pattern without a match, and one of the two bases never matches, so the result is checked.
    subprocess.run(
        ["tar", "-x", "-C", str(into), "--wildcards", *patterns],
        stdin=stream.stdout, stderr=subprocess.DEVNULL, check=False, timeout=120,
    )  # fmt: skip
    if stream.wait(timeout=120) != 0 or not list(into.glob("boot/vmlinuz-*")):
        raise MissingError(f"the kernel in {deb.name}")


def fetch(apt: Apt, bundle: Bundle, unpacked: Path) -> None:
    """Download and unpack a bundle into `unpacked/<name>`, atomically.

    :raises MissingError: a package cannot be downloaded.
    """
    target = unpacked / bundle.name
    recipe = target / ".bundle"
    if recipe.is_file() and recipe.read_text() == repr(bundle):
        return
    report(f"downloading {', '.join(bundle.packages)}")
    with tempfile.TemporaryDirectory(dir=unpacked, prefix=f".{bundle.name}-") as scratch:
        debs, tree = Path(scratch, "debs"), Path(scratch, "tree")
        debs.mkdir()
        tree.mkdir()
        for deb in apt.download(bundle, debs):
            unpack(deb, tree, bundle.keep)
        (tree / recipe.name).write_text(repr(bundle))
        if target.is_dir():
            target.rename(Path(scratch, "old"))
        tree.rename(target)


def link(path: Path, target: Path) -> None:
    """Make `path` a symbolic link to `target`, replacing an existing file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    path.symlink_to(target)


def find_in(tree: Path, name: str) -> Path:
    """Return the file of that name in an unpacked tree.

    :raises MissingError: there is none.
    """
    for path in sorted(tree.rglob(name)):
        if path.is_file():
            return path
    raise MissingError(f"{name} in {tree.name}")


def fetch_runc_library(tools: Path) -> None:
    """Link runc, or write a wrapper with the unpacked libseccomp if the machine has none."""
    runc = find_in(tools / "unpacked" / "runc", "runc")
    target = tools / "bin" / "runc"
    if not any(Path(base).rglob("libseccomp.so.2") for base in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu")):
        library = find_in(tools / "unpacked" / "runc", "libseccomp.so.2").parent
        target.unlink(missing_ok=True)
        target.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{library}" exec "{runc}" "$@"\n')
        target.chmod(0o755)
        return
    link(target, runc)


def install_links(tools: Path) -> None:
    """Fill `bin/`, `cni/` and `guest/vmlinuz` from the unpacked packages and the machine."""
    unpacked = tools / "unpacked"
    for name in ("containerd", "containerd-shim-runc-v2", "ctr"):
        link(tools / "bin" / name, find_in(unpacked / "containerd", name))
    fetch_runc_library(tools)
    for plugin in find_in(unpacked / "cni", "bridge").parent.iterdir():
        link(tools / "cni" / plugin.name, plugin)
    link(tools / "guest" / "vmlinuz", next((unpacked / "kernel").glob("boot/vmlinuz-*")))
    qemu = which("qemu-system-x86_64")
    if qemu is None:
        raise MissingError("Debian package qemu-system-x86 (installed)")
    link(tools / "bin" / "qemu-system-x86_64", Path(qemu))


def missing_libraries(files: list[Path], library_path: Path) -> set[str]:
    """Return the names of the shared libraries that these files need and the loader does not find."""
    environment = {**os.environ, "LC_ALL": "C", "LD_LIBRARY_PATH": str(library_path)}
    done = subprocess.run(
        ["ldd", *map(str, files)], check=False, env=environment, timeout=60, text=True, capture_output=True
    )
    return {line.split()[0] for line in done.stdout.splitlines() if line.endswith("=> not found")}


def link_missing_libraries(files: list[Path], tree: Path, library_path: Path) -> None:
    """Link the shared libraries that these files need, and those that these need in turn, from an unpacked tree.

    Only libraries that the machine lacks: a second C library beside the machine's own does not work.

    :raises MissingError: the tree lacks one of them.
    """
    while names := missing_libraries(files, library_path):
        files = []
        for name in names:
            link(library_path / name, find_in(tree, name))
            files.append(library_path / name)


def install_libvirt(tools: Path) -> None:
    """Fill `libvirt/`: daemon, driver, libraries that the machine lacks, and the files for building the binding."""
    tree, home = tools / "unpacked" / LIBVIRT.name, tools / "libvirt"
    shutil.rmtree(home, ignore_errors=True)
    link(home / "libvirtd", find_in(tree / "usr" / "sbin", "libvirtd"))
    # The QEMU driver alone: the other drivers need firewalls, bridges and udev.
    link(home / "drivers" / "libvirt_driver_qemu.so", find_in(tree, "libvirt_driver_qemu.so"))
    link(home / "share", tree / "usr" / "share" / "libvirt")
    own = find_in(tree, "libvirt.so.0").parent
    for library in own.glob("libvirt*.so*"):
        link(home / "lib" / library.name, library)
    files = [home / "libvirtd", *(home / "drivers").iterdir(), *(home / "lib").iterdir()]
    link_missing_libraries(files, tree, home / "lib")
    (home / "pkgconfig").mkdir()
    for description in own.glob("pkgconfig/*.pc"):
        text = description.read_text().replace("=/usr", f"={tree}/usr")
        (home / "pkgconfig" / description.name).write_text(text)


def fetch_all(apt: Apt, tools: Path, bundles: tuple[Bundle, ...]) -> list[str]:
    """Fetch bundles, three at a time because most of the work is decompression; return what is missing."""
    missing: list[str] = []
    with ThreadPoolExecutor(max_workers=3) as pool:
        for done in [pool.submit(fetch, apt, bundle, tools / "unpacked") for bundle in bundles]:
            try:
                done.result()
            except MissingError as error:
                missing += error.args
    return missing


def main() -> int:
    """Fetch and link everything. Write what is missing to the file `--missing`, and return 1 if that is anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--missing", type=Path, required=True, help="file to which the names of missing things are appended"
    )
    parser.add_argument("--libvirt", action="store_true", help="fetch libvirt, too, for the tests of its driver")
    arguments = parser.parse_args()
    tools = default_root()
    (tools / "unpacked").mkdir(parents=True, exist_ok=True)
    missing = fetch_all(Apt(), tools, (*BUNDLES, LIBVIRT) if arguments.libvirt else BUNDLES)
    if not missing:
        try:
            install_links(tools)
            if arguments.libvirt:
                install_libvirt(tools)
        except MissingError as error:
            missing += error.args
    with arguments.missing.open("a") as collected:
        collected.writelines(f"{name}\n" for name in missing)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
