"""Checks of OpenTelemetry's variables, before anything reads them.

The SDK would fail with an error that names no variable, or log a warning and use a default that nobody asked for.
Only variables that have an effect are checked. Not the collector's address: :mod:`services.common.telemetry.otlp`.
Next: :mod:`services.common.telemetry.setup`, which creates what the variables configure.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from services.common.telemetry.otlp import InvalidOtelVariable, OtlpProtocol, target_of

_SAMPLER: Final = "OTEL_TRACES_SAMPLER"
_SAMPLER_ARG: Final = "OTEL_TRACES_SAMPLER_ARG"
_RATIO_SAMPLERS: Final = ("traceidratio", "parentbased_traceidratio")
_SAMPLERS: Final = (
    *("always_on", "always_off", "parentbased_always_on", "parentbased_always_off"),
    *_RATIO_SAMPLERS,
)
_LIMITS: Final = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
_QUEUE_SIZE: Final = "OTEL_BSP_MAX_QUEUE_SIZE"
_BATCH_SIZE: Final = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_BATCHES: Final = {
    _QUEUE_SIZE: 2048,
    _BATCH_SIZE: 512,
    "OTEL_BSP_SCHEDULE_DELAY": 5000,
    "OTEL_BSP_EXPORT_TIMEOUT": 30000,
}
"""The variables of batches, with the SDK's defaults."""
_TIMEOUTS: Final = ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
_HEADERS: Final = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
_HEADER: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+[ \t]*=([ !#-+\--:<-\[\]-~]*)", re.ASCII)
_COMPRESSIONS: Final = ("OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION")
_ALGORITHMS: Final[Mapping[OtlpProtocol, tuple[str, ...]]] = {
    "http/protobuf": ("none", "gzip", "deflate"),
    "grpc": ("gzip",),
}


def check_variables(environ: Mapping[str, str]) -> None:
    """Check the variables of sampling, limits and export.

    :raises InvalidOtelVariable: one of them cannot be used; the text names it.
    """
    _check_sampler(environ)
    for name in _LIMITS:
        integer(environ, name, 0, 0)
    target = target_of(environ)
    if target is None:
        return
    sizes = {name: integer(environ, name, 1, default) for name, default in _BATCHES.items()}
    if sizes[_BATCH_SIZE] > sizes[_QUEUE_SIZE]:
        raise InvalidOtelVariable(
            f"{_BATCH_SIZE}: {sizes[_BATCH_SIZE]} is more than {_QUEUE_SIZE} ({sizes[_QUEUE_SIZE]}); set both"
        )
    for name in _TIMEOUTS:
        if not _is_number(_value(environ, name, target.protocol), 0, float("inf")):
            raise InvalidOtelVariable(f"{name}: {environ[name]!r} is no number of seconds; set one such as 10")
    for name in _HEADERS:
        _check_headers(environ, name)
    for name in _COMPRESSIONS:
        value = _value(environ, name, target.protocol)
        if value is not None and value.lower() not in _ALGORITHMS[target.protocol]:
            allowed = " or ".join(_ALGORITHMS[target.protocol])
            raise InvalidOtelVariable(f"{name}: {value!r} is not supported by {target.protocol}; set {allowed}")


def _check_sampler(environ: Mapping[str, str]) -> None:
    sampler = environ.get(_SAMPLER, "").lower()
    if sampler and sampler not in _SAMPLERS:
        raise InvalidOtelVariable(f"{_SAMPLER}: {sampler!r} is no sampler; set one of {', '.join(_SAMPLERS)}")
    ratio = environ.get(_SAMPLER_ARG, "")
    if sampler in _RATIO_SAMPLERS and ratio and not _is_number(ratio, 0, 1):
        raise InvalidOtelVariable(f"{_SAMPLER_ARG}: {ratio!r} is no ratio; set a number from 0 to 1")


def _check_headers(environ: Mapping[str, str], name: str) -> None:
    # The exporters quote a header that they cannot send in a log line, and it may be a password.
    for number, header in enumerate(environ.get(name, "").split(","), start=1):
        found = _HEADER.fullmatch(header.strip(" \t"))
        value = unquote(found[1]) if found is not None else ""
        if header.strip() and (found is None or not (value.isascii() and value.isprintable())):
            raise InvalidOtelVariable(f"{name}: header {number} is not NAME=VALUE with a URL-encoded value in ASCII")


def _value(environ: Mapping[str, str], name: str, protocol: OtlpProtocol) -> str | None:
    """Return the value of a variable of an exporter; ``None`` if it is unset."""
    value = environ.get(name)
    # An empty variable counts as unset, but the exporter of gRPC fails with it.
    return value.strip() if value or (value is not None and protocol == "grpc") else None


def integer(environ: Mapping[str, str], name: str, least: int, default: int) -> int:
    """Return a whole number.

    :raises InvalidOtelVariable: the variable has another value, or one below ``least``.
    """
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise InvalidOtelVariable(f"{name}: {text!r} is no whole number of {least} or more")
    return int(text)


def _is_number(text: str | None, least: float, most: float) -> bool:
    try:
        return text is None or least <= float(text) <= most
    except ValueError:
        return False
