"""The role's pure parts: configuration of a NAD, answers of multus, Event texts, annotations to write."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from schemas.kube import NetworkAttachmentDefinition
from schemas.names import pod_interface
from schemas.networks import NETWORK_STATUS, NetworkSelectionElement, parse_network_status
from schemas.operations import hotplug_mark_key, hotplug_mark_of, operation_of_link, pod_nic_key, pod_nic_of
from services.networks import messages, status
from services.networks.delegate import attributes_of, failure_of
from services.networks.failure import Failure
from services.networks.nad import config_of
from tests.support.objects import pod

BLUE = pod_interface("blue")


def nad(config: str) -> NetworkAttachmentDefinition:
    return msgspec.convert(
        {"metadata": {"name": "blue", "namespace": "default"}, "spec": {"config": config}}, NetworkAttachmentDefinition
    )


def test_a_named_configuration_is_passed_on_byte_for_byte() -> None:
    text = '{ "name": "n",  "type":"bridge", "x": [1.0, null] }'
    assert config_of(nad(text)) == text.encode()


@pytest.mark.parametrize("text", ['{"type":"bridge"}', '{"plugins":[{"type":"bridge"}],"name":""}'])
def test_a_configuration_without_a_name_gets_the_nads(text: str) -> None:
    assert msgspec.json.decode(config_of(nad(text))) == {**json.loads(text), "name": "blue"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no spec.config"),
        (" \n", "has no spec.config"),
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"name":"n"}', "names no plugin"),
        ('{"type":1}', "names no plugin"),
    ],
)
def test_what_is_no_configuration_says_so(text: str, why: str) -> None:
    with pytest.raises(Failure, match=why) as caught:
        config_of(nad(text))
    assert caught.value.reason == "InvalidNetwork"


@given(st.text())
def test_any_text_is_a_configuration_or_a_failure(text: str) -> None:
    told = ""
    try:
        config_of(nad(text))
    except Failure as failure:
        told = failure.message
    assert told == "" or "default/blue" in told


@pytest.mark.parametrize(
    ("element", "sent"),
    [
        (NetworkSelectionElement("n", interface="x"), None),
        (NetworkSelectionElement("n", ips=[]), None),
        (NetworkSelectionElement("n", mac="02:00:00:00:00:01"), {"cni-args": None, "mac": "02:00:00:00:00:01"}),
        (NetworkSelectionElement("n", ips=["10.0.0.1/24"]), {"cni-args": None, "ips": ["10.0.0.1/24"]}),
        (NetworkSelectionElement("n", cni_args={}), {"cni-args": {}}),
    ],
)
def test_attributes(element: NetworkSelectionElement, sent: dict[str, Any] | None) -> None:
    attributes = attributes_of(element)
    assert (None if attributes is None else msgspec.to_builtins(attributes)) == sent


@pytest.mark.parametrize(
    ("answer", "reason", "text"),
    [
        (b'{"code":11,"msg":"later"}', "TryAgainLater", "CNI DEL (code 11): later"),
        (b'{"code":7,"msg":"bad","details":"d"}', "CniFailed", "CNI DEL (code 7): bad (d)"),
        (b"two\nlines\n", "CniFailed", "CNI DEL (status 400): two lines"),
        (b"", "CniFailed", "CNI DEL (status 400): no text"),
        (b"\xff\xfe", "CniFailed", "CNI DEL (status 400): \ufffd\ufffd"),
        (b'{"msg":"no code"}', "CniFailed", 'CNI DEL (status 400): {"msg":"no code"}'),
    ],
)
def test_errors_of_multus(answer: bytes, reason: str, text: str) -> None:
    failure = failure_of(cni.Command.DEL, 400, answer)
    assert (failure.reason, failure.message) == (reason, text)


def test_event_texts_have_upstreams_form() -> None:
    of = pod()
    name = f"pod [default/{of.metadata.name}]"
    plain = NetworkSelectionElement("blue", interface="ens58")
    rich = NetworkSelectionElement("blue", ips=["10.0.0.1"], cni_args={"b": {"y": None}, "a": ["1", 2]})
    assert messages.added(of, plain, "ens58") == f"{name}: added interface ens58 to network: blue"
    assert messages.added(of, rich, "x").endswith(
        "blue(ips: [10.0.0.1], mac: , cni-args: &map[a:[1 2] b:map[y:<nil>]])"
    )
    assert messages.removed(of, "blue", "x") == f"{name}: removed interface x from network: blue"
    assert (
        messages.remove_failed(of, "blue", "x", "why") == f"{name}: failed removing interface x from network: blue: why"
    )


def outcome(link: str, ips: Sequence[cni.Ip] = (), **interface: Any) -> status.Outcome:
    result = cni.CniResult(interfaces=[cni.CniInterface(link, sandbox="/run/netns/x", **interface)], ips=list(ips))
    return status.outcome(
        pod_uid="u", sandbox_id="s", network="default/blue", link=link, asked="0123456789abcdef", result=result
    )


def test_a_guests_nic_is_recorded() -> None:
    annotations = status.attached({}, outcome(BLUE, mac="02:00:00:00:00:01", mtu=1500))
    record = pod_nic_of({k: v for k, v in annotations.items() if v}, pod_nic_key("blue"))
    assert record is not None
    assert (record.pod_uid, record.sandbox_id, record.interface) == ("u", "s", BLUE)
    assert record.asked == "0123456789abcdef"


@pytest.mark.parametrize("link", [BLUE, "ens58"])
def test_where_no_record_can_be_made_a_mark_stands(link: str) -> None:
    annotations = status.attached({}, outcome(link, mac="02:00:00:00:00:01"))
    assert set(annotations) == {NETWORK_STATUS, hotplug_mark_key(link)}
    mark = hotplug_mark_of({k: v for k, v in annotations.items() if v}, link)
    assert mark is not None
    assert (mark.pod_uid, mark.asked) == ("u", "0123456789abcdef")


def test_a_record_that_nobody_would_read_is_not_written() -> None:
    ips = [cni.Ip(f"10.0.{i // 250}.{i % 250}/16", interface=0) for i in range(600)]
    found = outcome(BLUE, ips, mac="02:00:00:00:00:01", mtu=1500)
    assert set(found.records) == {hotplug_mark_key(BLUE)}
    assert len(found.entry.ips or ()) == 600


def statuses(*links: str) -> str:
    entries = [{"name": "default/blue", "interface": link, "default": link == "eth0", "dns": {}} for link in links]
    return json.dumps(entries)


def links_of(annotations: status.Annotations) -> list[str | None]:
    return [entry.interface for entry in parse_network_status(annotations[NETWORK_STATUS])]


def test_the_order_of_the_status_is_kept() -> None:
    assert links_of(status.attached({NETWORK_STATUS: statuses("eth0", "b", "a")}, outcome("c"))) == [
        "eth0",
        "b",
        "a",
        "c",
    ]
    assert links_of(status.attached({NETWORK_STATUS: statuses("eth0", "b", "a")}, outcome("b"))) == ["eth0", "b", "a"]
    assert links_of(status.detached({NETWORK_STATUS: statuses("eth0", "b", "a")}, "default/blue", "b")) == ["eth0", "a"]


def test_detaching_takes_record_and_mark_away_and_nothing_else() -> None:
    annotations = {NETWORK_STATUS: statuses("eth0", BLUE), pod_nic_key("blue"): "{}", "other": "x"}
    changed = status.detached(annotations, "default/blue", BLUE)
    assert links_of(changed) == ["eth0"]
    assert changed[pod_nic_key("blue")] is None
    assert set(changed) == {NETWORK_STATUS, pod_nic_key("blue")}


def test_a_default_entry_is_never_taken_out() -> None:
    assert links_of(status.detached({NETWORK_STATUS: statuses("eth0")}, "default/blue", "eth0")) == ["eth0"]


@pytest.mark.parametrize("text", ["{", "null", '{"id":"x","kind":"plug","interface":"red"}', "x" * 600])
def test_an_operation_that_is_not_this_links_counts_as_absent(text: str) -> None:
    assert operation_of_link({f"hotnic.io/operation.{BLUE[3:]}": text}, BLUE) is None


def test_a_link_without_a_hash_has_no_operation_of_its_own() -> None:
    assert operation_of_link({"hotnic.io/operation.x": "{}"}, "net1") is None
