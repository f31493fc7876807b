"""Where and how a process exports its spans by OTLP: OpenTelemetry's standard variables, and the exporter for them.

``target_of`` decides, ``span_exporter`` creates. Only the exporter of the chosen protocol is imported.
Next: :mod:`services.common.telemetry.delivery`, which exports every span through it in batches.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from services.common.node.files import stamps
from services.common.telemetry.redact import redact_addresses

if TYPE_CHECKING:
    import requests

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
_CREDENTIALS = [
    f"OTEL_EXPORTER_OTLP_{signal}{name}"
    for signal in ("", "TRACES_")
    for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
]
"""The variables that name files."""

MAX_ANSWER: Final = 64 * 1024
"""Bytes of a collector's answer that are read. A collector answers with a few, and anybody on the path of http with any
number of them."""

_FRAMING: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headers that describe a body which is no longer the one that was sent."""

OtlpProtocol = Literal["grpc", "http/protobuf"]


_EXPECTED: Final[Mapping[OtlpProtocol, str]] = {
    "http/protobuf": "http://HOST:4318 or https://HOST:4318",
    "grpc": "http://HOST:4317, https://HOST:4317 or a name of gRPC such as HOST:4317",
}
"""The form of an endpoint, for error messages."""

_GRPC_SCHEMES: Final = frozenset({"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock"})
"""The schemes of gRPC's own names of servers."""


class InvalidOtelVariable(ValueError):
    """A variable of OpenTelemetry has a value that cannot be used, such as an endpoint without a host."""


class OtlpTarget(msgspec.Struct, frozen=True):
    """A collector.

    :ivar endpoint: with HTTP the complete URL, with gRPC that of the server or its name. The scheme ``http`` means
        without TLS. A name without a scheme means TLS, unless ``OTEL_EXPORTER_OTLP_INSECURE`` is ``true``.
    """

    protocol: OtlpProtocol
    endpoint: str


def target_of(environ: Mapping[str, str]) -> OtlpTarget | None:
    """Return the collector for traces; ``None`` if no endpoint is set.

    The variables for traces have precedence over those for all signals. An empty variable counts as unset.

    :raises InvalidOtelVariable: the protocol is neither ``grpc`` nor ``http/protobuf``, which is the default, or the
        endpoint has none of the forms that the OpenTelemetry specification allows for it.
    """
    exact, base = environ.get(_TRACES_ENDPOINT, "").strip(), environ.get(_ENDPOINT, "").strip()
    if not exact and not base:
        return None
    protocol = _protocol_of(environ)
    endpoint = exact or base
    if problem := _find_problem(protocol, endpoint):
        raise InvalidOtelVariable(
            f"{_TRACES_ENDPOINT if exact else _ENDPOINT}: {redact_addresses(endpoint)!r} {problem}; "
            f"set {_EXPECTED[protocol]}"
        )
    if protocol == "grpc" or exact:
        return OtlpTarget(protocol, endpoint)
    url = urlsplit(base)
    return OtlpTarget(protocol, url._replace(path=f"{url.path.rstrip('/')}/v1/traces").geturl())


def _find_problem(protocol: OtlpProtocol, endpoint: str) -> str:
    """Return why nothing can be exported to an endpoint; empty if it has a valid form."""
    # Checked first, because `urlsplit` removes some of them.
    if any(character.isspace() or not character.isprintable() for character in endpoint):
        return "contains white space"
    scheme, colon, rest = endpoint.partition(":")
    if protocol == "grpc" and colon and scheme.lower() in _GRPC_SCHEMES:
        # The exporter would connect to the authority instead of the server.
        has_authority = rest.startswith("//") and not rest.startswith("///")
        return "has an authority" if has_authority else "" if rest.strip("/") else "has no host"
    # gRPC takes a host without a scheme; HTTP does not.
    is_url = "://" in endpoint
    if not is_url and protocol != "grpc":
        return "has no scheme"
    try:
        url = urlsplit(endpoint if is_url else f"//{endpoint}")
    except ValueError:
        return "is no URL"
    if is_url and url.scheme not in ("http", "https"):
        return f"has the scheme {url.scheme!r}" if url.scheme else "has no scheme"
    if "@" in url.netloc:
        return "contains a user, whose credentials belong in OTEL_EXPORTER_OTLP_HEADERS"
    if not url.hostname or (not is_url and url.path):
        return "has no host"
    try:
        return "has an invalid port" if url.port == 0 else ""
    except ValueError:
        return "has an invalid port"


def _protocol_of(environ: Mapping[str, str]) -> OtlpProtocol:
    for variable in (_TRACES_PROTOCOL, _PROTOCOL):
        match environ.get(variable, "").strip():
            case "":
                continue
            case "grpc":
                return "grpc"
            case "http/protobuf":
                return "http/protobuf"
            case other:
                raise InvalidOtelVariable(f"{variable}: {other!r} is not supported; set grpc or http/protobuf")
    return "http/protobuf"


class FollowedExporter(SpanExporter):
    """An exporter that is replaced when one of its files changes: gRPC's reads the CA and the certificate only once.

    :param make: returns a new exporter, which reads the files.
    """

    def __init__(self, make: Callable[[], SpanExporter], files: Sequence[str]) -> None:
        self._make = make
        self._files = files
        # Before the exporter reads them.
        self._seen = self._stamps()
        self._exporter = make()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch with what the files hold now."""
        found = self._stamps()
        # A file that is being replaced reappears in a moment.
        if found is not None and found != self._seen:
            before, self._exporter, self._seen = self._exporter, self._make(), found
            before.shutdown()
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        """Close the exporter."""
        self._exporter.shutdown()

    def _stamps(self) -> tuple[tuple[int, int], ...] | None:
        try:
            return stamps(self._files)
        except OSError:
            return None


def span_exporter(target: OtlpTarget) -> SpanExporter:
    """Return the exporter to a collector. It reads headers, certificates, compression and timeout from ``OTEL_*``."""
    # Imported here because each costs tens of milliseconds and several MiB, and most processes need at most one.
    if target.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        files = [os.environ[name] for name in _CREDENTIALS if os.environ.get(name)]
        # Of the message after decompression.
        options: tuple[tuple[str, Any]] = (("grpc.max_receive_message_length", MAX_ANSWER),)
        return FollowedExporter(lambda: GrpcExporter(endpoint=target.endpoint, channel_options=options), files)
    # It reads the files for each connection.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=target.endpoint, session=bounded_session())


def bounded_session() -> "requests.Session":
    """Return a session that reads at most ``MAX_ANSWER`` bytes of an answer, does not decompress them, and fails on a
    redirect.

    The exporter's own one reads the whole answer, although it needs only the status. The exporter follows no redirect,
    and would take one for a success.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPResponse

    class BoundedAdapter(HTTPAdapter):
        def build_response(self, req: requests.PreparedRequest, resp: HTTPResponse) -> requests.Response:
            try:
                body = resp.read(MAX_ANSWER, decode_content=False)
            finally:
                # A connection whose answer was read to its end is in the pool again.
                resp.close()
            if 300 <= resp.status < 400:
                raise requests.exceptions.TooManyRedirects(
                    f"the collector answers with {resp.status}, a redirect, which is not followed; use its own address"
                )
            headers = {name: value for name, value in resp.headers.items() if name.lower() not in _FRAMING}
            bounded = HTTPResponse(
                BytesIO(body), headers=headers, status=resp.status, reason=resp.reason, preload_content=False
            )
            return super().build_response(req, bounded)

    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter())
    return session
