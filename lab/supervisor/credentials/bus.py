"""Issue the identities of a lab on NATS, and write the configuration of nats-server.

nats-server has a certificate of the lab's CA, accepts TLS connections only, and knows the public key of every identity.
The seed of each one is in a file of its own: one for each role, and on every node one for each role of the node. Their
permissions are those of `schemas.bus.permissions`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from lab.apiserver.identity import pki
from lab.layout import BUS_ROLES, NATS_PORT, NODE_ROLES, Layout, node_name, split_name
from schemas.bus.permissions import BusRole
from services.common.bus.nats_config import NatsTls, NatsUser, render_accounts, render_server
from services.common.bus.nkeys import read_public_key, write_seed

COMMON_NAME: Final = "nats"
"""Common name of nats-server's certificate."""

NEXT: Final = ".next"
"""Suffix of a seed that will replace the one in the file without it; nats-server accepts both."""


@dataclass(frozen=True, slots=True)
class NatsPlace:
    """Where nats-server listens, and where it finds its files.

    :ivar host: address on which it listens.
    :ivar store: folder of its streams.
    :ivar certificate: path of its certificate and key, without the suffixes `.crt` and `.key`.
    :ivar monitoring: HOST:PORT of its monitoring, if any.
    """

    host: str
    store: Path
    certificate: Path
    monitoring: str = ""


class BusIdentity(NamedTuple):
    """An identity, and the file of its seed.

    :ivar node: the Kubernetes node of a role of a node.
    """

    role: BusRole
    node: str | None
    seed: Path


def in_namespaces(layout: Layout) -> NatsPlace:
    """Return the place of nats-server in a lab in namespaces of its own."""
    return NatsPlace("127.0.0.1", layout.state / "nats", layout.nats_certificate)


def identities(layout: Layout, processes: Iterable[str]) -> tuple[BusIdentity, ...]:
    """Return the identities of a lab: the administrator's, and one for each of these processes that uses the bus.

    The controllers of all nodes have one, because one of them leads for all.

    :param processes: names of processes of roles.
    """
    found = {layout.nats_seed(): BusIdentity(BusRole.ADMINISTRATOR, None, layout.nats_seed())}
    for process in processes:
        role, node = split_name(process)
        if role in BUS_ROLES:
            bound = node_name(node) if role in NODE_ROLES else None
            seed = layout.nats_seed(process)
            found[seed] = BusIdentity(BusRole(role), bound, seed)
    return tuple(found.values())


def issue(
    layout: Layout,
    place: NatsPlace,
    processes: Iterable[str],
    *,
    names: Iterable[str] = (),
    addresses: Iterable[str] = (),
    unrestricted: bool = False,
) -> None:
    """Issue the certificate of nats-server and the missing seeds, and write the configuration of nats-server.

    :param processes: names of the processes of roles.
    :param names: further names of the server.
    :param addresses: further addresses of the server.
    :param unrestricted: whether there is an identity that may do everything.
    """
    target, names, addresses = layout.nats_certificate.name, ("localhost", *names), ("127.0.0.1", *addresses)
    pki.issue_server(layout.apiserver, COMMON_NAME, names, addresses, file_name=target)
    known = identities(layout, processes)
    for seed in (*(one.seed for one in known), *([layout.unrestricted_nats_seed] if unrestricted else [])):
        if not seed.exists():
            write_seed(seed)
    write_configuration(layout, place, known)


def write_configuration(layout: Layout, place: NatsPlace, known: Iterable[BusIdentity]) -> None:
    """Write the configuration of nats-server, which reads it at its start and at SIGHUP."""
    users = [NatsUser(one.role, one.node, key) for one in known for key in public_keys(one.seed)]
    server = render_server(
        listen=f"{place.host}:{NATS_PORT}",
        store_dir=str(place.store),
        tls=NatsTls(*(str(place.certificate.with_suffix(suffix)) for suffix in (".crt", ".key"))),
        name="hotnic-lab",
        monitoring=place.monitoring,
        store_limits={"max_memory_store": "64MB", "max_file_store": "1GB"},
    )
    text = server + render_accounts(users, unrestricted=public_keys(layout.unrestricted_nats_seed))
    temporary = layout.nats_config.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(layout.nats_config)


def public_keys(seed: Path) -> tuple[str, ...]:
    """Return the public keys by which nats-server knows an identity: two while its seed is being replaced."""
    files = (seed, seed.with_name(seed.name + NEXT))
    return tuple(read_public_key(file.read_bytes()) for file in files if file.exists())
