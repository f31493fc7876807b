"""Encoding of events, their headers, and the order of stages in the stage table."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import stages
from schemas.bus import cloudevents
from schemas.bus.encoding import Subject
from schemas.bus.events import (
    MAX_EVENT_BYTES,
    ChangedObject,
    ConfirmedBy,
    Event,
    Failed,
    GuestAttached,
    GuestDetached,
    MultusAttached,
    MultusDetached,
    ObjectRef,
    PodAnnotated,
    Requested,
    decode,
    encode,
)
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NON_EMPTY = TEXT.filter(bool)
REFS = st.builds(ObjectRef, NON_EMPTY, NON_EMPTY, TEXT)
COMMON = {
    "operation": st.builds(Operation, TEXT, st.sampled_from(OperationKind), TEXT, st.none() | TEXT, st.none() | TEXT),
    "vmi": st.none() | REFS,
    "pod": st.none() | REFS,
    "sandbox_id": st.none() | TEXT,
    "node": NON_EMPTY,
    "changed": st.none() | st.builds(ChangedObject, TEXT, TEXT, TEXT),
    "attempt": st.integers(1, 1000),
}
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Requested, **COMMON, network=TEXT),
    st.builds(PodAnnotated, **COMMON, pod_interface=TEXT),
    st.builds(MultusAttached, **COMMON, pod_interface=TEXT, mac=st.none() | TEXT, ips=st.tuples(TEXT, TEXT)),
    st.builds(MultusDetached, **COMMON, pod_interface=TEXT),
    st.builds(GuestAttached, **COMMON, mac=st.none() | TEXT, confirmed_by=st.sampled_from(ConfirmedBy)),
    st.builds(GuestDetached, **COMMON),
    st.builds(
        Failed,
        **COMMON,
        at=st.sampled_from(Stage),
        reason=TEXT,
        message=TEXT,
        retry_after=st.none() | st.floats(0, 30),
    ),
)
OPERATION = Operation("id", OperationKind.PLUG, "iface1")


@given(EVENTS)
def test_event_round_trip(event: Event) -> None:
    assert decode(encode(event)) == event


@given(EVENTS)
def test_payload_contains_its_stage_and_camel_case_keys(event: Event) -> None:
    body = json.loads(encode(event))
    assert body["stage"] == event.stage
    assert not [key for key in body if "_" in key]


@given(EVENTS, st.dictionaries(st.from_regex(r"x-[a-z]{1,8}", fullmatch=True), st.integers() | TEXT))
def test_unknown_fields_of_a_newer_publisher_are_ignored(event: Event, more: dict[str, int | str]) -> None:
    body = json.loads(encode(event)) | more
    assert decode(json.dumps(body).encode()) == event


@given(EVENTS)
def test_subject_contains_stage_node_and_vmi(event: Event) -> None:
    subject = event.subject
    assert subject.stage == event.stage
    assert subject.node == event.node
    assert subject.vmi == (event.vmi.name if event.vmi else "_")


def test_subject_of_an_ordinary_pod_has_no_vmi() -> None:
    event = MultusAttached(operation=OPERATION, pod=ObjectRef("ns", "pod", "u"), node="n")
    assert event.subject == Subject("multus-attached", "n", "ns", "_")


def test_events_are_frozen() -> None:
    event: object = Requested(operation=OPERATION)
    with pytest.raises(AttributeError):
        event.node = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"stage":"requested"}',
        b'{"stage":"unknown","operation":{"id":"1","kind":"plug","interface":"a"}}',
        b'{"stage":"requested","operation":{"id":"1","kind":"twist","interface":"a"}}',
        b'{"stage":"requested","operation":{"id":1,"kind":"plug","interface":"a"}}',
        b"\xff\xfe",
    ],
)
def test_malformed_events_are_rejected(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(payload)


def test_oversized_payload_is_rejected_before_decoding() -> None:
    with pytest.raises(ValueError, match="65537 bytes"):
        decode(b" " * (MAX_EVENT_BYTES + 1))


def test_defaults_are_not_encoded() -> None:
    assert json.loads(encode(GuestDetached(operation=OPERATION))) == {
        "stage": "guest-detached",
        "operation": {"id": "id", "kind": "plug", "interface": "iface1"},
    }


def test_every_stage_has_one_event_and_one_row() -> None:
    tags = [kind.__struct_config__.tag for kind in get_args(Event)]
    assert sorted(tags) == sorted(Stage)
    assert [row.stage for row in stages.TABLE] == list(stages.ROWS)
    assert set(stages.ROWS) == set(Stage)


def test_stages_of_plug_and_unplug() -> None:
    assert stages.stage_path(OperationKind.PLUG) == (
        Stage.REQUESTED,
        Stage.POD_ANNOTATED,
        Stage.MULTUS_ATTACHED,
        Stage.GUEST_ATTACHED,
    )
    assert stages.stage_path(OperationKind.UNPLUG) == (Stage.REQUESTED, Stage.GUEST_DETACHED, Stage.MULTUS_DETACHED)


def test_every_stage_but_failed_belongs_to_an_operation() -> None:
    assert {stage for kind in OperationKind for stage in stages.stage_path(kind)} == set(Stage) - {Stage.FAILED}


def test_only_handler_and_networks_publish_detached_stages() -> None:
    assert stages.ROWS[Stage.GUEST_DETACHED].publishers == ("handler",)
    assert stages.ROWS[Stage.MULTUS_DETACHED].publishers == ("networks",)


def test_the_controller_publishes_what_kubevirt_and_its_multus_did() -> None:
    for stage in (Stage.MULTUS_ATTACHED, Stage.GUEST_ATTACHED, Stage.GUEST_DETACHED):
        assert stages.ROWS[stage].may_publish("controller", observed=True)
        assert not stages.ROWS[stage].may_publish("controller", observed=False)
    assert not stages.ROWS[Stage.MULTUS_DETACHED].may_publish("controller", observed=True)


@pytest.mark.parametrize("stage", Stage)
def test_headers_match_the_payload(stage: Stage) -> None:
    headers = cloudevents.build_headers(event_id="1", stage=stage, role="api", node="_", time="2026-11-23T10:00:00Z")
    assert headers["ce-type"] == f"io.hotnic.hotplug.{stage}.v1"
    assert headers["ce-source"] == "/hotnic/api/_"
    assert cloudevents.stage_of_type(headers["ce-type"]) is stage
    cloudevents.check_headers(headers, stage)
    other = next(one for one in Stage if one is not stage)
    with pytest.raises(ValueError, match="contradicts"):
        cloudevents.check_headers(headers, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ce-id": ""}, "ce-id is missing"),
        ({"ce-specversion": "0.3"}, "not 1.0"),
        ({"ce-type": "com.example.v1"}, "not a hotplug event type"),
        ({"ce-type": "io.hotnic.hotplug.requested.v2"}, "not a hotplug event type"),
        ({"ce-type": "io.hotnic.hotplug.unknown.v1"}, "unknown"),
    ],
)
def test_missing_or_contradicting_headers_are_rejected(changes: dict[str, str], message: str) -> None:
    headers = cloudevents.build_headers(event_id="1", stage=Stage.REQUESTED, role="api", node="_", time="t")
    with pytest.raises(ValueError, match=message):
        cloudevents.check_headers(headers | changes, Stage.REQUESTED)


def test_resource_versions_are_opaque_text() -> None:
    event = Requested(operation=OPERATION, changed=ChangedObject("Pod", "u", "00123"))
    assert json.loads(encode(event))["changed"]["resourceVersion"] == "00123"
