"""The lab's cluster in a container: certificates and kubeconfigs, the API server, and the objects that the roles need.

Objects and certificates are in `--dir`, so a restart keeps them. Every other container gets its own folder of
`--credentials` as a volume, and no other.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from lab.apiserver.identity import pki
from lab.container.process import OUTPUT
from lab.layout import ROLES, Layout
from lab.supervisor import bootstrap, credentials, readiness
from lab.supervisor.processes import Processes, ProcessSpec

SUMMARY: Final = "The API server of the cluster."
UNPRIVILEGED: Final = 65532
"""User of the containers without privileges in docker-compose.yml and in the image."""

OWNERS: Final = {"api": UNPRIVILEGED, "controller": UNPRIVILEGED, "cli": UNPRIVILEGED}
"""User id of the credentials' reader; root reads all others."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the part's options."""
    parser.add_argument("--dir", type=Path, default=Path("/var/lib/hotnic-lab"), help="objects and certificates")
    parser.add_argument("--credentials", type=Path, default=Path("/credentials"), help="one folder per container")
    parser.add_argument("--port", type=int, default=6443, help="port of the API server, inside and on the machine")
    parser.add_argument("--name", default="cluster", help="name of this container in its network")
    parser.add_argument("--api", default="api", help="name of the api role's container")


async def start(processes: Processes, options: argparse.Namespace) -> None:
    """Issue credentials, start the API server and create the first objects."""
    layout = Layout(options.dir)
    for folder in (layout.apiserver, layout.config):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pki.ensure_pki(layout.apiserver, [options.name])
    write_credentials(layout, options.credentials, f"https://{options.name}:{options.port}")
    # For kubectl on the machine, and for this container: the port is published under the same number.
    admin = pki.pair(layout.apiserver, "admin")
    pki.write_kubeconfig(layout.kubeconfig, f"https://127.0.0.1:{options.port}", layout.apiserver, admin)
    addresses = ("--listen", f"0.0.0.0:{options.port}", "--advertise", f"{options.name}:{options.port}")
    argv = (sys.executable, "-m", "lab.apiserver", "--dir", str(layout.apiserver), *addresses)
    child = processes.start(ProcessSpec("apiserver", argv, OUTPUT, os.environ))
    await readiness.wait_unless_exited(child, readiness.wait_for_port(options.port))
    await bootstrap.create_objects(layout, api_host=options.api)


def write_credentials(layout: Layout, folder: Path, server: str) -> None:
    """Write each container's kubeconfig, and the api role's serving certificate, into its folder below `folder`.

    :param server: URL of the API server, as the containers reach it.
    """
    credentials.issue(layout, server)
    kubeconfigs = {role: layout.role_kubeconfig(role) for role in (*ROLES, "node")}
    kubeconfigs["cli"] = layout.kubeconfig
    for reader, kubeconfig in kubeconfigs.items():
        files = {"kubeconfig": kubeconfig}
        if reader == "api":
            files |= {f"tls{suffix}": layout.serving_certificate.with_suffix(suffix) for suffix in (".crt", ".key")}
        target = folder / reader
        target.mkdir(parents=True, exist_ok=True)
        owner = OWNERS.get(reader, 0)
        for name, source in files.items():
            replace_owned(source, target / name, owner)
        os.chown(target, owner, owner)
        target.chmod(0o500)


def replace_owned(source: Path, target: Path, owner: int) -> None:
    """Copy a file that only `owner` can read, atomically."""
    temporary = target.with_name(f".{target.name}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
        os.fchown(file.fileno(), owner, owner)
        file.write(source.read_bytes())
    temporary.replace(target)
