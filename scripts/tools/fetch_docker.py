"""Download a Docker engine with apt and unpack it below the tools folder; nothing is installed and no service started.

The packages are Debian's: the engine, its command line, and buildx where they are packages of their own (Debian 13).
containerd and runc are those that `scripts/tools/fetch_tools.py` has unpacked for the lab. mmdebstrap, which makes base
images, comes with it. Called by `scripts/with-docker-engine` and `scripts/image/base` if something is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.tools import default_root
from scripts.tools.fetch_tools import Apt, Bundle, MissingError, fetch, find_in, link, link_missing_libraries, run

PARTS = ("docker-cli", "docker-buildx")
"""Packages that exist only where Debian's docker.io does not contain the command line."""

MMDEBSTRAP = Bundle("mmdebstrap", ("mmdebstrap",))


def known(package: str) -> bool:
    """Return whether this release of Debian has a package."""
    try:
        return bool(run("apt-cache", "show", "--no-all-versions", package))
    except (subprocess.SubprocessError, OSError):
        return False


def docker_bundle(apt: Apt) -> Bundle:
    """Return the packages of the engine in this release of Debian."""
    if not known("docker.io"):
        apt.refresh()
    return Bundle("docker", ("docker.io", *filter(known, PARTS)), library_closure=True)


def install_docker(tools: Path) -> None:
    """Fill `docker/`: the programs, and in `lib/` the libraries that the machine lacks."""
    tree, home = tools / "unpacked" / "docker", tools / "docker"
    shutil.rmtree(home, ignore_errors=True)
    for folder, names in {"usr/sbin": ("dockerd", "docker-proxy"), "usr/bin": ("docker",)}.items():
        for name in names:
            link(home / name, find_in(tree / folder, name))
    for plugin in tree.glob("usr/libexec/docker/cli-plugins/*"):
        link(home / "cli-plugins" / plugin.name, plugin)
    files = [home / "dockerd", home / "docker", home / "docker-proxy"]
    link_missing_libraries(files, tree, home / "lib")


def main() -> int:
    """Fetch and link everything; return 1 if something cannot be downloaded."""
    apt, tools = Apt(), default_root()
    if not (tools / "bin" / "containerd").exists():
        sys.stderr.write("fetch_docker: the engine uses containerd of the lab's tools: run `make setup` first\n")
        return 1
    try:
        for bundle in (docker_bundle(apt), MMDEBSTRAP):
            fetch(apt, bundle, tools / "unpacked")
        install_docker(tools)
    except MissingError as error:
        sys.stderr.write(f"fetch_docker: cannot fetch {', '.join(error.args)}: check the network\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
