"""Settings from the environment: conversion, defaults, error messages, redaction."""

from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.runtime.settings import CommonSettings, SettingsError, load, redacted, variables


class Settings(CommonSettings, frozen=True, kw_only=True):
    """One field of each type."""

    listen: Annotated[str, msgspec.Meta(description="where to listen")]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 80
    timeout: float = 1.5
    enabled: bool = False
    mode: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    password: Annotated[str | None, msgspec.Meta(description="a secret", extra={"secret": True})] = None


def test_fields_are_read_from_prefixed_variables() -> None:
    environ = {
        "HOTNIC_LISTEN": "127.0.0.1:1",
        "HOTNIC_PORT": "8080",
        "HOTNIC_TIMEOUT": "2.5",
        "HOTNIC_ENABLED": "true",
        "HOTNIC_MODE": "b",
        "HOTNIC_NAMES": "x, y,,z ",
        "HOTNIC_NODE_NAME": "n1",
        "KUBECONFIG": "/k",
        "NATS_URL": "nats://u:p@h:4222",
        "PORT": "9",
    }
    settings = load(Settings, environ)
    assert settings == Settings(
        listen="127.0.0.1:1",
        port=8080,
        timeout=2.5,
        enabled=True,
        mode="b",
        names=("x", "y", "z"),
        node_name="n1",
        kubeconfig="/k",
        nats_url="nats://u:p@h:4222",
    )


def test_an_empty_variable_counts_as_unset() -> None:
    settings = load(Settings, {"HOTNIC_LISTEN": "x", "HOTNIC_PORT": "", "NATS_URL": " "})
    assert settings == Settings(listen="x")
    assert settings.nats_url is None
    assert settings.node_name == "_"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("HOTNIC_PORT", "http", "Expected `int`"),
        ("HOTNIC_PORT", "70000", "<= 65535"),
        ("HOTNIC_ENABLED", "perhaps", "Expected `bool`"),
        ("HOTNIC_MODE", "c", "Invalid enum value 'c'"),
        ("HOTNIC_LOG_LEVEL", "loud", "loud"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load(Settings, {"HOTNIC_LISTEN": "x", name: text})
    assert caught.value.variable == name
    assert str(caught.value).startswith(f"{name}: ")


def test_a_bad_value_is_shown_without_its_password() -> None:
    with pytest.raises(SettingsError, match="nats://") as caught:
        load(Settings, {"HOTNIC_LISTEN": "x", "HOTNIC_LOG_LEVEL": "nats://user:secret@bus:4222"})
    assert "secret" not in str(caught.value)


def test_a_missing_variable_is_named_with_its_description() -> None:
    with pytest.raises(SettingsError, match="HOTNIC_LISTEN: must be set \\(where to listen\\)"):
        load(Settings, {})


@given(secret=st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=5))
def test_secrets_are_redacted(secret: str) -> None:
    marked = f"s3cr3t{secret}"
    settings = load(
        Settings, {"HOTNIC_LISTEN": "x", "HOTNIC_PASSWORD": marked, "NATS_URL": f"nats://u:{marked}@a,tls://{marked}@b"}
    )
    assert settings.password == marked
    shown = redacted(settings)
    assert marked not in repr(shown)
    assert shown["NATS_URL"] == "nats://***@a,tls://***@b"
    assert shown["HOTNIC_PORT"] == 80


def test_variables_have_field_name_requirement_and_description() -> None:
    found = {variable.name: variable for variable in variables(Settings)}
    assert found["HOTNIC_LISTEN"].required
    assert found["KUBECONFIG"].field == "kubeconfig"
    assert all(variable.description for variable in variables(CommonSettings))
