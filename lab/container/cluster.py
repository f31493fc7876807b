"""The lab's cluster in a container: certificates and kubeconfigs, the API server, and the objects that the roles need.

Objects and certificates are in `--dir`, so a restart keeps them. Every other container gets its own folder of
`--credentials` as a volume, and no other.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lab.apiserver.identity import pki
from lab.container.process import OUTPUT
from lab.layout import BUS_ROLES, ROLES, Layout
from lab.supervisor import bootstrap, components, readiness
from lab.supervisor.credentials import bus, certificates
from lab.supervisor.processes import Processes, ProcessSpec

SUMMARY: Final = "The API server of the cluster."
UNPRIVILEGED: Final = 65532
"""User of the containers without privileges in docker-compose.yml and in the image."""

OWNERS: Final = {"api": UNPRIVILEGED, "controller": UNPRIVILEGED, "cli": UNPRIVILEGED}
"""User id of the credentials' reader; root reads all others."""

NATS: Final = bus.NatsPlace("0.0.0.0", Path("/data"), Path("/credentials/tls"), monitoring="127.0.0.1:8222")
"""nats-server in the container `nats`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the part's options."""
    parser.add_argument("--dir", type=Path, default=Path("/var/lib/hotnic-lab"), help="objects and certificates")
    parser.add_argument("--credentials", type=Path, default=Path("/credentials"), help="one folder per container")
    parser.add_argument("--port", type=int, default=6443, help="port of the API server, inside and on the machine")
    parser.add_argument("--name", default="cluster", help="name of this container in its network")
    parser.add_argument("--api", default="api", help="name of the api role's container")
    parser.add_argument("--nats", default="nats", help="name of nats-server's container")


async def start(processes: Processes, options: argparse.Namespace) -> None:
    """Issue credentials, start the API server and create the first objects."""
    layout = Layout(options.dir)
    for folder in (layout.apiserver, layout.config):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pki.ensure_pki(layout.apiserver, [options.name])
    write_credentials(layout, options.credentials, f"https://{options.name}:{options.port}", nats=options.nats)
    # For kubectl on the machine, and for this container: the port is published under the same number.
    admin = pki.pair(layout.apiserver, "admin")
    pki.write_kubeconfig(layout.kubeconfig, f"https://127.0.0.1:{options.port}", layout.apiserver, admin)
    child = processes.start(apiserver(layout, options.name, options.port, os.environ))
    await readiness.wait_unless_exited(child, readiness.wait_for_port(options.port))
    await bootstrap.create_objects(layout, api_host=options.api)


def apiserver(layout: Layout, name: str, port: int, environ: Mapping[str, str]) -> ProcessSpec:
    """Return the process of the API server.

    :param name: name of this container in its network.
    :param environ: the environment of this process, of which the child gets no more than every other one of the lab.
    """
    addresses = ("--listen", f"0.0.0.0:{port}", "--advertise", f"{name}:{port}")
    argv = (sys.executable, "-m", "lab.apiserver", "--dir", str(layout.apiserver), *addresses)
    return ProcessSpec("apiserver", argv, OUTPUT, components.python_environment(environ))


def write_credentials(layout: Layout, folder: Path, server: str, *, nats: str) -> None:
    """Write the files of each container into its folder below `folder`.

    :param server: URL of the API server, as the containers reach it.
    :param nats: name of nats-server, as the containers reach it.
    """
    certificates.issue(layout, server)
    bus.issue(layout, NATS, BUS_ROLES, names=[nats])
    for reader, files in files_of_readers(layout).items():
        target = folder / reader
        target.mkdir(parents=True, exist_ok=True)
        owner = OWNERS.get(reader, 0)
        for name, source in files.items():
            replace_owned(source, target / name, owner)
        os.chown(target, owner, owner)
        target.chmod(0o500)


def files_of_readers(layout: Layout) -> dict[str, dict[str, Path]]:
    """Return for each container the source of each of its files: its identities, and what it verifies others with."""
    found = {role: {"kubeconfig": layout.role_kubeconfig(role)} for role in (*ROLES, "node")}
    found["cli"] = {"kubeconfig": layout.kubeconfig}
    found["nats"] = {"nats.conf": layout.nats_config, **key_pair(layout.nats_certificate)}
    found["api"] |= key_pair(layout.serving_certificate)
    for client in BUS_ROLES:
        found[client] |= {"nats-ca.crt": layout.nats_ca, "nats.nk": layout.nats_seed(client)}
    found["cli"] |= {"nats-ca.crt": layout.nats_ca, "nats.nk": layout.nats_seed()}
    return found


def key_pair(certificate: Path) -> dict[str, Path]:
    """Return the files of a server's certificate.

    :param certificate: its path without the suffixes.
    """
    return {f"tls{suffix}": certificate.with_suffix(suffix) for suffix in (".crt", ".key")}


def replace_owned(source: Path, target: Path, owner: int) -> None:
    """Copy a file that only `owner` can read, atomically."""
    temporary = target.with_name(f".{target.name}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
        os.fchown(file.fileno(), owner, owner)
        file.write(source.read_bytes())
    temporary.replace(target)
