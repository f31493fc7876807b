"""OTLP receivers on loopback that record spans: over HTTP as :class:`HttpReceiver`, over gRPC by :func:`grpc_receiver`.

They stand for a collector in tests that need no Jaeger; :mod:`tests.support.interop.jaeger` is the real one.
"""

import contextlib
import gzip
import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc

from tests.support.kube.certs import Pair


class Received:
    """The spans that a receiver got.

    :ivar paths: paths of the HTTP requests; the full name of the method with gRPC.
    :ivar unread: number of HTTP answers before whose end the client has closed the connection.
    """

    def __init__(self) -> None:
        self.unread = 0
        self.paths: list[str] = []
        self._requests: list[pb.ExportTraceServiceRequest] = []
        self._lock = threading.Lock()

    def add(self, path: str, request: pb.ExportTraceServiceRequest) -> None:
        """Record a request."""
        with self._lock:
            self.paths.append(path)
            self._requests.append(request)

    def spans(self, trace_id: str | None = None) -> dict[str, str]:
        """Return the received spans as name by span id (hex digits).

        :param trace_id: only spans of this trace.
        """
        with self._lock:
            return {
                span.span_id.hex(): span.name
                for request in self._requests
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
                if trace_id is None or span.trace_id.hex() == trace_id
            }

    def services(self) -> set[str]:
        """Return the service names of all received spans."""
        with self._lock:
            return {
                attribute.value.string_value
                for request in self._requests
                for resource in request.resource_spans
                for attribute in resource.resource.attributes
                if attribute.key == "service.name"
            }


@contextlib.contextmanager
def http_receiver(answer: bytes = b"", encoding: str = "", status: int = 200) -> Iterator[tuple[str, Received]]:
    """Provide a receiver of OTLP over HTTP: its URL and what it received.

    :param answer: the body of each answer.
    :param encoding: its ``Content-Encoding``.
    :param status: its status.
    """
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        # Keeps connections open, as collectors do.
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received.add(self.path, pb.ExportTraceServiceRequest.FromString(body))
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Location", "/elsewhere")
            if encoding:
                self.send_header("Content-Encoding", encoding)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            try:
                self.wfile.write(answer)
            except ConnectionError:
                received.unread += 1

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Servicer(rpc.TraceServiceServicer):
    def __init__(self, received: Received, message: str) -> None:
        self._received = received
        self._message = message

    def Export(
        self, request: pb.ExportTraceServiceRequest, _context: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        self._received.add("TraceService/Export", request)
        return pb.ExportTraceServiceResponse(
            partial_success=pb.ExportTracePartialSuccess(error_message=self._message) if self._message else None
        )


@contextlib.contextmanager
def grpc_receiver(pair: Pair | None = None, *, message: str = "") -> Iterator[tuple[int, Received]]:
    """Provide a receiver of OTLP over gRPC: its port and what it received.

    :param pair: its certificate and key; ``None`` for a receiver without TLS.
    :param message: the error message of each answer.
    """
    received = Received()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    rpc.add_TraceServiceServicer_to_server(_Servicer(received, message), server)
    if pair is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        credentials = grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.cert.read_bytes())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port, received
    finally:
        server.stop(grace=None).wait()
