"""The shim as the runtime executes it: a single file, run by the system's Python, with a scripted daemon."""

import asyncio
import base64
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas import cni, multus
from services.common.node.files import install_executable
from services.multus.container_runtime import shim

RESULT: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450, "sandbox": "/ns", "pciID": "p"}],
    "ips": [{"address": "10.0.0.2/24", "interface": 0}, {"address": "fd00::2/64", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400}],
}


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The installed shim: the Python file, or the executable that ``scripts/image/shim`` builds."""
    target = tmp_path / multus.SHIM_NAME
    install_executable(Path(os.environ.get("HOTNIC_TEST_SHIM", shim.__file__)), target)
    return target


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """The runtime's configuration."""
    return {"cniVersion": "1.0.0", "name": "n", "type": "hotnic-multus", "daemonSocketDir": str(tmp_path)}


async def run(
    plugin: Path, command: str | None, config: dict[str, Any] | bytes, **environ: str
) -> tuple[int, Any, str]:
    """Execute the shim; return its exit code, its decoded output and its standard error."""
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    env = {"CNI_CONTAINERID": "abc", "CNI_NETNS": "/ns", "CNI_IFNAME": "eth0", "SECRET": "s", **environ}
    if command is not None:
        env["CNI_COMMAND"] = command
    process = await asyncio.create_subprocess_exec(plugin, env=env, stdin=-1, stdout=-1, stderr=-1)
    out, err = await asyncio.wait_for(process.communicate(raw), 20)
    assert process.returncode is not None
    return process.returncode, (json.loads(out) if out else None), err.decode()


class Scripted:
    """A scripted daemon: it responds to each POST with raw bytes and to the health check with 200."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.healthy: Callable[[], bool] = lambda: True

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        fields = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        self.requests.append((first, fields, json.loads(body) if body else None))
        if first.startswith("GET"):
            status = b"200 OK" if self.healthy() else b"500 Internal Server Error"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(self.answer)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def daemon(folder: Path, answer: bytes = b"") -> AsyncIterator[Scripted]:
    """Run a scripted daemon while the context is open."""
    scripted = Scripted(answer)
    server = await asyncio.start_unix_server(scripted.handle, folder / "multus.sock")
    try:
        yield scripted
    finally:
        server.close()
        await server.wait_closed()


def http(body: Any, status: str = "200 OK") -> bytes:
    """Return a response with a Content-Length."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def chunked(body: Any) -> bytes:
    """Return the same response in chunks."""
    data = json.dumps(body).encode()
    parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:7], data[7:]))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


@pytest.mark.parametrize("version", ["0.3.0", *cni.SUPPORTED_VERSIONS])
async def test_add_prints_the_version_of_the_configuration(
    plugin: Path, config: dict[str, Any], tmp_path: Path, version: str
) -> None:
    config["cniVersion"] = version
    async with daemon(tmp_path, http({"Result": RESULT})) as scripted:
        code, out, _ = await run(plugin, "ADD", config, TRACEPARENT="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    assert code == 0
    expected = cni.down_convert(cni.up_convert(json.dumps(RESULT).encode()), "0.3.1" if version == "0.3.0" else version)
    expected.pop("dns", None)
    assert out == {**expected, "cniVersion": version}
    [(_, _, _), (first, fields, request)] = scripted.requests
    assert first == "POST /cni HTTP/1.1"
    assert fields["traceparent"] == "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    assert json.loads(base64.b64decode(request["config"])) == config
    assert request["env"] == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "abc",
        "CNI_NETNS": "/ns",
        "CNI_IFNAME": "eth0",
    }


@pytest.mark.parametrize(
    "answer",
    [chunked({"Result": RESULT}), b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps({"Result": RESULT}).encode()],
    ids=["chunked", "until the end"],
)
async def test_responses_are_read_in_any_framing(
    plugin: Path, config: dict[str, Any], tmp_path: Path, answer: bytes
) -> None:
    async with daemon(tmp_path, answer):
        code, out, _ = await run(plugin, "ADD", config)
    assert (code, out["ips"][0]["address"]) == (0, "10.0.0.2/24")


@pytest.mark.parametrize(
    ("answer", "code", "part"),
    [
        (http({"code": 11, "msg": "later", "details": "d"}, "400 Bad Request"), 11, "later"),
        (http(b'ContainerID:"abc" ERRORED: text\n', "400 Bad Request"), 999, 'status 400: ContainerID:"abc"'),
        (http({"code": "x"}, "400 Bad Request"), 999, "status 400"),
        (http({"Nothing": 1}), 999, "is not a result"),
        (http(b""), 999, "is not a result"),
        (http(b"[]"), 999, "is not a result"),
        (b"", 11, "without a response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", 11, "is incomplete"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{}", 11, "is incomplete"),
        (b"garbage\r\n\r\n", 11, "failed"),
    ],
)
async def test_failures_become_error_documents(
    plugin: Path, config: dict[str, Any], tmp_path: Path, answer: bytes, code: int, part: str
) -> None:
    async with daemon(tmp_path, answer):
        status, out, _ = await run(plugin, "ADD", config)
    assert status == 1
    assert out["code"] == code
    assert part in out["msg"]


async def test_add_waits_until_the_daemon_is_ready(plugin: Path, config: dict[str, Any], tmp_path: Path) -> None:
    probed = asyncio.Event()
    calling = asyncio.create_task(run(plugin, "ADD", config))
    async with daemon(tmp_path, http({"Result": RESULT})) as scripted:
        answers = iter([False, False])

        def healthy() -> bool:
            probed.set()
            return next(answers, True)

        scripted.healthy = healthy
        await asyncio.wait_for(probed.wait(), 5)
        code, out, _ = await calling
    assert (code, out["cniVersion"]) == (0, "1.0.0")
    assert [first.split()[0] for first, _, _ in scripted.requests] == ["GET", "GET", "GET", "POST"]


async def test_add_retries_when_the_daemon_ends_before_the_call(
    plugin: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    """Upstream fault: the daemon dies between health check and call, and the creation of the pod fails."""
    gone = asyncio.Event()
    log = tmp_path / "shim.log"
    log_settings(plugin, logFile=str(log), logLevel="verbose")
    async with daemon(tmp_path) as first:
        first.healthy = lambda: gone.set() is None and not (tmp_path / "multus.sock").unlink()
        calling = asyncio.create_task(run(plugin, "ADD", config))
        await asyncio.wait_for(gone.wait(), 10)
        while not (log.exists() and "is restarting" in log.read_text()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    async with daemon(tmp_path, http({"Result": RESULT})) as second:
        code, _, _ = await calling
    assert code == 0
    assert [line.split()[0] for line, _, _ in second.requests] == ["GET", "POST"]


def impatient_shim(folder: Path) -> Path:
    """Return the whole program with a shorter wait."""
    path = folder / "impatient"
    path.write_text(Path(shim.__file__).read_text().replace("READY_SECONDS = 60.0", "READY_SECONDS = 0.2"))
    path.chmod(0o755)
    return path


async def test_a_call_without_a_daemon_says_what_to_delete(config: dict[str, Any], tmp_path: Path) -> None:
    """On a node that was away while hotnic was uninstalled, new pods cannot be created until a file is deleted."""
    code, out, _ = await run(impatient_shim(tmp_path), "ADD", config)
    assert (code, out["code"]) == (1, 11)
    assert "the multus daemon is not ready" in out["msg"]
    assert "if hotnic was removed from this cluster, delete 00-multus.conf" in out["msg"]


def test_a_full_queue_of_the_socket_is_no_connection(tmp_path: Path) -> None:
    """The call was not sent, so it is sent again. After a reboot all pods of a node call at once."""
    path = str(tmp_path / "multus.sock")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen(0)
        # A queue of length 0 holds one connection.
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(path)
        with pytest.raises(shim.NotSent, match="temporarily unavailable"):
            shim.http(path, "POST", "/cni", b"{}", time.monotonic() + 10)


async def test_del_always_succeeds(plugin: Path, config: dict[str, Any], tmp_path: Path) -> None:
    code, out, err = await run(plugin, "DEL", config)
    assert (code, out) == (0, None)
    assert "DEL is left to the daemon's next start" in err
    async with daemon(tmp_path, http({"code": 11, "msg": "not now"}, "400 Bad Request")):
        code, out, err = await run(plugin, "DEL", config)
    assert (code, out) == (0, None)
    assert "not now" in err
    async with daemon(tmp_path, http(b"")):
        assert await run(plugin, "DEL", config) == (0, None, "")


@pytest.mark.parametrize(
    ("command", "version", "code", "part"),
    [
        ("CHECK", "0.3.1", 1, "does not allow CHECK; 0.4.0 does"),
        ("STATUS", "1.0.0", 1, "does not allow STATUS; 1.1.0 does"),
        ("GC", "1.0.0", 1, "does not allow GC"),
        ("ADD", "0.2.0", 1, "CNI version 0.2.0 is not supported"),
        ("BURN", "1.0.0", 4, "unknown CNI_COMMAND: BURN"),
        (None, "1.0.0", 4, "CNI_COMMAND"),
    ],
)
async def test_unsupported_commands_and_versions_are_refused_without_the_daemon(
    plugin: Path, config: dict[str, Any], command: str | None, version: str, code: int, part: str
) -> None:
    status, out, _ = await run(plugin, command, {**config, "cniVersion": version})
    assert (status, out["code"]) == (1, code)
    assert part in out["msg"]


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"null", b"\xff"])
async def test_an_invalid_configuration_is_refused(plugin: Path, config: bytes) -> None:
    status, out, _ = await run(plugin, "ADD", config)
    assert (status, out["code"]) == (1, 6)


async def test_commands_without_a_result_print_nothing(plugin: Path, config: dict[str, Any], tmp_path: Path) -> None:
    config["cniVersion"] = "1.1.0"
    async with daemon(tmp_path, http(b"")):
        for command in ("CHECK", "STATUS", "GC", "DEL"):
            assert await run(plugin, command, config) == (0, None, "")


async def test_version_needs_neither_daemon_nor_configuration(plugin: Path) -> None:
    code, out, _ = await run(plugin, "VERSION", b"")
    assert code == 0
    assert out["cniVersion"] == "1.1.0"
    assert set(cni.SUPPORTED_VERSIONS) <= set(out["supportedVersions"])


def log_settings(plugin: Path, **keys: Any) -> None:
    """Write the shim's log settings, as the daemon does."""
    plugin.with_name(multus.SHIM_LOG_NAME).write_text(json.dumps(keys))


async def test_the_log_settings_of_the_node_are_obeyed(plugin: Path, config: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "shim.log"
    log_settings(plugin, logFile=str(log), logLevel="verbose", logToStderr=False)
    async with daemon(tmp_path, http({"Result": RESULT})):
        code, _, err = await run(plugin, "ADD", config)
    assert (code, err) == (0, "")
    assert "hotnic-multus: ADD for container abc" in log.read_text()


async def test_the_author_of_a_network_chooses_no_file_and_no_lines_of_the_log(
    plugin: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    """Its configuration reaches the shim where another multus runs it: root would append the author's text there."""
    named, log = tmp_path / "named.log", tmp_path / "shim.log"
    log_settings(plugin, logFile=str(log), logToStderr=False)
    config |= {"logFile": str(named), "logLevel": "debug", "daemonSocketDir": f"{tmp_path}/a\nroot:x:0:0\x1b[2J"}
    code, _, err = await run(plugin, "DEL", config)
    assert (code, named.exists()) == (0, False)
    [line] = log.read_text().splitlines()
    assert "a\\nroot:x:0:0\\x1b[2J" in line
    assert len(err.splitlines()) == 1


async def test_the_shim_as_a_plugin_of_a_network_refuses_at_once(
    plugin: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    """Else the daemon would wait for itself: for the lock of the sandbox whose plugin the shim is."""
    async with daemon(tmp_path, http({"Result": RESULT})) as scripted:
        code, out, _ = await run(plugin, "ADD", config, **{multus.PLUGIN_MARK: "1"})
        assert (code, out["code"], scripted.requests) == (1, 7, [])
        assert "hotnic-multus is not allowed in a network" in out["msg"]
        assert await run(plugin, "DEL", config, **{multus.PLUGIN_MARK: "1"}) == (0, None, "")
        assert scripted.requests == []


def test_the_shim_imports_only_a_few_standard_modules() -> None:
    imported = {
        line.split()[1]
        for line in Path(shim.__file__).read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported == {"__future__", "binascii", "json", "os", "socket", "sys", "time"}
    assert Path(shim.__file__).read_text().startswith("#!/usr/bin/python3 -IS\n")
    assert os.path.basename(shim.__file__) == "shim.py"
