"""``hotnic nats``: makes the keys of hotnic's identities on NATS, and the configuration of a server for them.

It talks to no server. For a server with an auth callout neither is needed.
Next: :mod:`services.common.bus.nats_config`, the configuration; :mod:`schemas.bus.permissions`, who may do what.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli.commands.nats_auth_callout import auth_callout
from services.cli.errors import CommandFailed
from services.cli.output import examples, say, table

if TYPE_CHECKING:
    from services.common.bus.nats_config import NatsUser

ROLES = ("api", "controller", "networks", "handler", "node", "reader", "administrator")
"""The roles of :class:`schemas.bus.permissions.BusRole`, without an import for a usage error."""
ROLES_OF_NODES = ("networks", "handler", "node")
SUFFIX = ".nk"
"""Ending of the files with seeds, as NATS' own tools have it."""


@click.group()
def nats() -> None:
    """Make the keys of hotnic's identities on NATS, and the configuration of a server for them.

    Each role has an identity, and networks and handler one on each node. An identity publishes its own stages, reads
    its own events, and can do nothing else.
    """


nats.add_command(auth_callout)


@nats.command(
    epilog=examples(
        "# A key for each role of the cluster, and for networks and handler of two nodes",
        "hotnic nats keys --dir keys --node node1 --node node2",
        "# For nodes whose roles run in one process (hotnic run node)",
        "hotnic nats keys --dir keys --role node --node node1",
    )
)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Directory of the keys."
)
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="Node that gets identities; repeatable.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(ROLES),
    help="Make keys of these roles only; repeatable (default: all but node, which replaces networks and handler).",
)
def keys(directory: Path, nodes: tuple[str, ...], roles: tuple[str, ...]) -> None:
    """Make the missing keys in a directory.

    The seed of each identity is in a file ROLE.nk or ROLE.NODE.nk, which only its owner can read. NATS_NKEY of a role
    names its file. Existing keys are not changed. A new directory gets new keys; a server that has the keys of both
    directories lets the roles change from the earlier ones to the new ones while they run.
    """
    from schemas.names import is_object_name

    for name in nodes:
        # It becomes a part of a file's name and of a key of a Secret.
        if not is_object_name(name):
            raise click.UsageError(f"{name!r} is not the name of a node")
    if not nodes and any(role in ROLES_OF_NODES for role in roles):
        raise click.UsageError(f"the roles {', '.join(ROLES_OF_NODES)} need --node")

    from services.common.bus.nkeys import read_public_key, write_seed

    rows = []
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for role, node in _identities(nodes, roles):
            path = directory / f"{role if node is None else f'{role}.{node}'}{SUFFIX}"
            if not path.exists():
                write_seed(path)
            rows.append([str(path), read_public_key(path.read_bytes())])
    except (OSError, ValueError) as error:
        raise CommandFailed(f"cannot make the keys in {directory}: {error}") from error
    say(*table(("SEED", "PUBLIC KEY"), rows))


@nats.command(
    epilog=examples(
        "# The accounts, for a server whose configuration includes them",
        "hotnic nats config --dir keys",
        "# All of the configuration of one server",
        "hotnic nats config --dir keys --listen 0.0.0.0:4222 --store-dir /data --tls-cert tls.crt --tls-key tls.key",
        "# While the keys are replaced",
        "hotnic nats config --dir keys --dir new-keys",
    )
)
@click.option(
    "--dir",
    "directories",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Directory of keys; repeatable. Without one the accounts have no users, as an auth callout needs them.",
)
@click.option("--listen", metavar="HOST:PORT", help="Print all of the configuration of a server that listens here.")
@click.option("--store-dir", default="/data", show_default=True, metavar="DIR", help="JetStream's directory.")
@click.option("--tls-cert", metavar="FILE", help="The server's certificate, as a path on the server.")
@click.option("--tls-key", metavar="FILE", help="The key of the certificate.")
def config(
    directories: tuple[Path, ...], listen: str | None, store_dir: str, tls_cert: str | None, tls_key: str | None
) -> None:
    """Print the configuration of a NATS server: the accounts of hotnic, with a user for each key.

    It has public keys only. A server gets the accounts at its start, and other keys with: nats-server --signal reload
    """
    if bool(tls_cert) is not bool(tls_key) or (tls_cert and not listen):
        raise click.UsageError("--tls-cert, --tls-key and --listen belong together")

    from services.common.bus.nats_config import NatsTls, render_accounts, render_server

    try:
        users = [user for directory in directories for user in read_users(directory)]
        text = render_accounts(users)
        if listen:
            tls = NatsTls(tls_cert, tls_key) if tls_cert and tls_key else None
            text = render_server(listen=listen, store_dir=store_dir, tls=tls) + text
    except (OSError, ValueError) as error:
        raise CommandFailed(f"cannot make the configuration: {error}") from error
    say(*text.splitlines())


def _identities(nodes: tuple[str, ...], roles: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """Yield role and node of each identity."""
    for role in roles or tuple(role for role in ROLES if role != "node"):
        if role in ROLES_OF_NODES:
            yield from ((role, node) for node in nodes)
        else:
            yield role, None


def read_users(directory: Path) -> Iterator[NatsUser]:
    """Yield the users of the keys in a directory.

    :raises ValueError: there are none, or a file holds no seed of a user.
    """
    from services.common.bus.nats_config import NatsUser
    from services.common.bus.nkeys import read_public_key

    paths = sorted(directory.glob(f"*{SUFFIX}"))
    if not paths:
        raise ValueError(f"no keys in {directory}; make them: hotnic nats keys --dir {directory}")
    for path in paths:
        role, _, node = path.name.removesuffix(SUFFIX).partition(".")
        try:
            yield NatsUser(role, node or None, read_public_key(path.read_bytes()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
