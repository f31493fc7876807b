"""Today's roles read the objects of an earlier version: the same NICs, stages, records and operations."""

import json
from collections import Counter
from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, NetworkSelectionElement, NetworkStatus
from schemas.kubernetes.operations import NIC_SLOTS, PREFIX, HotplugMark, NicSlots, Operation, PodNic
from schemas.kubernetes.options import OPERATION_HEADER, AddInterfaceOptions, RemoveInterfaceOptions
from schemas.names import interface_hash
from services.cli.commands.timeline import entry_of_event
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.kube.errors import classify
from tests.support.skew.recording import RecordedSnapshot, Recording, round_trip

FORMATS = {
    NETWORKS: list[NetworkSelectionElement],
    NETWORK_STATUS: list[NetworkStatus],
    NIC_SLOTS: NicSlots,
    f"{PREFIX}operation": Operation,
    f"{PREFIX}pod-nic": PodNic,
    f"{PREFIX}attached": HotplugMark,
}
"""The types of the annotations, by key or by the part of it before the hash."""

FROM_EVENTS = ("since", "reason", "message", "attempts", "last_attempt")
"""Fields of the hot-plug status that objects alone do not give."""

STAGES = {
    "red-plug-requested": {"red": "requested"},
    "red-pod-annotated": {"red": "pod-annotated"},
    "red-multus-attached": {"red": "multus-attached"},
    "red-guest-attached": {"red": "guest-attached"},
    "blue-plug-requested": {"blue": "requested"},
    "blue-guest-attached": {"red": "guest-attached", "blue": "guest-attached"},
    "blue-link-down": {"blue": "guest-attached"},
    "green-failed": {"green": "pod-annotated"},
    "red-unplug-requested": {"red": "requested"},
    "red-guest-detached": {"red": "guest-detached"},
    "red-unplug-unannotated": {"red": "guest-detached"},
    "red-gone": {"blue": "guest-attached"},
}
"""The stages at the moments of a recording."""


def statuses(snapshot: RecordedSnapshot) -> dict[str, Any]:
    vm, vmi, pod = snapshot.machine()
    return {status.interface: status for status in derive_statuses(parse_nics(vmi, pod), vm)}


def test_every_annotation_keeps_each_of_its_fields(recording: Recording) -> None:
    seen: Counter[str] = Counter()
    for snapshot in recording.snapshots.values():
        for key, text in snapshot.annotations():
            name = key if key in FORMATS else key.rpartition(".")[0]
            if name in FORMATS:
                # Without attachments the annotation is empty, as KubeVirt leaves it.
                assert not text or round_trip(text, FORMATS[name]) == json.loads(text), key
                seen[name] += 1
            else:
                assert not key.startswith(PREFIX), f"no type for annotation {key}"
    assert set(seen) == set(FORMATS)


@pytest.mark.parametrize("label", STAGES)
def test_the_objects_are_at_their_stage(recording: Recording, label: str) -> None:
    found = statuses(recording.snapshots[label])
    assert {name: str(found[name].stage) for name in STAGES[label]} == STAGES[label]


def test_the_objects_give_the_hotplug_status_that_was_served(recording: Recording) -> None:
    for snapshot in recording.snapshots.values():
        found = statuses(snapshot)
        served = {item.interface: item for item in snapshot.hotplug_status.items}
        assert found.keys() == served.keys(), snapshot.label
        for name, item in served.items():
            for field in set(item.__struct_fields__) - set(FROM_EVENTS):
                assert getattr(found[name], field) == getattr(item, field), f"{snapshot.label}: {field} of {name}"


def test_the_nics_have_the_recorded_operations_elements_and_links(recording: Recording) -> None:
    for snapshot in recording.snapshots.values():
        _, vmi, pod = snapshot.machine()
        served = {item.interface: item for item in snapshot.hotplug_status.items}
        for nic in parse_nics(vmi, pod):
            operation = json.loads(vmi.metadata.annotations[f"{PREFIX}operation.{interface_hash(nic.name)}"])
            assert nic.has_operation
            assert (nic.operation.id, nic.operation.kind) == (operation["id"], operation["kind"])
            assert nic.link == served[nic.name].pod_interface == f"pod{interface_hash(nic.name)}"
            elements = json.loads(pod.metadata.annotations.get(NETWORKS, "[]"))
            present = json.loads(pod.metadata.annotations.get(NETWORK_STATUS, "[]"))
            assert (nic.element is not None) == (nic.link in [element["interface"] for element in elements])
            assert [entry["mac"] for entry in present if entry["interface"] == nic.link] == (
                [nic.status.mac] if nic.status is not None else []
            )
            # The record is what a handler restores the link from: losing it would lose MAC, addresses and routes.
            assert (nic.record is not None) == (nic.status is not None)
            if nic.record is not None:
                assert (nic.record.pod_uid, nic.record.interface) == (pod.metadata.uid, nic.link)


def test_every_event_of_a_role_is_listed_with_its_operation(recording: Recording) -> None:
    lines = [line for event in recording.objects("Event") if (line := entry_of_event(event)) is not None]
    about = [line for line in lines if line.operation]
    assert {line.interface for line in about} >= {"red", "blue", "green"}
    assert all(line.stage and line.kind and line.trace_id and line.by for line in about)
    assert "CniFailed" in {line.reason for line in about}


def test_requests_and_responses_of_the_api_are_decoded(recording: Recording) -> None:
    statuses_seen = Counter(exchange["status"] for exchange in recording.api_exchanges)
    assert statuses_seen.keys() == {202, 409, 422}
    for exchange in recording.api_exchanges:
        kind = AddInterfaceOptions if exchange["path"].endswith("/addinterface") else RemoveInterfaceOptions
        assert round_trip(exchange["request"], kind) == json.loads(exchange["request"])
        if exchange["status"] == 202:
            assert exchange["headers"][OPERATION_HEADER]
        else:
            error = classify(exchange["status"], exchange["response"].encode(), exchange["headers"])
            assert error.status == exchange["status"]
            assert error.message == json.loads(exchange["response"])["message"]
    first, repeated = recording.api_exchanges[:2]
    assert first["request"] == repeated["request"]
    assert first["headers"][OPERATION_HEADER] == repeated["headers"][OPERATION_HEADER]
