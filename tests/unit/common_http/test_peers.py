"""Who may use a unix socket. Connections of real other users: tests/integration/multus/test_socket_users.py."""

import os
import socket
import struct
from pathlib import Path

import pytest
from aiohttp import web

from services.common.http.client import UnixHttpClient
from services.common.http.peers import AllowedPeers
from services.common.http.server import make_app, serve
from tests.support.telemetry.spans import recording_telemetry


class Connection:
    """A connection whose other end has a user."""

    def __init__(self, family: int, user: int) -> None:
        self.family = family
        self._user = user

    def get_extra_info(self, _name: str) -> "Connection":
        return self

    def getsockopt(self, level: int, option: int, _size: int) -> bytes:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return struct.pack("3i", 1, self._user, 0)


@pytest.mark.parametrize(
    ("user", "named", "admitted"),
    [
        (0, (), True),
        (os.geteuid(), (), True),
        (4711, (), False),
        (4711, (4711, 5), True),
        (65534, (4711,), False),  # a user of another user namespace
    ],
)
def test_root_the_own_user_and_named_users_are_admitted(user: int, named: tuple[int, ...], admitted: bool) -> None:
    peers = AllowedPeers(named)
    assert peers.admit(Connection(socket.AF_UNIX, user)) is admitted  # type: ignore[arg-type]
    assert peers.admit(Connection(socket.AF_INET, user))  # type: ignore[arg-type]


async def test_a_server_admits_its_own_user(tmp_path: Path) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="yes")

    app = make_app(telemetry=recording_telemetry()[0], max_body=100, errors="text")
    app.router.add_get("/", answer)
    async with serve(app, f"unix:{tmp_path}/s"):
        client = UnixHttpClient(str(tmp_path / "s"), recording_telemetry()[0])
        assert await client.request("GET", "/") == (200, b"yes")
        await client.close()
