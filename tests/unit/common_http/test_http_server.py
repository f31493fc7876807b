"""The server: error formats, body limits, spans, and listening addresses."""

import asyncio
import contextlib
import gc
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from opentelemetry.trace import SpanKind, StatusCode

from schemas.kubernetes.objects import StatusCause, StatusDetails
from services.common.http.deadlines import MAX_QUOTED, Connections
from services.common.http.listen import bind
from services.common.http.server import ErrorFormat, StatusError, error_response, make_app, serve
from services.common.http.tls import ServerTls
from tests.support.kube.certs import Authority
from tests.support.telemetry.spans import named, recording_telemetry

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def refuse(_request: web.Request) -> web.Response:
    details = StatusDetails(name="vm", causes=[StatusCause(field="name", message="bad")])
    raise StatusError(422, None, "not like this", details, {"X-Why": "because"})


async def bug(_request: web.Request) -> web.Response:
    raise ZeroDivisionError("secret detail")


async def teapot(_request: web.Request) -> web.Response:
    raise StatusError(418, None, "short and stout")


def plain_app(**options: Any) -> web.Application:
    app = make_app(telemetry=recording_telemetry()[0], max_body=100, **options)
    app.router.add_get("/refuse", refuse)
    app.router.add_put("/apis/{name}/echo", echo)
    return app


@asynccontextmanager
async def server(**options: Any) -> AsyncIterator[tuple[aiohttp.ClientSession, Any]]:
    telemetry, spans = recording_telemetry()
    app = make_app(telemetry=telemetry, max_body=100, **options)
    app.router.add_put("/apis/{name}/echo", echo)
    app.router.add_get("/refuse", refuse)
    app.router.add_get("/bug", bug)
    app.router.add_get("/teapot", teapot)
    async with (
        serve(app, "127.0.0.1:0") as address,
        aiohttp.ClientSession(f"http://{address}", timeout=aiohttp.ClientTimeout(5)) as client,
    ):
        yield client, spans


@pytest.mark.parametrize(
    ("method", "path", "code", "reason"),
    [
        ("GET", "/nowhere", 404, "NotFound"),
        ("GET", "/apis/a/echo", 405, "MethodNotAllowed"),
        ("GET", "/refuse", 422, "Invalid"),
        ("GET", "/bug", 500, "InternalError"),
        ("GET", "/teapot", 418, "I'maTeapot"),
    ],
)
async def test_every_error_is_a_status(method: str, path: str, code: int, reason: str) -> None:
    async with server() as (client, _), client.request(method, path) as response:
        body = await response.json()
        assert (response.status, response.content_type) == (code, "application/json")
    assert (body["kind"], body["apiVersion"], body["metadata"]) == ("Status", "v1", {})
    assert (body["status"], body["code"], body["reason"]) == ("Failure", code, reason)
    assert body["message"]
    assert "secret" not in body["message"]


async def test_an_error_has_its_details_and_headers() -> None:
    async with server() as (client, _), client.get("/refuse") as response:
        body = await response.json()
        assert body["details"] == {"name": "vm", "causes": [{"field": "name", "message": "bad"}]}
        assert response.headers["X-Why"] == "because"


async def test_405_names_the_allowed_methods() -> None:
    async with server() as (client, _), client.post("/apis/a/echo") as response:
        assert (response.status, response.headers["Allow"]) == (405, "PUT")


@pytest.mark.parametrize(("path", "code"), [("/nowhere", 404), ("/bug", 500), ("/refuse", 422)])
async def test_errors_can_be_text(path: str, code: int) -> None:
    async with server(errors="text") as (client, _), client.get(path) as response:
        assert (response.status, response.content_type) == (code, "text/plain")
        assert (await response.text()).strip()


async def test_an_unexpected_exception_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with server() as (client, _), client.get("/bug"):
        pass
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "code"), [(100, 200), (101, 413), (100_000, 413)])
async def test_bodies_are_limited_with_and_without_chunks(size: int, code: int, chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, 50):
            yield b"x" * min(50, size - start)

    async with server() as (client, _):
        async with client.put("/apis/a/echo", data=chunks() if chunked else b"x" * size) as response:
            assert response.status == code
            if code == 413:
                assert (await response.json())["reason"] == "RequestEntityTooLarge"
        async with client.put("/apis/a/echo", data=b"next") as response:
            assert await response.read() == b"next"


@pytest.mark.parametrize("sent", [b"G", b"GET /refuse HTTP/1.1\r\nHost:"])
@pytest.mark.parametrize("before", [False, True], ids=["first", "second"])
async def test_a_connection_without_a_complete_head_is_closed(sent: bytes, before: bool) -> None:
    async with serve(plain_app(), "127.0.0.1:0", head=0.1) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(5):
            if before:
                writer.write(b"GET /refuse HTTP/1.1\r\nHost: a\r\n\r\n")
                await reader.readuntil(b'"bad"')
            # Between two requests, a connection may idle: only the first byte of a head begins to count.
            writer.write(sent)
            # A connection that is ended hard has no orderly end.
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        writer.close()


async def test_a_body_that_does_not_end_is_refused() -> None:
    async with serve(plain_app(body_deadline=0.1), "127.0.0.1:0") as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PUT /apis/a/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhalf")
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
            # What follows would be parsed as the next request.
            assert b"Connection: close\r\n" in await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_a_connection_without_a_tls_handshake_is_closed(tmp_path: Path) -> None:
    pair, tls = Authority(tmp_path).server(), ServerTls()
    tls.use(pair.cert.read_bytes(), pair.key.read_bytes())
    async with serve(plain_app(), "127.0.0.1:0", ssl=tls.context, head=0.1) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()


async def test_a_client_that_leaves_within_a_body_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    telemetry, spans = recording_telemetry()
    app = make_app(telemetry=telemetry, max_body=100)
    app.router.add_put("/apis/{name}/echo", echo)
    async with serve(app, "127.0.0.1:0") as address:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PUT /apis/a/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhalf")
        writer.close()
        async with asyncio.timeout(5):
            while not spans.get_finished_spans():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert named(spans.get_finished_spans(), "PUT /apis/{name}/echo").status.status_code is StatusCode.UNSET
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]


async def test_a_malformed_request_is_logged_as_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Anybody can send one, as often as they like."""
    async with serve(plain_app(), "127.0.0.1:0") as address:
        host, _, port = address.rpartition(":")
        for head in (b"GET /refuse HTTP/1.1\r\nbad header\r\n\r\n", b"\x16\x03\x01\r\n\r\n"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head)
            async with asyncio.timeout(50):
                assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
            writer.close()
    assert not [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize(
    "name", [b"Accept", b"Expect", b"X-Remote-User", b"Content-Encoding", b"traceparent", b"Cookie"]
)
async def test_a_header_that_is_no_text_is_a_bad_request(name: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with server() as (client, _):
        base = client._base_url
        assert base is not None
        reader, writer = await asyncio.open_connection(base.host, base.port)
        async with asyncio.timeout(50):
            for value, code in ((b"\xff", b"400"), (b"\xed\xa0\x80", b"400"), ("ä".encode(), b"4")):
                writer.write(b"GET /none HTTP/1.1\r\nHost: a\r\n" + name + b": " + value + b"\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 " + code), head
                if b"connection: close" in head.lower():
                    break
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        writer.close()
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("path", ["/apis/a/echo", "/none", "/stream", "/redirect"])
@pytest.mark.parametrize("header", [b"", b"Accept: \xff\r\n"], ids=["text", "no text"])
async def test_a_trailer_does_not_become_a_header_of_the_next_request(path: str, header: bytes) -> None:
    """The next request of a connection of the aggregation layer may be another user's."""
    handled = []

    async def stream(request: web.Request) -> web.StreamResponse:
        handled.append(request.path)
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    async def redirect(request: web.Request) -> web.Response:
        handled.append(request.path)
        raise web.HTTPFound("/")

    app = plain_app()
    app.router.add_put("/stream", stream)
    app.router.add_put("/redirect", redirect)
    async with serve(app, "127.0.0.1:0") as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"PUT {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n".encode() + header)
        writer.write(b"\r\n3\r\nabc\r\n0\r\nX-Remote-User: admin\r\n\r\n")
        writer.write(b"PUT /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        async with asyncio.timeout(50):
            answer = await reader.read()
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in answer.lower() or path == "/stream"
        writer.close()
    assert handled in ([], [path])


@pytest.mark.parametrize("head", [b"", b"Upgrade: tcp\r\nConnection: Upgrade\r\n", b"Upgrade: websocket\r\n"])
@pytest.mark.parametrize("method", ["CONNECT", "PUT", "GET", "OPTIONS", "PROPFIND", "TRACE"])
@pytest.mark.parametrize("path", ["/stream", "/none", "a:1"])
async def test_a_body_does_not_become_the_next_request(method: str, path: str, head: bytes) -> None:
    """Go passes a body on with any method; the aggregation layer has authenticated the connection, not the body."""
    handled = []

    async def handle(request: web.Request) -> web.Response:
        handled.append(request.headers.get("X-Remote-User"))
        return web.Response()

    app = plain_app()
    app.router.add_route("*", "/stream", handle)
    inner = b"PUT /stream HTTP/1.1\r\nHost: a\r\nX-Remote-User: admin\r\nContent-Length: 0\r\n\r\n"
    async with serve(app, "127.0.0.1:0") as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        length = f"Content-Length: {len(inner)}\r\n\r\n".encode()
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: a\r\n".encode() + head + length + inner)
        writer.write(b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(50):
            answer = await reader.read()
        writer.close()
    assert answer
    assert "admin" not in handled


class ClosedAtOnce(asyncio.Transport):
    """The transport of a client that has gone before it gets an answer."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is written."""

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        """It is closed."""

    abort = close


async def test_what_follows_a_malformed_head_is_not_kept() -> None:
    """Any pod may connect to a role's health port, and close its connection before the error is answered."""
    runner = web.AppRunner(plain_app(), handle_signals=False)
    await runner.setup()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            connection = Connections(runner.server)()  # type: ignore[arg-type]
            assert isinstance(connection, asyncio.Protocol)
            connection.connection_made(ClosedAtOnce())
            await asyncio.sleep(0)
            connection.data_received(b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 100_000)
            connection.data_received(b"x" * 100_000)
            connection.connection_lost(None)
        await asyncio.sleep(0)
        kept = [found for found in gc.get_objects() if isinstance(found, BadHttpMessage)]
        assert max((len(found.message) for found in kept), default=0) <= MAX_QUOTED
    finally:
        gc.enable()
        await runner.cleanup()


@pytest.mark.parametrize("form", ["status", "text"])
def test_an_error_that_quotes_what_is_no_text_is_still_a_response(form: ErrorFormat) -> None:
    response = error_response(StatusError(404, None, "no such path: \udcff"), form)
    assert b"\\udcff" in bytes(response.body if isinstance(response.body, bytes) else b"")


async def test_a_body_that_cannot_be_decompressed_is_a_bad_request(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(plain_app(), "127.0.0.1:0") as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = b"PUT /apis/a/echo HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n"
        writer.write(head + b"abcGET /refuse HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(50):
            # What follows is no request: where the body ends is not known.
            answer = await reader.read()
        assert (answer[:13], answer.count(b"HTTP/1.1")) == (b"HTTP/1.1 400 ", 1)
        writer.close()
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]


async def test_connections_that_send_nothing_make_room_for_others() -> None:
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(Connections(asyncio.Protocol, limit=2), "127.0.0.1", 0)
    address = listening.sockets[0].getsockname()[:2]
    clients = [await asyncio.open_connection(*address) for _ in range(3)]
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            assert await clients[0][0].read() == b""
    assert not clients[1][0].at_eof()
    for _, writer in clients:
        writer.close()
    listening.close()
    await listening.wait_closed()


async def test_a_request_has_a_server_span_as_child_of_the_callers() -> None:
    async with server() as (client, spans):
        async with client.put("/apis/vm1/echo", data=b"x", headers={"traceparent": TRACEPARENT}):
            pass
        async with client.get("/bug"):
            pass
        async with client.get("/nowhere"):
            pass
    finished = spans.get_finished_spans()
    put = named(finished, "PUT /apis/{name}/echo")
    assert put.kind is SpanKind.SERVER
    assert f"{put.context.trace_id:032x}" == TRACEPARENT[3:35]
    assert f"{put.parent.span_id:016x}" == TRACEPARENT[36:52]
    assert put.attributes["url.path"] == "/apis/vm1/echo"
    assert put.attributes["http.response.status_code"] == 200
    assert named(finished, "GET /bug").status.status_code is StatusCode.ERROR
    assert named(finished, "GET").attributes["http.response.status_code"] == 404


async def test_running_requests_end_before_the_server() -> None:
    telemetry, _ = recording_telemetry()
    app = make_app(telemetry=telemetry, max_body=100)
    arrived, release = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        arrived.set()
        await release.wait()
        return web.Response(text="done")

    app.router.add_get("/slow", slow)
    async with aiohttp.ClientSession() as client:
        async with serve(app, "127.0.0.1:0") as address:
            response = asyncio.create_task(client.get(f"http://{address}/slow"))
            await asyncio.wait_for(arrived.wait(), 5)
            asyncio.get_running_loop().call_soon(release.set)
        assert await (await response).text() == "done"


async def unix_get(path: Path) -> str:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
        client.put("http://x/apis/a/echo", data=b"hello") as response,
    ):
        return await response.text()


def unix_app() -> web.Application:
    app = make_app(telemetry=recording_telemetry()[0], max_body=100)
    app.router.add_put("/apis/{name}/echo", echo)
    return app


async def test_a_unix_socket_has_mode_0600_and_is_removed_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "s.sock"
    async with serve(unix_app(), f"unix:{path}") as address:
        assert address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await unix_get(path) == "hello"
        assert list(path.parent.iterdir()) == [path]
    assert list(path.parent.iterdir()) == []


async def test_a_restart_leaves_no_gap_and_does_not_remove_the_successors_socket(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    async with serve(unix_app(), f"unix:{path}"):
        first = path.stat().st_ino
        async with serve(unix_app(), f"unix:{path}"):
            assert path.stat().st_ino != first
            assert await unix_get(path) == "hello"
    assert not path.exists()
    first_server = serve(unix_app(), f"unix:{path}")
    await first_server.__aenter__()
    async with serve(unix_app(), f"unix:{path}"):
        await first_server.__aexit__(None, None, None)
        assert await unix_get(path) == "hello"


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    async with serve(unix_app(), f"unix:{path}"):
        assert await unix_get(path) == "hello"


@pytest.mark.parametrize("content", ["file", "directory", "lease", "link"])
def test_what_is_no_socket_is_moved_aside_and_kept(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A plugin such as host-local makes directories at paths that the author of a network chooses."""
    path = tmp_path / "s.sock"
    if content == "file":
        path.write_text("mine")
    elif content == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        if content == "lease":
            (path / "10.0.0.1").write_text("mine")
    with bind(f"unix:{path}").socket:
        assert path.is_socket()
    path.unlink()
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith("s.sock.aside-")
    assert str(aside) in caplog.text
    if content != "directory":
        kept = {"file": aside, "lease": aside / "10.0.0.1"}
        assert content == "link" or kept[content].read_text() == "mine"


@pytest.mark.parametrize(("name", "mode"), [("s.sock", 0o777), ("s.sock", 0o770), ("etc", 0o700)])
def test_nothing_is_moved_aside_where_others_may_write_or_a_setting_is_wrong(
    tmp_path: Path, name: str, mode: int
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    (folder / name).mkdir()
    with pytest.raises(FileExistsError, match="is no socket; remove it"):
        bind(f"unix:{folder / name}")
    assert [entry.name for entry in folder.iterdir()] == [name]


def test_a_socket_path_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="longer than 107 bytes"):
        bind(f"unix:{tmp_path}/{'x' * 120}")
    assert list(tmp_path.iterdir()) == []


async def test_an_inherited_descriptor_is_served() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    async with (
        serve(unix_app(), f"fd:{os.dup(listening.fileno())}"),
        aiohttp.ClientSession() as client,
        client.put(f"http://127.0.0.1:{port}/apis/a/echo", data=b"x") as response,
    ):
        assert response.status == 200
    listening.close()


@pytest.mark.parametrize("listen", ["", "nonsense", "127.0.0.1:", "127.0.0.1:http", "fd:x"])
def test_a_malformed_address_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match=r"use host:port, unix:/path or fd:N|invalid literal"):
        bind(listen)


async def test_a_taken_port_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        bind(f"127.0.0.1:{taken.getsockname()[1]}")


async def test_an_unsampled_caller_is_linked_unless_it_is_one_of_hotnics_roles() -> None:
    unsampled = TRACEPARENT[:-1] + "0"
    async with server(internal=("/refuse",)) as (client, spans):
        for path in ("/bug", "/refuse"):
            async with client.get(path, headers={"traceparent": unsampled}):
                pass
    (span,) = spans.get_finished_spans()
    (link,) = span.links
    assert (span.name, span.parent) == ("GET /bug", None)
    assert span.context.trace_id != link.context.trace_id
    assert f"{link.context.trace_id:032x}-{link.context.span_id:016x}" == TRACEPARENT[3:52]
