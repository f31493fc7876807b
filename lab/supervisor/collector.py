"""The trace collector outside of a lab to which `hotnic lab up --otlp URL` exports, and how processes inside reach it.

They export to a listener inside the lab's network namespace; `relay.py` forwards its connections to the collector. Only
the standard library is imported, because the command line parses the option before anything else.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

COLLECTOR_PORT: Final = 4318
"""Port in the lab's network namespace on which the relay to the collector listens."""

PROTOCOLS: Final = {"http": "http/protobuf", "grpc": "grpc"}
"""The OTLP protocol that each scheme of the option means."""

USUAL_PORTS: Final = {"http": 4318, "grpc": 4317}


@dataclass(frozen=True, slots=True)
class Collector:
    """A collector, as the machine reaches it."""

    scheme: str
    host: str
    port: int
    path: str
    """Prefix of the paths of HTTP requests, without a slash at its end."""

    @classmethod
    def parse(cls, url: str) -> Collector:
        """Parse `http://HOST[:PORT][/PATH]` or `grpc://HOST[:PORT]`.

        :raises ValueError: it is neither; the message says what is expected.
        """
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("the address of a collector contains a user, which is not supported")  # and not shown
        # `urlsplit` accepts white space in a host and removes it elsewhere. Port 0 is none.
        malformed = any(character.isspace() for character in url) or parts.port == 0
        if malformed or parts.scheme not in PROTOCOLS or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is no address of a collector; use http://HOST:4318 or grpc://HOST:4317")
        path = parts.path.rstrip("/")
        if parts.scheme == "grpc" and path:
            raise ValueError(f"{url!r} has a path, which gRPC does not use")
        # `port` raises ValueError for a number that is no port.
        return cls(parts.scheme, parts.hostname, parts.port or USUAL_PORTS[parts.scheme], path)

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of a process inside the lab that exports to the collector."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{COLLECTOR_PORT}{self.path}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": PROTOCOLS[self.scheme],
        }

    def connect(self, timeout: float) -> socket.socket:
        """Return a connection from the calling thread's network namespace.

        :param timeout: seconds for each of the host's addresses.
        :raises OSError: the name has no address, or nothing accepts connections there.
        """
        return socket.create_connection((self.host, self.port), timeout)
