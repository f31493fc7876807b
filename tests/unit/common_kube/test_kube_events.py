"""Kubernetes Events have deterministic names, are best effort, and respect the API's limits."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder, event_name
from services.common.telemetry.logs import logger

VMI = {
    "kind": "VirtualMachineInstance",
    "api_version": "kubevirt.io/v1",
    "namespace": "ns",
    "name": "vm1",
    "uid": "uid-1",
}
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""A name that kube-apiserver accepts (``validation.IsDNS1123Subdomain``), at most 253 characters long."""
ENDINGS = st.from_regex(r"[a-z0-9.-]{0,24}[a-z0-9]", fullmatch=True)
NAMES = st.builds(lambda length, end: ("n" * 253)[:length] + end, st.integers(0, 253), ENDINGS).filter(
    lambda name: len(name) <= 253 and SUBDOMAIN.fullmatch(name) is not None
)
KEYS = st.lists(st.text(max_size=8), max_size=3).map(tuple)
KEY = ("operation", "guest-attached", "Attached")


async def record(recorder: EventRecorder, **changed: Any) -> None:
    given = {"about": VMI, "type": "Normal", "reason": "Attached", "message": "done", "key": KEY} | changed
    await recorder.record(**given)


async def test_an_event_has_the_fields_that_kubectl_describe_shows(kube: Kube, script: Any) -> None:
    script.respond({}, 201)
    await record(EventRecorder(kube, "handler", log=logger("test"), node="n1"))
    body = msgspec.json.decode(script.bodies[0])
    assert script.requests[0].path == "/api/v1/namespaces/ns/events"
    assert body["metadata"] == {"name": event_name("vm1", KEY), "namespace": "ns"}
    assert body["involvedObject"] == {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "namespace": "ns",
        "name": "vm1",
        "uid": "uid-1",
    }
    assert body["source"] == {"component": "hotnic-handler", "host": "n1"}
    assert (body["type"], body["reason"], body["message"], body["count"]) == ("Normal", "Attached", "done", 1)
    assert body["firstTimestamp"] == body["lastTimestamp"]


async def test_the_same_event_is_created_once(kube: Kube, script: Any, make_failure: Any) -> None:
    recorder = EventRecorder(kube, "handler", log=logger("test"))
    script.respond(make_failure(409, "AlreadyExists"), 409)
    script.respond({}, 201)
    await record(recorder)
    await record(recorder)
    await record(recorder, key=("another", "operation"))
    assert len(script.requests) == 2


async def test_a_failure_is_logged_and_retried_the_next_time(
    kube: Kube, script: Any, make_failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = EventRecorder(kube, "handler", log=logger("test"))
    script.respond(make_failure(403, "Forbidden", "no events for you"), 403)
    script.respond({}, 201)
    await record(recorder)
    assert "no events for you" in caplog.text
    await record(recorder)
    assert len(script.requests) == 2


async def test_long_texts_are_truncated_to_the_limits_of_the_api(kube: Kube, script: Any) -> None:
    script.respond({}, 201)
    await record(
        EventRecorder(kube, "api", log=logger("test")),
        message="ü" * 1000,
        about={**VMI, "name": "n" * 253, "namespace": ""},
    )
    body = msgspec.json.decode(script.bodies[0])
    assert len(body["message"].encode()) <= 1024
    assert body["message"].endswith("ü…")
    assert len(body["metadata"]["name"]) == 253
    assert body["metadata"]["namespace"] == "default"


@given(NAMES, KEYS)
def test_the_name_of_an_event_is_valid_and_always_the_same(name: str, key: tuple[str, ...]) -> None:
    found = event_name(name, key)
    assert len(found) <= 253
    assert SUBDOMAIN.fullmatch(found)
    assert found == event_name(name, key)
    assert found.rpartition(".")[0] == name[: len(found) - 17]


@given(ENDINGS, ENDINGS, KEYS)
def test_objects_whose_names_differ_only_at_their_end_have_different_events(
    one: str, other: str, key: tuple[str, ...]
) -> None:
    assume(one != other)
    assert event_name("n" * 228 + one, key) != event_name("n" * 228 + other, key)


@pytest.mark.parametrize("end", ["-", "--", ".", "a-b", "a.b"])
def test_a_name_that_is_cut_at_a_separator_is_shortened_further(end: str) -> None:
    assert SUBDOMAIN.fullmatch(event_name("n" * (236 - len(end)) + end + "x" * 10, KEY))
