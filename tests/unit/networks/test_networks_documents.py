"""The role's pure parts: CNI configuration of a NAD, responses of multus, Event messages, annotations to write."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from schemas.kubernetes.networks import NETWORK_STATUS, Bandwidth, NetworkSelectionElement, parse_network_status
from schemas.kubernetes.objects import NetworkAttachmentDefinition
from schemas.kubernetes.operations import (
    hotplug_mark_key,
    pod_nic_key,
    read_hotplug_mark,
    read_operation_of_link,
    read_pod_nic,
)
from schemas.names import pod_interface
from services.common.domain.plugin_types import AllowedPlugins, parse_plugin_types
from services.networks import status
from services.networks.multus_client import AttachmentFailure, attachment_failure, interface_attributes
from services.networks.network_config import cni_config, with_runtime_config
from services.networks.plan import messages
from tests.support.observed.objects import pod

BLUE = pod_interface("blue")


def nad(config: str) -> NetworkAttachmentDefinition:
    return msgspec.convert(
        {"metadata": {"name": "blue", "namespace": "default"}, "spec": {"config": config}}, NetworkAttachmentDefinition
    )


ANY = AllowedPlugins()


def test_named_configuration_is_returned_byte_for_byte() -> None:
    text = '{ "name": "n",  "type":"bridge", "x": [1.0, null] }'
    assert cni_config(nad(text), ANY, by_name=False) == text.encode()


def test_a_configuration_of_the_largest_size_gets_a_name_and_settings() -> None:
    plugin: dict[str, Any] = {"type": "bridge", "capabilities": {"bandwidth": True}, "x": ""}
    plugin["x"] = "x" * (65536 - len(json.dumps(plugin)))
    config = cni_config(nad(json.dumps(plugin)), ANY, by_name=False)
    element = NetworkSelectionElement("blue", bandwidth=Bandwidth(ingress_rate=1))
    assert msgspec.json.decode(with_runtime_config(config, element)[0])["name"] == "blue"


@pytest.mark.parametrize("text", ['{"type":"bridge"}', '{"plugins":[{"type":"bridge"}],"name":""}'])
def test_configuration_without_a_name_gets_the_name_of_the_nad(text: str) -> None:
    assert msgspec.json.decode(cni_config(nad(text), ANY, by_name=False)) == {**json.loads(text), "name": "blue"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no spec.config"),
        (" \n", "has no spec.config"),
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"name":"n"}', "names no plugin"),
        ('{"type":1}', "names no plugin"),
        (json.dumps({"type": "bridge", "x": "x" * 65536}), "the limit is 65536"),
        (json.dumps({"plugins": [{"type": "tuning"}] * 33}), "33 plugins; the limit is 32"),
    ],
)
def test_invalid_configuration_error_names_the_reason(text: str, reason: str) -> None:
    with pytest.raises(AttachmentFailure, match=reason) as caught:
        cni_config(nad(text), ANY, by_name=False)
    assert (caught.value.reason, caught.value.final) == ("InvalidNetwork", True)


@pytest.mark.parametrize(
    ("config", "allowed", "refused"),
    [
        ({"type": "hotnic-multus"}, ANY, "hotnic-multus"),
        ({"plugins": [{"type": "bridge"}, {"type": "multus-shim"}]}, ANY, "multus-shim"),
        ({"type": "bridge", "ipam": {"type": "multus"}}, ANY, "multus"),
        # One plugin for upstream's daemon, a list for hotnic's.
        ({"Type": "multus", "plugins": [{"type": "bridge"}]}, ANY, "multus"),
        ({"type": "bridge", "ipam": {"type": "dhcp"}}, parse_plugin_types("bridge, host-local"), "dhcp"),
        ({"type": "bridge", "ipam": {"type": "host-local"}}, parse_plugin_types("bridge, host-local"), ""),
        ({"type": "flannel", "delegate": {"type": "host-device"}}, parse_plugin_types("flannel"), "host-device"),
        ({"type": "bridge", "ipam": [{"TYPE": "dhcp"}]}, parse_plugin_types("bridge"), "dhcp"),
        ({"type": "bridge", "ipam": {"ipam": {"type": "multus"}}}, ANY, "multus"),
        ({"type": "multus"}, parse_plugin_types("multus"), "multus"),
        ({"type": "anything"}, parse_plugin_types(" , "), ""),
    ],
)
def test_the_shim_and_plugins_that_are_not_listed_are_refused(
    config: dict[str, Any], allowed: AllowedPlugins, refused: str
) -> None:
    network = nad(json.dumps({"cniVersion": "1.0.0", **config}))
    if not refused:
        assert cni_config(network, allowed, by_name=False)
        return
    with pytest.raises(AttachmentFailure, match=f"plugin type {refused} is not allowed in a network") as caught:
        cni_config(network, allowed, by_name=False)
    assert (caught.value.reason, caught.value.final) == ("InvalidNetwork", True)


@pytest.mark.parametrize(
    ("code", "msg", "final"),
    [
        (7, "plugin type multus is not allowed in a network", True),
        (7, "namespace isolation: pod default/p may not use networks of namespace other", True),
        (1, "CNI version '9.9.9' is not supported", True),
        (7, "validateIfName: interface name net1 already exists", False),
        (7, 'plugin type="x" failed (add): namespace isolation', False),
        (11, "busy", False),
    ],
)
def test_a_refusal_of_the_daemon_is_final(code: int, msg: str, final: bool) -> None:
    response = msgspec.json.encode(cni.CniErrorDocument(code, msg))
    assert attachment_failure(cni.CniCommand.ADD, 400, response).final is final


@given(st.text())
def test_arbitrary_text_is_a_configuration_or_a_failure(text: str) -> None:
    message = ""
    try:
        cni_config(nad(text), ANY, by_name=False)
    except AttachmentFailure as failure:
        message = failure.message
    assert message == "" or "default/blue" in message


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
def test_interface_attributes_of_an_element(element: NetworkSelectionElement, sent: dict[str, Any] | None) -> None:
    attributes = interface_attributes(element)
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
def test_failure_of_a_multus_error_response(answer: bytes, reason: str, text: str) -> None:
    failure = attachment_failure(cni.CniCommand.DEL, 400, answer)
    assert (failure.reason, failure.message) == (reason, text)


def test_event_messages_match_upstream() -> None:
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


def outcome(link: str, ips: Sequence[cni.CniIp] = (), **interface: Any) -> status.AttachOutcome:
    result = cni.CniResult(interfaces=[cni.CniInterface(link, sandbox="/run/netns/x", **interface)], ips=list(ips))
    return status.attach_outcome(
        pod_uid="u",
        sandbox_id="s",
        network="default/blue",
        link=link,
        settings_digest="0123456789abcdef",
        result=result,
    )


def test_hashed_link_gets_a_pod_nic_record() -> None:
    annotations = status.annotations_with({}, outcome(BLUE, mac="02:00:00:00:00:01", mtu=1500))
    record = read_pod_nic({k: v for k, v in annotations.items() if v}, pod_nic_key("blue"))
    assert record is not None
    assert (record.pod_uid, record.sandbox_id, record.interface) == ("u", "s", BLUE)
    assert record.settings_digest == "0123456789abcdef"


@pytest.mark.parametrize("link", [BLUE, "ens58"])
def test_link_without_a_record_gets_a_hotplug_mark(link: str) -> None:
    annotations = status.annotations_with({}, outcome(link, mac="02:00:00:00:00:01"))
    assert set(annotations) == {NETWORK_STATUS, hotplug_mark_key(link)}
    mark = read_hotplug_mark({k: v for k, v in annotations.items() if v}, link)
    assert mark is not None
    assert (mark.pod_uid, mark.settings_digest) == ("u", "0123456789abcdef")


def test_oversized_record_is_replaced_by_a_mark() -> None:
    ips = [cni.CniIp(f"10.0.{i // 250}.{i % 250}/16", interface=0) for i in range(600)]
    found = outcome(BLUE, ips, mac="02:00:00:00:00:01", mtu=1500)
    assert set(found.records) == {hotplug_mark_key(BLUE)}
    assert len(found.entry.ips or ()) == 600


def statuses(*links: str) -> str:
    entries = [{"name": "default/blue", "interface": link, "default": link == "eth0", "dns": {}} for link in links]
    return json.dumps(entries)


def links_of(annotations: status.Annotations) -> list[str | None]:
    return [entry.interface for entry in parse_network_status(annotations[NETWORK_STATUS])]


def test_order_of_network_status_is_preserved() -> None:
    assert links_of(status.annotations_with({NETWORK_STATUS: statuses("eth0", "b", "a")}, outcome("c"))) == [
        "eth0",
        "b",
        "a",
        "c",
    ]
    assert links_of(status.annotations_with({NETWORK_STATUS: statuses("eth0", "b", "a")}, outcome("b"))) == [
        "eth0",
        "b",
        "a",
    ]
    assert links_of(status.annotations_without({NETWORK_STATUS: statuses("eth0", "b", "a")}, "default/blue", "b")) == [
        "eth0",
        "a",
    ]


def test_entries_of_others_keep_their_bytes() -> None:
    foreign = '{"name":"x","interface":"net9","dns":null,"lane": 1.50}'
    before = {NETWORK_STATUS: f"[{foreign}]"}
    attached = status.annotations_with(before, outcome("b"))[NETWORK_STATUS]
    assert attached is not None
    assert attached.startswith(f"[{foreign},{{")
    assert status.annotations_without({NETWORK_STATUS: attached}, "default/blue", "b")[NETWORK_STATUS] == f"[{foreign}]"


def test_detaching_removes_only_entry_record_and_mark() -> None:
    annotations = {NETWORK_STATUS: statuses("eth0", BLUE), pod_nic_key("blue"): "{}", "other": "x"}
    changed = status.annotations_without(annotations, "default/blue", BLUE)
    assert links_of(changed) == ["eth0"]
    assert changed[pod_nic_key("blue")] is None
    assert set(changed) == {NETWORK_STATUS, pod_nic_key("blue")}


def test_default_entry_is_never_removed() -> None:
    assert links_of(status.annotations_without({NETWORK_STATUS: statuses("eth0")}, "default/blue", "eth0")) == ["eth0"]


@pytest.mark.parametrize("text", ["{", "null", '{"id":"x","kind":"plug","interface":"red"}', "x" * 600])
def test_operation_of_another_link_counts_as_absent(text: str) -> None:
    assert read_operation_of_link({f"hotnic.io/operation.{BLUE[3:]}": text}, BLUE) is None


def test_link_without_a_hash_has_no_operation() -> None:
    assert read_operation_of_link({"hotnic.io/operation.x": "{}"}, "net1") is None
