"""The option `--otlp` of `hotnic lab up`: what it accepts, and what the lab's processes get."""

import pytest

from lab.supervisor.collector import Collector


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:4318", Collector("http", "127.0.0.1", 4318, "")),
        ("http://127.0.0.1:4318/", Collector("http", "127.0.0.1", 4318, "")),
        ("http://jaeger", Collector("http", "jaeger", 4318, "")),
        ("http://[::1]:80/otlp/", Collector("http", "::1", 80, "/otlp")),
        ("grpc://jaeger", Collector("grpc", "jaeger", 4317, "")),
        ("grpc://127.0.0.1:14317", Collector("grpc", "127.0.0.1", 14317, "")),
    ],
)
def test_addresses_of_collectors(url: str, expected: Collector) -> None:
    assert Collector.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:4318",
        "localhost:4318",
        "https://collector:4318",
        "http://",
        "http://collector:0x",
        "http://collector:99999",
        "http://user@collector",
        "http://collector:0",
        "http://collector 1",
        "http://collector\t1",
        " http://collector",
        "http://collector?x",
        "http://[::1",
        "grpc://collector/path",
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Collector.parse(url)


def test_a_password_is_not_shown() -> None:
    with pytest.raises(ValueError, match="contains a user") as error:
        Collector.parse("http://me:s3cr3t@collector")
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "endpoint", "protocol"),
    [
        ("http://jaeger:9999", "http://127.0.0.1:4318", "http/protobuf"),
        ("http://jaeger:9999/otlp", "http://127.0.0.1:4318/otlp", "http/protobuf"),
        ("grpc://jaeger:9999", "http://127.0.0.1:4318", "grpc"),
    ],
)
def test_processes_export_to_the_relay(url: str, endpoint: str, protocol: str) -> None:
    environment = Collector.parse(url).environment
    assert environment == {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
