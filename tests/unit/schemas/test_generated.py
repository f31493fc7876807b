"""The generated documents: up to date, valid, and consistent with encoded events."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from schemas.bus import cloudevents
from schemas.bus.encoding import parse_subject
from schemas.bus.events import Event, Failed, GuestAttached, MultusAttached, ObjectRef, Requested, encode
from schemas.generate import __main__ as generate
from schemas.kubernetes.operations import Operation
from schemas.stages import TABLE, OperationKind, Stage

DOCUMENTS = {name: json.loads(text) for name, text in generate.build_documents().items()}
ASYNCAPI = DOCUMENTS["asyncapi.json"]
SCHEMAS = {name: body for name, body in DOCUMENTS.items() if name.endswith(".schema.json")}
OPERATION = Operation("1", OperationKind.PLUG, "iface1")


def test_committed_files_are_up_to_date() -> None:
    assert generate.find_drift() == []
    assert generate.main(["--check"]) == 0


def test_drift_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--to", str(tmp_path)]) == 0
    assert generate.find_drift(tmp_path) == []
    (tmp_path / "event.schema.json").write_text("{}")
    (tmp_path / "old.schema.json").write_text("{}")
    (tmp_path / "asyncapi.json").unlink()
    assert generate.find_drift(tmp_path) == ["asyncapi.json", "event.schema.json", "old.schema.json"]
    assert generate.main(["--check", "--to", str(tmp_path)]) == 1
    assert "old.schema.json" in capsys.readouterr().err
    generate.write_documents(tmp_path)
    assert generate.find_drift(tmp_path) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_valid(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$id"] == f"urn:hotnic:schema:{name.removesuffix('.schema.json')}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_reference_resolves(name: str) -> None:
    def check_references(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(reference := node.get("$ref"), str):
                target: Any = DOCUMENTS[name]
                for part in reference.removeprefix("#/").split("/"):
                    target = target[part]
            for value in node.values():
                check_references(value)
        elif isinstance(node, list):
            for value in node:
                check_references(value)

    check_references(DOCUMENTS[name])


@pytest.mark.parametrize(
    "event",
    [
        Requested(operation=OPERATION, network="default/br"),
        MultusAttached(operation=OPERATION, vmi=ObjectRef("a", "b", "c"), ips=("10.0.0.1",), node="n", attempt=3),
        GuestAttached(operation=OPERATION, mac="02:00:00:00:00:01"),
        Failed(operation=OPERATION, at=Stage.GUEST_ATTACHED, reason="NoFreeSlot", retry_after=0.5),
    ],
    ids=lambda event: str(event.stage),
)
def test_encoded_event_matches_its_schema(event: Event) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMAS["event.schema.json"])
    body = json.loads(encode(event))
    validator.validate(body)
    assert not validator.is_valid(body | {"operation": None})
    assert not validator.is_valid(body | {"stage": "unknown"})


def test_fields_are_described() -> None:
    definitions = SCHEMAS["event.schema.json"]["$defs"]
    assert definitions["Failed"]["properties"]["retryAfter"]["description"].startswith("seconds until")
    assert ":ivar" not in json.dumps(SCHEMAS)
    assert "``" not in json.dumps(SCHEMAS)


def test_asyncapi_document_is_consistent() -> None:
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= ASYNCAPI["info"].keys()
    assert set(ASYNCAPI) <= {"asyncapi", "info", "defaultContentType", "channels", "operations", "components"}
    for channel in ASYNCAPI["channels"].values():
        tokens = {part.strip("{}") for part in channel["address"].split(".") if part.startswith("{")}
        assert tokens == channel["parameters"].keys()
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] == "send"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: str(row.stage))
def test_asyncapi_has_a_channel_and_publishers_for_every_stage(row: Any) -> None:
    (name,) = [
        name for name, channel in ASYNCAPI["channels"].items() if channel["address"].startswith(f"hotplug.{row.stage}.")
    ]
    address = ASYNCAPI["channels"][name]["address"]
    assert parse_subject(address.format(node="n", namespace="ns", vmi="v")).stage == row.stage
    message = ASYNCAPI["components"]["messages"][name]
    assert message["name"] == cloudevents.event_type(row.stage)
    assert ASYNCAPI["components"]["schemas"][name]["properties"]["stage"] == {"enum": [str(row.stage)]}
    publishers = {key.split("-")[0] for key in ASYNCAPI["operations"] if key.endswith(f"-{name}")}
    assert publishers == {*row.publishers, *row.observers}
    for role in row.publishers:
        headers = cloudevents.build_headers(
            event_id="1", stage=row.stage, role=role, node="n", time="2026-11-23T10:00:00Z"
        )
        jsonschema.validate(headers, message["headers"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(headers | {"ce-source": "/hotnic/unknown/n"}, message["headers"])
