"""One unary gRPC call over a unix socket, with one HTTP/2 connection for each call.

A connection to a local socket costs little and has one stream, so nothing has to reconnect, and no call waits for
another. HTTP/2 itself is the library h2's. grpcio does far more, and takes 10 MiB of every process (ADR 35).
Next: :mod:`services.common.cri.client`, which knows the calls of the container runtime.
"""

import asyncio
import struct
from typing import Final
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

MAX_RESPONSE: Final = 16 * 1024 * 1024
"""Bytes; the kubelet's own limit. A verbose response contains a whole runtime spec."""

NOT_FOUND: Final = "NOT_FOUND"
UNIMPLEMENTED: Final = "UNIMPLEMENTED"
UNAVAILABLE: Final = "UNAVAILABLE"
INTERNAL: Final = "INTERNAL"
_CODES: Final = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", NOT_FOUND, "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", UNIMPLEMENTED),
    *(INTERNAL, UNAVAILABLE, "DATA_LOSS", "UNAUTHENTICATED"),
)

# A message of gRPC may begin or end with a space, which HTTP/2 forbids in headers and gRPC's servers send all the same.
_CONFIGURATION: Final = H2Configuration(client_side=True, validate_inbound_headers=False)
_STREAM: Final = 1
_READ_SIZE: Final = 64 * 1024
_PREFIX: Final = struct.Struct(">BI")
"""In front of a message: whether it is compressed, and its length in bytes."""


class GrpcError(Exception):
    """A call without a response.

    :ivar code: gRPC's name of the reason.
    """

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


async def call(socket_path: str, method: str, request: bytes, *, deadline: float) -> bytes:
    """Send a request and return the response, both as protobuf's bytes.

    :param method: ``/package.Service/Method``.
    :param deadline: seconds that the server is told; the caller bounds the time of the call.
    :raises GrpcError: the server refused the request, or did not send a response.
    """
    connection, response = _start(method, request, deadline), _Response()
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path)
    except OSError as error:
        raise GrpcError(UNAVAILABLE, error.strerror or str(error)) from error
    try:
        while not response.ended:
            writer.write(connection.data_to_send())
            received = await reader.read(_READ_SIZE)
            if not received:
                raise GrpcError(UNAVAILABLE, "connection closed")
            for event in connection.receive_data(received):
                response.take(event)
                if response.ended:
                    # Whatever follows, such as that the server goes away, does not concern this call.
                    break
                if isinstance(event, DataReceived):
                    connection.acknowledge_received_data(event.flow_controlled_length, _STREAM)
        return response.message()
    except OSError as error:
        raise GrpcError(UNAVAILABLE, f"connection closed: {error}") from error
    except ProtocolError as error:
        # Also the end of a call to a server that goes away: after GOAWAY, h2 accepts no further frame.
        raise GrpcError(UNAVAILABLE, f"connection ended: {error or type(error).__name__}") from error
    except ValueError as error:
        raise GrpcError(INTERNAL, f"malformed response: {error}") from error
    finally:
        writer.close()


def _start(method: str, request: bytes, deadline: float) -> H2Connection:
    """Return a connection whose data to send is the whole request."""
    connection = H2Connection(_CONFIGURATION)
    connection.initiate_connection()
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        # An escaped socket path, as gRPC's own clients send it, is refused by Go's server.
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "hotnic"),
        ("grpc-timeout", f"{max(1, round(deadline * 1000))}m"),
    ]
    connection.send_headers(_STREAM, headers)
    # In one frame: no request to the container runtime is longer than 16 KiB.
    connection.send_data(_STREAM, _PREFIX.pack(0, len(request)) + request, end_stream=True)
    return connection


class _Response:
    """The response of a connection with one stream.

    :ivar ended: whether the server has sent all of it.
    """

    def __init__(self) -> None:
        self.ended = False
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()

    def take(self, event: Event) -> None:
        """Take one event of the connection."""
        match event:
            case ResponseReceived() | TrailersReceived():
                self._headers |= {bytes(name): bytes(value) for name, value in event.headers}
            case DataReceived():
                self._body += event.data
                if len(self._body) > MAX_RESPONSE + _PREFIX.size:
                    raise GrpcError("RESOURCE_EXHAUSTED", f"response larger than {MAX_RESPONSE} bytes")
            case StreamReset():
                raise GrpcError(UNAVAILABLE, f"the server reset the call, HTTP/2 error {int(event.error_code)}")
            case ConnectionTerminated():
                details = (event.additional_data or b"").decode(errors="replace")
                raise GrpcError(UNAVAILABLE, f"the server goes away: {details or 'no details'}")
            case StreamEnded():
                self.ended = True

    def message(self) -> bytes:
        """Return the message, or raise what the trailers say.

        :raises GrpcError: the call failed.
        :raises ValueError: there is no status, or the message is not whole.
        """
        status = self._headers.get(b"grpc-status")
        if status is None:
            raise ValueError(f"no status of gRPC; HTTP status {self._headers.get(b':status', b'missing').decode()}")
        if status != b"0":
            number = int(status)
            code = _CODES[number] if 0 <= number < len(_CODES) else "UNKNOWN"
            details = unquote(self._headers.get(b"grpc-message", b"").decode(errors="replace"))
            raise GrpcError(code, details or "no details")
        if len(self._body) < _PREFIX.size:
            raise ValueError("no message")
        compressed, length = _PREFIX.unpack_from(self._body)
        if compressed or length != len(self._body) - _PREFIX.size:
            raise ValueError(f"message of {length} bytes in {len(self._body) - _PREFIX.size}")
        return bytes(self._body[_PREFIX.size :])
