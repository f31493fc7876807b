"""No secret of an address is shown: settings, logs and errors with planted canaries."""

import io
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.runtime.settings import CommonSettings, redacted
from services.common.telemetry.logs import Format, formatter
from services.common.telemetry.otlp import InvalidOtelVariable
from services.common.telemetry.redact import redact_addresses, redact_text
from services.common.telemetry.variables import check_variables

CANARY = "s3cr3t"
HEADERS, TRACES_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"
EXPORT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}

scheme = st.sampled_from(["nats://", "tls://", "TLS://", "http://", "https://", "wss://", ""])
# A password is rarely percent-encoded, whatever it holds. White space ends a word of text.
noise = st.text(st.sampled_from("ab1:/@?#&=%,;.-_~!$'\"()[]*+é"), max_size=6)
password = st.builds("{}{}{}".format, noise, st.just(CANARY), noise)
address = st.one_of(
    st.builds("{}{}@host:4222".format, scheme, password),
    st.builds("{}user:{}@host".format, scheme, password),
    st.builds("{}host:4222/path?token={}".format, scheme, password),
)


@given(st.lists(address, min_size=1, max_size=3).map(",".join))
def test_no_part_of_a_password_is_printed(addresses: str) -> None:
    shown = redacted(CommonSettings(nats_url=addresses))
    assert CANARY not in str(shown)


@settings(max_examples=50)
@given(address.filter(lambda text: "://" in text[:8]), st.sampled_from(["json", "console"]))
def test_no_log_line_has_a_password(shown: str, form: Format) -> None:
    stream = io.StringIO()
    library = logging.getLogger("library")
    library.handlers[:], library.propagate = [logging.StreamHandler(stream)], False
    library.handlers[0].setFormatter(formatter(form, stream))
    try:
        raise OSError(f"no answer from {shown}")
    except OSError as error:
        library.exception("cannot reach %s", shown, extra={"error": error, "servers": [shown]})
    lines = stream.getvalue()
    assert "OSError: no answer from" in lines
    assert CANARY not in lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://host:4222", "nats://host:4222"),
        ("nats://a:1,tls://b,c:2", "nats://a:1,tls://b,c:2"),
        ("nats://me:secret@host:4222", "nats://***@host:4222"),
        ("nats://token@a, tls://me:x@b:1", "nats://***@a,tls://***@b:1"),
        ("me:secret@host", "***@host"),
        ("nats://a,me:secret@b", "nats://***@b"),
        ("nats://u:p@ss@h", "nats://***@h"),
        ("http://host/v1/traces?key=secret", "http://host/v1/traces?***"),
        ("http://host/v1/traces?key=a@secret", "http://***"),
    ],
)
def test_the_server_of_an_address_is_shown(text: str, shown: str) -> None:
    assert redact_addresses(text) == shown


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ready? yes: me@example.com, a/b?c", "ready? yes: me@example.com, a/b?c"),
        ("see https://host/page.html#anchor.", "see https://host/page.html#anchor."),
        ("dial postgres://me:secret@db:5432: refused", "dial postgres://***@db:5432: refused"),
        ("with url: /v1/traces?key=secret (Caused by x)", "with url: /v1/traces?*** (Caused by x)"),
        ("ConnectionError('https://host/v1?key=secret')", "ConnectionError('https://host/v1?***')"),
    ],
)
def test_text_about_an_address_stays(text: str, wanted: str) -> None:
    assert redact_text(text) == wanted


def test_the_time_for_a_text_does_not_grow_with_the_square_of_its_length() -> None:
    # Half an hour, if each "=/" were followed to the end.
    text = "=/" * 500_000 + " ?"
    assert redact_text(text) == text


@pytest.mark.parametrize("variable", [HEADERS, TRACES_HEADERS])
@pytest.mark.parametrize(
    "headers", [CANARY, f"a=b,{CANARY}", f"authorization=Basic {CANARY}\\", f"key={CANARY}%0A", f"k={CANARY}é"]
)
def test_headers_that_the_exporter_would_quote_are_refused_unseen(variable: str, headers: str) -> None:
    with pytest.raises(InvalidOtelVariable, match=f"^{variable}: ") as refused:
        check_variables(EXPORT | {variable: headers})
    assert CANARY not in str(refused.value)


def test_headers_of_the_specification_are_accepted() -> None:
    check_variables(EXPORT | {HEADERS: "authorization=Basic%20YTpi, x-tenant = a=b,,", TRACES_HEADERS: ""})
