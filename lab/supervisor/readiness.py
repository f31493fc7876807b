"""Wait until a started process is ready: its port or unix socket accepts connections, or its /readyz returns 200.

Each probe polls at a short interval until it succeeds; the caller sets the deadline. `wait_unless_exited` stops at once
when the process has ended, so that a wrong flag does not look like a slow start.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from lab.supervisor.processes import Child, EarlyExitError

INTERVAL: Final = 0.02
"""Seconds between two attempts."""

ATTEMPT_TIMEOUT: Final = 2.0
"""Seconds that one attempt may take."""


class TlsServer(NamedTuple):
    """A server on 127.0.0.1, and the settings and credentials with which to connect."""

    port: int
    context: ssl.SSLContext


class NodeServer(NamedTuple):
    """A server on 127.0.0.1 of a further node.

    :ivar network: descriptor of the node's network namespace.
    """

    port: int
    network: int


async def wait_for_port(number: int) -> None:
    """Return once a process accepts connections on 127.0.0.1:`number`."""
    while True:
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                _, writer = await asyncio.open_connection("127.0.0.1", number)
        except (OSError, TimeoutError):
            await asyncio.sleep(INTERVAL)
        else:
            writer.close()
            return


async def wait_for_socket(path: Path) -> None:
    """Return once a process accepts connections on the unix socket `path`."""
    while True:
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                _, writer = await asyncio.open_unix_connection(str(path))
        except (OSError, TimeoutError):
            await asyncio.sleep(INTERVAL)
        else:
            writer.close()
            return


async def wait_for_readyz(server: int | TlsServer | NodeServer) -> None:
    """Return once GET /readyz returns status 200.

    :param server: its port on 127.0.0.1; with TLS, port and credentials.
    """
    await wait_for_answer(server, "/readyz", lambda status, _body: status == 200)


async def wait_for_answer(
    server: int | TlsServer | NodeServer, resource: str, accept: Callable[[int, str], bool]
) -> None:
    """Return once GET `resource` returns what the caller waits for.

    :param server: its port, or how to connect with TLS.
    :param accept: whether a status and a body are the expected ones; without an answer, the status is 0.
    """
    while True:
        if accept(*await http_get(server, resource)):
            return
        await asyncio.sleep(INTERVAL)


async def http_get(server: int | TlsServer | NodeServer, resource: str) -> tuple[int, str]:
    """Return status and body of GET `resource`; (0, reason) when there is no answer.

    :param server: its port on 127.0.0.1; with TLS, port and credentials.
    """
    try:
        async with asyncio.timeout(ATTEMPT_TIMEOUT):
            reader, writer = await _connect(server)
            try:
                # With HTTP/1.0 the server closes the connection after its response, which ends `read`.
                writer.write(f"GET {resource} HTTP/1.0\r\nHost: lab\r\n\r\n".encode())
                answer = (await reader.read()).decode(errors="replace")
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        return 0, str(error) or type(error).__name__
    head, _, body = answer.partition("\r\n\r\n")
    words = head.split(" ", 2)
    return (int(words[1]), body.strip()) if len(words) > 1 and words[1].isdigit() else (0, "no HTTP answer")


async def _connect(server: int | TlsServer | NodeServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(server, NodeServer):
        # Imported here because a lab with one node does not need it.
        from services.common.netlink.netns_thread import run_in_netns

        connect = partial(socket.create_connection, ("127.0.0.1", server.port), ATTEMPT_TIMEOUT)
        sock = await run_in_netns(server.network, connect, timeout=ATTEMPT_TIMEOUT)
        sock.setblocking(False)
        return await asyncio.open_connection(sock=sock)
    port, context = server if isinstance(server, TlsServer) else (server, None)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def wait_unless_exited(child: Child, probe: Coroutine[None, None, None]) -> None:
    """Await `probe`.

    :raises EarlyExitError: `child` ended first.
    """
    probing = asyncio.ensure_future(probe)
    try:
        racing: set[asyncio.Future[Any]] = {probing, child.exit}
        await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
        if child.exit.done():
            raise EarlyExitError(child)
        await probing
    finally:
        probing.cancel()
