"""The comparison of responses with recorded ones: it sees what differs, and nothing else."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.multus_wire.comparison import (
    ABSENT,
    DrawnNames,
    Fields,
    differences,
    event_differences,
    response_fields,
)
from tests.support.multus_wire.recording import (
    V4_2_4,
    V4_3_0,
    V4_3_0_CNI_1_0_0,
    HttpMessage,
    WireRecording,
    response_of,
)

ADDED = response_of(V4_3_0.exchange("runtime-add: ADD eth0"))
REFUSED = response_of(V4_3_0.exchange("delegate-add-eth0"))


def compare(upstream: HttpMessage | None, hotnic: HttpMessage | None) -> Fields:
    return differences(response_fields(upstream, DrawnNames()), response_fields(hotnic, DrawnNames()))


def with_result(**changes: Any) -> HttpMessage:
    """Return the response of an ADD with other fields in its last interface."""
    document = ADDED.document
    interfaces = document["Result"]["interfaces"]
    interfaces[-1] = {key: value for key, value in (interfaces[-1] | changes).items() if value is not None}
    return replace(ADDED, body=json.dumps(document).encode())


def error(code: int, msg: str) -> HttpMessage:
    """Return a CNI error document."""
    body = json.dumps({"code": code, "msg": msg}).encode()
    return HttpMessage("HTTP/1.1 400 Bad Request", ("Content-Type: application/json", "Connection: close"), body)


@pytest.mark.parametrize("recording", [V4_3_0, V4_3_0_CNI_1_0_0, V4_2_4], ids=lambda one: one.label)
def test_upstream_equals_itself(recording: WireRecording) -> None:
    for step in recording.steps:
        for exchange in step.exchanges:
            assert compare(exchange.response, exchange.response) == {}


@pytest.mark.parametrize(
    ("hotnic", "expected"),
    [
        (with_result(mtu=1500), {"interfaces[2].mtu": 1500}),
        (with_result(sandbox="/ns"), {"interfaces[2].sandbox": "/ns"}),
        (with_result(name="eth1"), {"interfaces[2].name": "eth1"}),
        # A MAC that was drawn counts by its order only; one that was requested counts as it is.
        (with_result(mac="9a:00:00:00:00:01"), {}),
        (with_result(mac="02:00:00:00:00:0b"), {"interfaces[2].mac": "02:00:00:00:00:0b"}),
        (with_result(mac=None), {"interfaces[2].mac": ABSENT}),
        (replace(ADDED, fields=("Connection: close",)), {"content-type": None}),
        (replace(ADDED, fields=("Content-Type: text/plain; charset=utf-8",)), {"connection": None}),
        (None, {"status": "connection closed"}),
        (error(3, "gone"), {"status": 400, "code": 3, "text": "gone"}),
    ],
)
def test_each_field_of_a_result_counts(hotnic: HttpMessage | None, expected: Fields) -> None:
    assert compare(ADDED, hotnic) == expected


def test_an_error_counts_by_its_form_and_its_cause() -> None:
    assert compare(REFUSED, error(7, "validateIfName: interface name eth0 already exists (as peer)")) == {"code": 7}
    assert compare(REFUSED, error(7, "no")) == {"code": 7, "text": "no"}
    assert compare(REFUSED, replace(REFUSED, body=b"validateIfName: interface name eth0 already exists\n")) == {}


def test_macs_count_by_the_order_of_their_appearance() -> None:
    first, second = (
        {"name": "n", "interface": link, "mac": mac, "dns": {}} for link, mac in (("a", "9a:1"), ("b", "9a:2"))
    )
    swapped = [{**first, "mac": "9a:2"}, {**second, "mac": "9a:1"}]
    upstream, hotnic = DrawnNames(), DrawnNames()
    assert upstream.network_status([first, second]) == hotnic.network_status([first, second])
    assert differences(upstream.network_status([second, first]), hotnic.network_status([first, second])) == {}
    del swapped[0]["dns"]
    found = differences(upstream.network_status([first, second]), hotnic.network_status(swapped))
    assert found == {"n a.mac": "MAC 2", "n b.mac": "MAC 1", "n a.dns": ABSENT}


def test_events_count_as_a_set() -> None:
    assert event_differences(["a", "b"], ["b", "c"]) == {"a": False, "c": True}
