"""The gRPC client of the container runtime, against a real server and against ones that do not keep to HTTP/2."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from hpack import Encoder

from services.common.cri.client import CriClient
from services.common.cri.errors import CriUnavailable
from services.common.cri.grpc_call import MAX_RESPONSE, GrpcError, call
from tests.support.telemetry.spans import recording_telemetry


def frame(kind: int, flags: int, payload: bytes, stream: int = 1) -> bytes:
    """Return a frame."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def headers(*found: tuple[str, str], end: bool = False) -> bytes:
    """Return a frame of headers."""
    return frame(1, 0x4 | end, Encoder().encode(list(found)))


OK = headers((":status", "200"), ("content-type", "application/grpc"))
TRAILERS = headers(("grpc-status", "0"), end=True)
MESSAGE = frame(0, 0, struct.pack(">BI", 0, 3) + b"abc")
SETTINGS, PING = frame(4, 0, b"", 0), frame(6, 0, b"12345678", 0)
BLOCK = Encoder().encode([(":status", "200"), ("content-type", "application/grpc")])


@asynccontextmanager
async def server(path: Path, response: bytes) -> AsyncIterator[list[bytes]]:
    """Serve one call with a response; yield what the client sent, complete when the context ends."""
    received: list[bytes] = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(65536))
        writer.write(response)
        writer.write_eof()
        with contextlib.suppress(OSError):
            received.append(await reader.read())
            writer.close()
            await writer.wait_closed()
        ended.set()

    async with await asyncio.start_unix_server(serve, path):
        yield received
        await ended.wait()


@pytest.mark.parametrize(
    "response",
    [
        OK + MESSAGE + TRAILERS,
        OK + MESSAGE + TRAILERS + frame(7, 0, struct.pack(">II", 0, 0) + b"bye", 0),
        # Padding, priority, a block in two frames, a message in two frames, frames of unknown kinds.
        frame(1, 0x8 | 0x20, b"\2" + bytes(5) + BLOCK[:3] + bytes(2))
        + frame(9, 0x4, BLOCK[3:])
        + frame(0, 0x8, b"\1" + struct.pack(">BI", 0, 3) + b"a" + b"\0")
        + frame(77, 0, b"unknown")
        + frame(0, 0, b"bc")
        + TRAILERS,
    ],
)
async def test_a_response_is_read(tmp_path: Path, response: bytes) -> None:
    async with server(tmp_path / "s", SETTINGS + PING + response):
        assert await call(str(tmp_path / "s"), "/s/M", b"r", deadline=5) == b"abc"


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (
            headers((":status", "200"), ("grpc-status", "5"), ("grpc-message", "no%20such"), end=True),
            "NOT_FOUND: no such",
        ),
        (headers((":status", "200"), ("grpc-status", "99"), end=True), "UNKNOWN: no details"),
        (headers((":status", "200"), ("grpc-status", "x"), end=True), "INTERNAL: malformed response"),
        (headers((":status", "404"), end=True), "INTERNAL: malformed response: no status of gRPC; HTTP status 404"),
        (OK + TRAILERS, "no message"),
        (OK + frame(0, 0, struct.pack(">BI", 1, 3) + b"abc") + TRAILERS, "message of 3 bytes in 3"),
        (OK + frame(0, 0, struct.pack(">BI", 0, 9) + b"abc") + TRAILERS, "message of 9 bytes in 3"),
        (OK + frame(3, 0, struct.pack(">I", 7)), "UNAVAILABLE: the server reset the call, HTTP/2 error 7"),
        (frame(7, 0, struct.pack(">II", 0, 0) + b"bye", 0), "UNAVAILABLE: the server goes away: bye"),
        (frame(7, 0, struct.pack(">II", 0, 0), 0) + PING, "UNAVAILABLE: connection ended: Invalid input"),
        (OK, "UNAVAILABLE: connection closed"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "UNAVAILABLE: connection closed"),
        (frame(1, 0x4, b"\xff"), "UNAVAILABLE: connection ended"),
        (frame(0, 0x8, b"\5"), "UNAVAILABLE: connection ended"),
        (frame(1, 0, bytes(16384)) + frame(9, 0, bytes(16384)) * 70, "UNAVAILABLE: connection ended"),
    ],
)
async def test_a_refused_malformed_or_interrupted_call_is_an_error(tmp_path: Path, response: bytes, error: str) -> None:
    async with server(tmp_path / "s", SETTINGS + response):
        with pytest.raises(GrpcError) as caught:
            await call(str(tmp_path / "s"), "/s/M", b"r", deadline=5)
    assert error in str(caught.value)


async def test_a_message_that_is_no_protobuf_is_an_unavailable_runtime(tmp_path: Path) -> None:
    response = SETTINGS + OK + frame(0, 0, struct.pack(">BI", 0, 1) + b"\xff") + TRAILERS
    async with server(tmp_path / "s", response):
        with pytest.raises(CriUnavailable, match="malformed response"):
            await CriClient(str(tmp_path / "s"), recording_telemetry()[0]).version()


@asynccontextmanager
async def real_server(path: Path, respond: Callable[..., Awaitable[bytes]]) -> AsyncIterator[None]:
    """Serve a method with grpcio's server."""
    real = grpc.aio.server(options=(("grpc.max_send_message_length", -1),))
    handler = grpc.method_handlers_generic_handler("s", {"M": grpc.unary_unary_rpc_method_handler(respond)})
    real.add_generic_rpc_handlers((handler,))
    real.add_insecure_port(f"unix:{path}")
    await real.start()
    try:
        yield
    finally:
        await real.stop(None)


async def test_every_header_that_a_real_server_sends_is_decoded(tmp_path: Path) -> None:
    printable = "".join(map(chr, range(0x20, 0x7F)))

    async def fail(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        context.set_trailing_metadata((("x-printable", printable), *((f"x-{n}", str(n)) for n in range(40))))
        await context.abort(grpc.StatusCode.ABORTED, printable + "ä€")
        return b""

    async with real_server(tmp_path / "s", fail):
        with pytest.raises(GrpcError) as caught:
            await call(str(tmp_path / "s"), "/s/M", b"", deadline=5)
    assert (caught.value.code, caught.value.details) == ("ABORTED", printable + "ä€")


async def test_a_response_of_a_real_server_has_a_limit(tmp_path: Path) -> None:
    async def respond(request: bytes, _context: object) -> bytes:
        return bytes(int(request))

    async with real_server(tmp_path / "s", respond):
        assert await call(str(tmp_path / "s"), "/s/M", b"%d" % MAX_RESPONSE, deadline=60) == bytes(MAX_RESPONSE)
        with pytest.raises(GrpcError, match="RESOURCE_EXHAUSTED: response larger than"):
            await call(str(tmp_path / "s"), "/s/M", b"%d" % (MAX_RESPONSE + 1), deadline=60)
