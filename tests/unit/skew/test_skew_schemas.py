"""An earlier version reads what today's roles write: its schemas hold for today's documents, and only grow."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from schemas.bus.events import Event
from schemas.generate import __main__ as generate
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.operations import PREFIX
from schemas.stages import Stage
from services.common.domain.operations import find_acting_pod
from services.controller.plan import PatchObject, StartOperations, plan
from services.controller.plan.actions import pod_annotated_event, requested_event
from tests.support.kube.node_kube import PODS
from tests.support.node.networks_node import running_node
from tests.support.observed.observations import controller_observed
from tests.support.skew.recording import RECORDINGS, Json, Recording
from tests.support.skew.schema_changes import breaking_changes

SCHEMA_OF_ANNOTATION = {
    NETWORKS: "networks",
    NETWORK_STATUS: "network-status",
    f"{PREFIX}operation": "operation",
    f"{PREFIX}pod-nic": "pod-nic",
    f"{PREFIX}attached": "attached",
}
"""The schema of each annotation, by key or by the part of it before the hash."""
TODAY = {name: json.loads(text) for name, text in generate.build_documents().items()}


ACCEPTED = {
    f"/components/messages/{message}/headers/properties/ce-source/pattern"
    for message in ("MultusAttached", "GuestAttached", "GuestDetached")
}
"""Changes to which an earlier version answers with a dead letter, and nothing is lost: beside KubeVirt the controller
publishes what virt-handler and Multus did. An earlier version follows no operation there."""


def check(recording: Recording, name: str, document: bytes | str) -> None:
    """Check a document of today against the schema of the recorded version."""
    jsonschema.validate(json.loads(document), recording.schema(f"{name}.schema.json"))


def check_annotations(recording: Recording, annotations: dict[str, Any]) -> set[str]:
    """Check annotations of today; return the names of their schemas."""
    checked = set()
    for key, text in annotations.items():
        name = SCHEMA_OF_ANNOTATION.get(key) or SCHEMA_OF_ANNOTATION.get(key.rpartition(".")[0])
        if name is not None and text:
            check(recording, name, text)
            checked.add(name)
    return checked


@pytest.mark.parametrize("name", sorted({name for one in RECORDINGS.values() for name in one.schema_names}))
def test_a_schema_only_gets_types_and_optional_fields(recording: Recording, name: str) -> None:
    if name in recording.schema_names:
        assert name in TODAY
        assert set(breaking_changes(recording.schema(name), TODAY[name])) <= ACCEPTED


def event_schema(change: Callable[[Json], object]) -> Json:
    changed: Json = copy.deepcopy(TODAY["event.schema.json"])
    change(changed["$defs"])
    return changed


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d["PodAnnotated"]["properties"].update(more={"type": "string"}), id="optional field"),
        pytest.param(lambda d: d.update(More={"type": "object"}), id="type"),
        pytest.param(lambda d: d["Failed"].update(description="other words"), id="description"),
    ],
)
def test_an_addition_breaks_nothing(change: Callable[[Json], object]) -> None:
    assert breaking_changes(TODAY["event.schema.json"], event_schema(change)) == []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        pytest.param(
            lambda d: d["PodAnnotated"]["properties"].update(link=d["PodAnnotated"]["properties"].pop("podInterface")),
            "/$defs/PodAnnotated/properties/podInterface",
            id="renamed field",
        ),
        pytest.param(lambda d: d["Failed"]["required"].append("retryAfter"), "/$defs/Failed/required", id="required"),
        pytest.param(lambda d: d["Failed"]["required"].remove("operation"), "/$defs/Failed/required", id="optional"),
        pytest.param(lambda d: d["OperationKind"]["enum"].append("swap"), "/$defs/OperationKind/enum", id="value"),
        pytest.param(
            lambda d: d["Failed"]["properties"]["attempt"].update(type="string"),
            "/$defs/Failed/properties/attempt/type",
            id="type",
        ),
        pytest.param(
            lambda d: d["Failed"]["properties"]["attempt"].update(default=0),
            "/$defs/Failed/properties/attempt/default",
            id="default of an omitted field",
        ),
    ],
)
def test_any_other_change_is_reported(change: Callable[[Json], object], path: str) -> None:
    assert breaking_changes(TODAY["event.schema.json"], event_schema(change)) == [path]


def test_unknown_fields_are_allowed(recording: Recording) -> None:
    for name in recording.schema_names:
        assert '"additionalProperties": false' not in json.dumps(recording.schema(name))


def filled(kind: msgspec.inspect.Type) -> Any:
    """Return a value of a type with every field set."""
    match kind:
        case msgspec.inspect.StructType():
            return kind.cls(**{field.name: filled(field.type) for field in kind.fields})
        case msgspec.inspect.UnionType():
            return filled(next(one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)))
        case msgspec.inspect.EnumType():
            return next(iter(kind.cls))
        case msgspec.inspect.DictType():
            return {filled(kind.key_type): filled(kind.value_type)}
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            item = filled(kind.item_type)
            return [item] if isinstance(kind, msgspec.inspect.ListType) else (item,)
    values: dict[type, Any] = {
        msgspec.inspect.StrType: "text",
        msgspec.inspect.IntType: 1,
        msgspec.inspect.FloatType: 0.5,
        msgspec.inspect.BoolType: True,
        msgspec.inspect.AnyType: "anything",
    }
    return values[type(kind)]


def full_documents() -> Iterator[tuple[str, bytes]]:
    """Yield a document of each schema, and of each event, with every field set."""
    for name, (_, kind) in generate.DOCUMENTS.items():
        for member in get_args(kind) if kind is Event else (kind,):
            yield name, msgspec.json.encode(filled(msgspec.inspect.type_info(member)))


def test_documents_with_every_field_are_valid_for_the_earlier_version(recording: Recording) -> None:
    stages = set()
    for name, document in full_documents():
        if f"{name}.schema.json" in recording.schema_names:
            check(recording, name, document)
        if name == "event":
            stages.add(json.loads(document)["stage"])
    assert stages == {str(stage) for stage in Stage}


def test_a_document_without_a_required_field_is_not_valid(recording: Recording) -> None:
    document = next(document for name, document in full_documents() if name == "event")
    changed = json.loads(document)
    changed["op"] = changed.pop("operation")
    with pytest.raises(jsonschema.ValidationError, match="operation"):
        check(recording, "event", json.dumps(changed))


def test_what_the_controller_writes_is_valid_for_the_earlier_version(recording: Recording) -> None:
    checked, published = set(), set()
    for snapshot in recording.snapshots.values():
        for vmi in snapshot.vmis:
            vm = next(vm for vm in snapshot.vms if vm.metadata.name == vmi.metadata.name)
            pod = find_acting_pod(vmi, snapshot.pods)
            assert pod is not None
            for action in plan(controller_observed(vm, vmi, pod)):
                events: list[Event] = []
                if isinstance(action, StartOperations):
                    operations = [started.operation for started in action.started]
                    ops = [*action.vm_ops(vm, operations), *action.vmi_ops(vmi, operations)]
                    events += [requested_event(one, one.operation, vmi) for one in action.started]
                else:
                    assert isinstance(action, PatchObject)
                    ops = action.ops
                    events += [pod_annotated_event(added, vmi, pod, 1) for added in action.added_attachments]
                written = {op["path"].rpartition("/")[2].replace("~1", "/"): op.get("value") for op in ops}
                checked |= check_annotations(recording, written)
                for event in events:
                    check(recording, "event", msgspec.json.encode(event))
                    published.add(event.stage)
    assert checked >= {"networks", "operation"}
    assert published == {Stage.REQUESTED, Stage.POD_ANNOTATED}


async def test_what_networks_writes_is_valid_for_the_earlier_version(recording: Recording, tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        node.nad()
        node.pod()
        node.set_networks([{"name": "blue", "interface": "net1", "mac": "02:00:00:00:00:01"}])
        await node.until_links("eth0", "net1")
        annotations = node.kube.annotations(PODS, "default", "p1")
        assert check_annotations(recording, annotations) == {"networks", "network-status", "attached"}
        node.set_networks([])
        await node.until_links("eth0")
        expected = {Stage.MULTUS_ATTACHED, Stage.MULTUS_DETACHED}
        events = await node.until_published(lambda found: {event.stage for event in found} >= expected)
    for event in events:
        check(recording, "event", msgspec.json.encode(event))
