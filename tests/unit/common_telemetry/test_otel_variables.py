"""Values of OpenTelemetry's variables that the SDK cannot use are configuration errors that name the variable."""

import subprocess
import sys

import pytest

from services.common.telemetry.otlp import InvalidOtelVariable
from services.common.telemetry.setup import configure
from services.common.telemetry.variables import check_variables

HTTP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
GRPC = HTTP | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
RATIO = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
QUEUE, BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
TIMEOUT, COMPRESSION = "OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"
SAMPLER_ARG, LIMIT = "OTEL_TRACES_SAMPLER_ARG", "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT"


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        *((HTTP | {QUEUE: value}, QUEUE) for value in ("abc", "0", "-1", "1.5", "²")),
        (HTTP | {BATCH: "4096"}, BATCH),
        (HTTP | {QUEUE: "100"}, BATCH),
        (HTTP | {"OTEL_BSP_SCHEDULE_DELAY": "0"}, "OTEL_BSP_SCHEDULE_DELAY"),
        *((RATIO | {SAMPLER_ARG: value}, SAMPLER_ARG) for value in ("abc", "2", "-0.1", "nan")),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER"),
        *(({LIMIT: value}, LIMIT) for value in ("abc", "-1")),
        (HTTP | {TIMEOUT: "soon"}, TIMEOUT),
        (GRPC | {TIMEOUT: ""}, TIMEOUT),
        (HTTP | {COMPRESSION: "zip"}, COMPRESSION),
        (GRPC | {COMPRESSION: "none"}, COMPRESSION),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(environ: dict[str, str], variable: str) -> None:
    with pytest.raises(InvalidOtelVariable, match=f"^{variable}: "):
        check_variables(environ)


@pytest.mark.parametrize(
    "environ",
    [
        HTTP | {QUEUE: "", BATCH: " 10 ", TIMEOUT: "", COMPRESSION: "Gzip"},
        HTTP | {QUEUE: "100", BATCH: "100"},
        GRPC | {TIMEOUT: "2.5", COMPRESSION: "gzip"},
        RATIO | {SAMPLER_ARG: "0.25", LIMIT: "0"},
        # Variables without an effect.
        {QUEUE: "abc", TIMEOUT: "soon", SAMPLER_ARG: "abc"},
    ],
)
def test_what_the_sdk_accepts_is_accepted(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    configure("test", environ=environ).shutdown()


@pytest.mark.parametrize("variables", [HTTP | {QUEUE: "0"}, RATIO | {SAMPLER_ARG: "abc"}, {LIMIT: "abc"}])
def test_a_role_ends_with_a_configuration_error(variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "services.controller"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"hotnic run controller: {list(variables)[-1]}: ")
