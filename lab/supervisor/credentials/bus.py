"""Issue the identities of a lab on NATS, and write the configuration of nats-server.

nats-server has a certificate of the lab's CA and accepts TLS connections only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.apiserver.identity import pki
from lab.layout import NATS_PORT, Layout

COMMON_NAME: Final = "nats"
"""Common name of nats-server's certificate."""


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


def in_namespaces(layout: Layout) -> NatsPlace:
    """Return the place of nats-server in a lab in namespaces of its own."""
    return NatsPlace("127.0.0.1", layout.state / "nats", layout.nats_certificate)


def issue(layout: Layout, place: NatsPlace, *, names: Iterable[str] = (), addresses: Iterable[str] = ()) -> None:
    """Issue the certificate of nats-server, and write its configuration.

    :param names: further names of the server.
    :param addresses: further addresses of the server.
    """
    target, names, addresses = layout.nats_certificate.name, ("localhost", *names), ("127.0.0.1", *addresses)
    pki.issue_server(layout.apiserver, COMMON_NAME, names, addresses, file_name=target)
    layout.nats_config.write_text(server_configuration(place))


def server_configuration(place: NatsPlace) -> str:
    """Return nats-server's configuration: TLS for every client, and JetStream."""
    # JSON, which is valid in it, but for the size with its unit.
    cert, key = (json.dumps(str(place.certificate.with_suffix(suffix))) for suffix in (".crt", ".key"))
    lines = [
        'server_name: "hotnic-lab"',
        f'listen: "{place.host}:{NATS_PORT}"',
        *([f'http: "{place.monitoring}"'] if place.monitoring else []),
        f"tls {{ cert_file: {cert}, key_file: {key} }}",
        f"jetstream {{ store_dir: {json.dumps(str(place.store))}, max_memory_store: 64MB, max_file_store: 1GB }}",
    ]
    return "\n".join(lines) + "\n"
