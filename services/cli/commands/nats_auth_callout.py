"""``hotnic nats auth-callout``: makes the keys of the auth callout, and prints what a server and a cluster need.

It talks to no server. Next: :mod:`services.api.bus_auth`, which answers the callout.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli.errors import CommandFailed
from services.cli.output import examples, say

if TYPE_CHECKING:
    from services.common.bus.nkeys import KeyKind

ISSUER, USER = "issuer.nk", "user.nk"
"""The files that are made. The api also signs with each other `issuer*.nk` that a server expects."""


@click.command(
    "auth-callout",
    epilog=examples(
        "# What the server's configuration has to include; the keys are made if the directory has none",
        "hotnic nats auth-callout --dir keys",
        "# With users for people",
        "hotnic nats keys --dir people --role reader --role administrator",
        "hotnic nats auth-callout --dir keys --users people",
        "# The Secret of the chart's nats.authCallout.secret",
        "hotnic nats auth-callout --dir keys --secret hotnic-nats-auth",
    ),
)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Directory of the keys."
)
@click.option(
    "--users",
    "directories",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Directory of keys of `hotnic nats keys`, such as those of people; repeatable.",
)
@click.option("--secret", metavar="NAME", help="Print the Secret with the seeds, in place of the configuration.")
def auth_callout(directory: Path, directories: tuple[Path, ...], secret: str | None) -> None:
    """Make the keys of NATS' auth callout, and print the configuration of a server, or the Secret of the api.

    The api lets each role in by the token of its ServiceAccount. issuer.nk signs its answers, user.nk is the user as
    which it connects. The configuration has public keys only. People have no ServiceAccount: the keys of --users become
    users that do not pass the callout.
    """
    from services.cli.commands.nats import read_users
    from services.common.bus.nats_config import NatsCallout, render_accounts
    from services.common.bus.nkeys import KeyKind

    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        issuer = _make(directory / ISSUER, KeyKind.ACCOUNT)
        user = _make(directory / USER, KeyKind.USER)
        users = [found for each in directories for found in read_users(each)]
        text = _secret(secret, directory) if secret else render_accounts(users, NatsCallout(issuer, [user]))
    except (OSError, ValueError) as error:
        raise CommandFailed(f"cannot make the auth callout of {directory}: {error}") from error
    say(*text.splitlines())


def _make(path: Path, kind: KeyKind) -> str:
    """Make a key unless there is one, and return the public key.

    :raises ValueError: the file holds no seed of this kind.
    """
    from services.common.bus.nkeys import SigningKey, write_seed

    if not path.exists():
        write_seed(path, kind)
    try:
        key = SigningKey(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if key.kind != kind:
        raise ValueError(f"{path}: not the seed of a key of NATS' kind {kind.name.lower()}")
    return key.public


def _secret(name: str, directory: Path) -> str:
    """Return the Secret with all seeds of the callout."""
    files = [*sorted(directory.glob("issuer*.nk")), directory / USER]
    lines = ["apiVersion: v1", "kind: Secret", f"metadata: {{name: {name}}}", "type: Opaque", "data:"]
    lines += [f"  {path.name}: {base64.b64encode(path.read_bytes()).decode()}" for path in files]
    return "\n".join(lines) + "\n"
