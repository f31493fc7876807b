"""The daemon's socket and processes of other users: the modes of the files first, then the user of the connection."""

import asyncio
import stat
import sys
from pathlib import Path

import pytest

from tests.support.node.multus_process import multus_node

CONNECT = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setresgid(4711, 4711, 4711)
os.setresuid(4711, 4711, 4711)
connection = socket.socket(socket.AF_UNIX)
connection.connect("multus.sock")
try:
    connection.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    print(connection.recv(12).decode())
except ConnectionError:
    print("")
"""


async def request_as_another_user(folder: Path) -> tuple[str, str]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CONNECT, folder, stdout=-1, stderr=-1)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return out.decode().strip(), err.decode()


@pytest.mark.parametrize(("users", "answer"), [("", ""), ("12,4711", "HTTP/1.1 200")])
async def test_a_process_of_another_user_is_refused_unless_a_setting_names_the_user(
    tmp_path: Path, plugins: Path, users: str, answer: str
) -> None:
    async with multus_node(tmp_path, plugins) as node:
        node.environ["HOTNIC_SOCKET_USERS"] = users
        async with node.daemon():
            run = tmp_path / "run"
            assert [stat.S_IMODE(path.stat().st_mode) for path in (run, run / "multus.sock")] == [0o700, 0o600]
            assert "PermissionError" in (await request_as_another_user(run))[1]
            # As where the socket is mounted elsewhere, or an administrator has changed the modes.
            run.chmod(0o755)
            (run / "multus.sock").chmod(0o666)
            assert await request_as_another_user(run) == (answer, "")
        refused = "connection of another user refused" in (tmp_path / "daemon.log").read_text()
        assert refused is (not answer)
