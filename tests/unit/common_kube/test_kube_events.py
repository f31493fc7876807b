"""Kubernetes Events: deterministic, best effort, within limits."""

from typing import Any

import msgspec
import pytest

from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder, event_name
from services.common.logs import logger

VMI = {
    "kind": "VirtualMachineInstance",
    "api_version": "kubevirt.io/v1",
    "namespace": "ns",
    "name": "vm1",
    "uid": "uid-1",
}
KEY = ("operation", "guest-attached", "Attached")


async def emit(events: EventRecorder, **changed: Any) -> None:
    given = {"about": VMI, "type": "Normal", "reason": "Attached", "message": "done", "key": KEY} | changed
    await events.emit(**given)


async def test_an_event_is_what_kubectl_describe_shows(kube: Kube, script: Any) -> None:
    script.answer({}, 201)
    await emit(EventRecorder(kube, "handler", log=logger("test"), node="n1"))
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


async def test_the_same_event_is_written_once(kube: Kube, script: Any, make_failure: Any) -> None:
    events = EventRecorder(kube, "handler", log=logger("test"))
    script.answer(make_failure(409, "AlreadyExists"), 409)
    script.answer({}, 201)
    await emit(events)
    await emit(events)
    await emit(events, key=("another", "operation"))
    assert len(script.requests) == 2


async def test_what_cannot_be_written_is_logged_and_tried_the_next_time(
    kube: Kube, script: Any, make_failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    events = EventRecorder(kube, "handler", log=logger("test"))
    script.answer(make_failure(403, "Forbidden", "no events for you"), 403)
    script.answer({}, 201)
    await emit(events)
    assert "no events for you" in caplog.text
    await emit(events)
    assert len(script.requests) == 2


async def test_long_texts_are_cut_to_what_the_api_takes(kube: Kube, script: Any) -> None:
    script.answer({}, 201)
    await emit(
        EventRecorder(kube, "api", log=logger("test")),
        message="ü" * 1000,
        about={**VMI, "name": "n" * 253, "namespace": ""},
    )
    body = msgspec.json.decode(script.bodies[0])
    assert len(body["message"].encode()) <= 1024
    assert body["message"].endswith("ü…")
    assert len(body["metadata"]["name"]) == 253
    assert body["metadata"]["namespace"] == "default"
