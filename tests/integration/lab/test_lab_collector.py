"""A lab exports its traces to a collector outside of its network namespace."""

import json
from pathlib import Path

import pytest

from lab.cli import commands
from tests.support.lab.running import SAMPLE_NAD, SAMPLE_VM, running_lab
from tests.support.telemetry.otlp_receiver import Received, grpc_receiver, http_receiver

SERVICES = {f"hotnic-{role}" for role in ("api", "controller", "networks", "multus", "handler")}


def plug_and_compare(directory: Path, url: str, received: Received) -> None:
    """Plug an interface in a lab; all spans in the lab's files must have arrived at the collector."""
    with running_lab(directory, guests="double", otlp=url) as lab:
        nad = ("--network-attachment-definition-name", SAMPLE_NAD)
        plug = lab.hotnic("addinterface", SAMPLE_VM, "--name", "blue", *nad, "--wait")
        assert plug.returncode == 0, plug.stderr
        status = lab.hotnic("status", SAMPLE_VM, "-o", "json")
        (interface,) = [i for i in json.loads(status.stdout)["interfaces"] if i["interface"] == "blue"]
    # Stopping the lab has exported the last spans.
    written = {span["spanId"].lower(): span["name"] for span in lab.spans(interface["traceId"])}
    assert any(name.startswith("qmp device_add") for name in written.values())
    assert received.spans(interface["traceId"]) == written
    assert received.services() >= SERVICES


def test_all_spans_of_a_plug_arrive_over_http(tmp_path: Path) -> None:
    with http_receiver() as (url, received):
        plug_and_compare(tmp_path, url, received)
    assert set(received.paths) == {"/v1/traces"}


def test_all_spans_of_a_plug_arrive_over_grpc(tmp_path: Path) -> None:
    with grpc_receiver() as (port, received):
        plug_and_compare(tmp_path, f"grpc://127.0.0.1:{port}", received)


def test_a_lab_without_its_collector_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with http_receiver() as (url, _):
        pass  # nothing listens there any more
    with running_lab(tmp_path, bare=True, otlp=url) as lab:
        assert "warning: no collector answers" in capsys.readouterr().err
        output: list[str] = []
        assert commands.status(lab.layout.dir, output=output.append) == 0, output


def test_an_address_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.up(commands.UpOptions(dir=tmp_path / "lab", otlp="127.0.0.1:4318")) == 2
    assert "use http://HOST:4318 or grpc://HOST:4317" in capsys.readouterr().err
    assert not (tmp_path / "lab").exists()
