"""``hotnic healthcheck``: asks a role on this machine whether it is ready, for the health checks of containers.

It speaks HTTP over a plain socket, because it starts anew for every check: ``http.client`` or aiohttp would take longer
to import than the check itself. The endpoints are :mod:`services.common.runtime.health`.
"""

from __future__ import annotations

import os
import socket
import time

import click

from services.cli.errors import CommandFailed
from services.cli.output import Duration, examples, say

VARIABLE = "HOTNIC_HEALTH_LISTEN"
MAX_RESPONSE = 64 * 1024
"""Bytes; a response of the health endpoints is a line for each condition."""


@click.command(
    epilog=examples(
        "hotnic healthcheck",
        "# Only check that the process responds",
        "hotnic healthcheck --live",
        "hotnic healthcheck --timeout 5s",
    )
)
@click.option("--live", is_flag=True, help="Ask /healthz (the process responds) instead of /readyz (it can work).")
@click.option("--timeout", type=Duration(), default="2s", show_default=True, help="Deadline of the check.")
def healthcheck(live: bool, timeout: float) -> None:
    """Check that the role at HOTNIC_HEALTH_LISTEN is ready.

    The variable has the role's own value: HOST:PORT or unix:/PATH, or several, of which a unix socket is asked. The
    exit code is 0 if the role is ready; otherwise it is 1 and the reason is on standard error.
    """
    addresses = [address.strip() for address in os.environ.get(VARIABLE, "").split(",")]
    # Another process may hold a port, and answer in place of the role.
    listen = next((address for address in addresses if address.startswith("unix:")), addresses[0])
    if not listen:
        raise CommandFailed(f"{VARIABLE} is not set; set it to the HOST:PORT or unix:/PATH that the role listens on")
    try:
        status, body = request(listen, "/healthz" if live else "/readyz", timeout)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"cannot check the role at {listen}: {error}") from error
    if status != 200:
        raise CommandFailed(f"the role at {listen} is not ready: {reason(status, body)}")
    say("live" if live else "ready")


def request(listen: str, path: str, timeout: float) -> tuple[int, str]:
    """Get a path; return status and body.

    :param listen: the address in the form of the role's setting.
    :param timeout: seconds for the whole exchange.
    :raises ValueError: the address is malformed, or the response is not HTTP.
    :raises OSError: there is no response within the timeout.
    """
    deadline = time.monotonic() + timeout
    with connect(listen, timeout) as connection:
        # With HTTP/1.0 the server closes the connection after its response, so the response ends where the stream does.
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: hotnic\r\n\r\n".encode())
        received = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            connection.settimeout(left)
            part = connection.recv(MAX_RESPONSE)
            if not part:
                return parse(received)
            received += part
            if len(received) > MAX_RESPONSE:
                raise ValueError(f"the response is longer than {MAX_RESPONSE} bytes")


def connect(listen: str, timeout: float) -> socket.socket:
    """Connect to the address that a role listens on.

    :raises ValueError: the address is malformed.
    :raises OSError: nothing listens there.
    """
    if listen.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(listen.removeprefix("unix:"))
        except BaseException:
            connection.close()
            raise
        return connection
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("the address is neither HOST:PORT nor unix:/PATH")
    # An empty host or 0.0.0.0 or :: means all addresses to the role, and this machine to connect().
    return socket.create_connection((host.removeprefix("[").removesuffix("]") or "localhost", int(port)), timeout)


def parse(response: bytes) -> tuple[int, str]:
    """Return status and body of an HTTP response.

    :raises ValueError: it is not HTTP.
    """
    head, _, body = response.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError("the response is not HTTP")
    return int(words[1]), body.decode(errors="replace")


def reason(status: int, body: str) -> str:
    """Return why a role is not ready: its unmet conditions, or the status if the body lists none."""
    unmet = [line.removeprefix("[-]") for line in body.splitlines() if line.startswith("[-]")]
    return "; ".join(unmet) or f"HTTP status {status}"
