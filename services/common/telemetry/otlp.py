"""Where and how a process exports its spans by OTLP: OpenTelemetry's standard variables, and the exporter for them.

``target_of`` decides, ``span_exporter`` creates. Only the exporter of the chosen protocol is imported.
Next: :mod:`services.common.telemetry.setup`, which exports every span through it in batches.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec
from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"

OtlpProtocol = Literal["grpc", "http/protobuf"]


class UnsupportedProtocol(ValueError):
    """A variable names a protocol that hotnic does not export by."""


class OtlpTarget(msgspec.Struct, frozen=True):
    """A collector.

    :ivar endpoint: with HTTP the complete URL, with gRPC that of the server. The scheme ``http`` means without TLS.
    """

    protocol: OtlpProtocol
    endpoint: str


def target_of(environ: Mapping[str, str]) -> OtlpTarget | None:
    """Return the collector for traces; ``None`` if no endpoint is set.

    The variables for traces have precedence over those for all signals. An empty variable counts as unset.

    :raises UnsupportedProtocol: the protocol is neither ``grpc`` nor ``http/protobuf``, which is the default.
    """
    exact, base = environ.get(_TRACES_ENDPOINT, "").strip(), environ.get(_ENDPOINT, "").strip()
    if not exact and not base:
        return None
    protocol = _protocol_of(environ)
    if protocol == "grpc" or exact:
        return OtlpTarget(protocol, exact or base)
    return OtlpTarget(protocol, f"{base.rstrip('/')}/v1/traces")


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
                raise UnsupportedProtocol(f"{variable}: {other!r} is not supported; set grpc or http/protobuf")
    return "http/protobuf"


def span_exporter(target: OtlpTarget) -> SpanExporter:
    """Return the exporter to a collector. It reads headers, certificates, compression and timeout from ``OTEL_*``."""
    # Imported here because each costs tens of milliseconds and several MiB, and most processes need at most one.
    if target.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=target.endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=target.endpoint)
