"""Command line options of a role."""

from typing import Annotated

import msgspec
import pytest

from services.common.runtime.process import RoleRuntime, help_text, main
from services.common.runtime.settings import CommonSettings


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Settings of a role that is never started."""

    act: Annotated[str, msgspec.Meta(description="what to do")] = ""
    ports: tuple[int, ...] = (1, 2)
    token: Annotated[str | None, msgspec.Meta(description="a secret", extra={"secret": True})] = None


async def never(_runtime: RoleRuntime[Settings]) -> None:
    raise AssertionError("started")


def run(*argv: str) -> int:
    return main("test", Settings, never, list(argv))


def test_print_config_redacts_secrets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOTNIC_TOKEN", "s3cr3t")
    monkeypatch.setenv("HOTNIC_ACT", "x")
    monkeypatch.delenv("HOTNIC_NODE_NAME", raising=False)
    assert run("--print-config") == 0
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert (shown["HOTNIC_ACT"], shown["HOTNIC_TOKEN"], shown["HOTNIC_NODE_NAME"]) == ("x", "***", "_")


def test_help_lists_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for expected in (
        "usage: hotnic run test",
        "HOTNIC_ACT\n      what to do (default: unset)",
        "HOTNIC_PORTS\n      no description (default: 1,2)",
        "KUBECONFIG",
        "NATS_URL",
        "(default: info)",
        "Examples:\n  # Print the settings in effect\n  hotnic run test --print-config\n",
    ):
        assert expected in text


def test_examples_set_the_required_variables() -> None:
    class Required(CommonSettings, frozen=True, kw_only=True):
        node_name: str

    assert "\n  HOTNIC_NODE_NAME=VALUE HOTNIC_LOG_LEVEL=debug hotnic run test\n" in help_text("test", Required)


@pytest.mark.parametrize("argv", [["--verbose"], ["--print-config", "now"]])
def test_an_unknown_option_is_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    assert f"no such option: {argv[-1]}" in capsys.readouterr().err


def test_a_bad_setting_is_exit_2_and_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOTNIC_LOG_LEVEL", "loud")
    assert run() == 2
    assert "HOTNIC_LOG_LEVEL" in capsys.readouterr().err
