"""Annotations: those of hotnic, and Multus' ``networks`` and ``network-status``."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.inputs import MAX_TEXT
from schemas.kubernetes import networks, operations
from schemas.kubernetes.networks import (
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
    parse_network_status,
    parse_networks,
)
from schemas.kubernetes.operations import HotplugMark, NicSlots, Operation, PodNic, RecordedRoute
from schemas.names import pod_interface
from schemas.stages import OperationKind

LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
LINK = st.from_regex(r"[a-z][a-z0-9.-]{0,14}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

ELEMENTS = st.builds(
    NetworkSelectionElement,
    name=LABEL,
    namespace=st.none() | LABEL,
    interface=st.none() | LINK,
    mac=st.none() | st.just("02:00:00:00:00:01"),
    ips=st.none() | st.lists(st.just("10.0.0.1/24"), min_size=1),
    cni_args=st.none() | st.dictionaries(TEXT, st.integers() | TEXT, min_size=1),
)


def operation(**more: Any) -> Operation:
    return Operation("4a7c", OperationKind.PLUG, "iface1", **more)


def test_operation_round_trip() -> None:
    written = operation(traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01", requested_at="2026-11-23T10:00:00Z")
    annotations = {operations.operation_key("iface1"): operations.encode_annotation(written)}
    assert annotations.keys() == {"hotnic.io/operation.7e0055a6880"}
    assert operations.read_operation(annotations, "iface1") == written
    assert operations.read_operation(annotations, "iface2") is None


def test_operation_is_limited_to_1024_bytes() -> None:
    size = len(operations.encode_annotation(operation(requested_at="")))
    operations.encode_annotation(operation(requested_at="x" * (1024 - size)))
    with pytest.raises(ValueError, match="1025 bytes"):
        operations.encode_annotation(operation(requested_at="x" * (1025 - size)))


def test_largest_real_operation_fits_the_limit() -> None:
    largest = Operation(
        operations.derive_operation_id("f" * 36, "x" * 63, OperationKind.UNPLUG, 2**63),
        OperationKind.UNPLUG,
        "x" * 63,
        "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "2026-11-23T10:00:00.123456+00:00",
        "4a7c0000-0000-0000-0000-000000000000",
        vm="4a7c0000-0000-0000-0000-000000000000",
        network=f"{'n' * 63}/{'x' * 253}",
    )
    assert len(operations.encode_annotation(largest)) <= operations.MAX_OPERATION_BYTES


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"id":"1"}', '{"id":"1","kind":"twist","interface":"iface1"}', " " * 600],
)
def test_malformed_operation_counts_as_absent(text: str) -> None:
    assert operations.read_operation({operations.operation_key("iface1"): text}, "iface1") is None


@pytest.mark.parametrize("reason", ["", "noFreeSlot", "No free slot", "No\nSlot", "NoFreeSlot\n", "X" * 65, "Ü"])
def test_operation_whose_failure_has_no_reason_counts_as_absent(reason: str) -> None:
    """The reason becomes that of an Event, and a name in messages to the user."""
    annotations = {operations.operation_key("iface1"): operations.encode_annotation(operation(failed=reason))}
    assert operations.read_operation(annotations, "iface1") is None
    annotations = {operations.operation_key("iface1"): operations.encode_annotation(operation(failed="NoFreeSlot"))}
    assert operations.read_operation(annotations, "iface1") == operation(failed="NoFreeSlot")


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "a\r\nb: c", "1\n", "ü"])
def test_operation_whose_id_is_no_id_counts_as_absent(text: str) -> None:
    """The id becomes a header of HTTP and of messages, which the receivers bound."""
    written = msgspec.structs.replace(operation(), id=text)
    annotations = {operations.operation_key("iface1"): operations.encode_annotation(written)}
    assert operations.read_operation(annotations, "iface1") is None


def test_operation_of_another_interface_counts_as_absent() -> None:
    text = operations.encode_annotation(Operation("1", OperationKind.PLUG, "other"))
    assert operations.read_operation({operations.operation_key("iface1"): text}, "iface1") is None


def test_derived_id_depends_on_its_inputs_only() -> None:
    one = operations.derive_operation_id("uid", "iface1", OperationKind.PLUG, 3)
    assert one == operations.derive_operation_id("uid", "iface1", OperationKind.PLUG, 3)
    others = {
        operations.derive_operation_id("uid2", "iface1", OperationKind.PLUG, 3),
        operations.derive_operation_id("uid", "iface2", OperationKind.PLUG, 3),
        operations.derive_operation_id("uid", "iface1", OperationKind.UNPLUG, 3),
        operations.derive_operation_id("uid", "iface1", OperationKind.PLUG, 4),
    }
    assert len(others | {one}) == 5


def test_pod_nic_round_trip() -> None:
    record = PodNic(
        pod_uid="u",
        sandbox_id="s",
        interface="pod7e0055a6880",
        mac="02:00:00:00:00:01",
        mtu=1450,
        ips=("10.0.0.5/24", "fd00::5/64"),
        routes=(RecordedRoute("0.0.0.0/0", "10.0.0.1"), RecordedRoute("10.1.0.0/16")),
    )
    key = operations.pod_nic_key("iface1")
    assert key == operations.pod_nic_key_of_link(pod_interface("iface1"))
    assert operations.read_pod_nic({key: operations.encode_annotation(record)}, key) == record
    assert json.loads(operations.encode_annotation(record))["podUID"] == "u"


@given(st.text(max_size=9))
def test_every_pod_nic_record_that_is_written_can_be_read(filler: str) -> None:
    """The limit counts bytes when writing and characters when reading; there are never more characters than bytes."""
    bare = PodNic(pod_uid="u", sandbox_id="s", interface="pod7e0055a6880", mac="02:00:00:00:00:01", mtu=1450)
    size = len(operations.encode_annotation(msgspec.structs.replace(bare, domain=filler)).encode())
    full = msgspec.structs.replace(bare, domain=filler + "x" * (operations.MAX_POD_NIC_BYTES - size))
    assert operations.read_pod_nic({"k": operations.encode_annotation(full)}, "k") == full
    with pytest.raises(operations.AnnotationTooLarge, match=r"8193 bytes; the limit is 8192"):
        operations.encode_annotation(msgspec.structs.replace(full, domain=f"{full.domain}x"))


@pytest.mark.parametrize("link", ["net1", "eth0", "pod", "podXe0055a6880", "pod7e0055a68801"])
def test_link_without_hashed_name_has_no_pod_nic_key(link: str) -> None:
    assert operations.pod_nic_key_of_link(link) is None
    assert operations.read_pod_nic({}, None) is None


def test_nic_slots_and_hotplug_mark_round_trip() -> None:
    slots = NicSlots(free=3, nics=1, pod_uid="u")
    assert operations.read_nic_slots({operations.NIC_SLOTS: operations.encode_annotation(slots)}) == slots
    assert operations.read_nic_slots({}) is None
    assert operations.read_nic_slots({operations.NIC_SLOTS: "many"}) is None
    mark = HotplugMark(pod_uid="u", interface="net1")
    annotations = {operations.hotplug_mark_key("net1"): operations.encode_annotation(mark)}
    assert operations.read_hotplug_mark(annotations, "net1") == mark
    assert operations.read_hotplug_mark(annotations, "net2") is None


@given(st.lists(ELEMENTS, max_size=4))
def test_networks_json_round_trip(elements: list[NetworkSelectionElement]) -> None:
    assert parse_networks(encode_networks(elements)) == elements


def test_empty_fields_of_an_element_count_as_absent() -> None:
    (element,) = parse_networks('[{"name":"a","namespace":"","interface":"","ips":null,"default-route":null}]')
    assert element.namespace in ("", None)
    assert element.requested_interface is None
    assert (element.ips, element.default_route) == (None, None)


@given(
    st.lists(st.tuples(st.none() | LABEL, LABEL, st.none() | LINK), min_size=1, max_size=4), st.sampled_from(["", " "])
)
def test_networks_short_form(items: list[tuple[str | None, str, str | None]], space: str) -> None:
    text = f",{space}".join(
        f"{namespace + '/' if namespace else ''}{name}{'@' + link if link else ''}" for namespace, name, link in items
    )
    assert parse_networks(text) == [
        NetworkSelectionElement(name=name, namespace=namespace, interface=link) for namespace, name, link in items
    ]


@given(st.text(max_size=60))
def test_networks_parser_returns_valid_elements_or_raises_value_error(text: str) -> None:
    """Any annotation gives a list of valid elements or a ``ValueError``."""
    try:
        found = parse_networks(text)
    except ValueError:
        return
    for element in found:
        assert element.name
        assert element.requested_interface is None or networks.is_valid_link_name(element.requested_interface)


def test_empty_settings_of_an_element_are_missing_ones() -> None:
    [element] = parse_networks('[{"name":"n","namespace":"","mac":"","infiniband-guid":"","interfaceRequest":""}]')
    assert element.requested_interface is None
    networks.check_settings(mac=element.mac, infiniband_guid=element.infiniband_guid, ips=())


@pytest.mark.parametrize("text", [None, "", "  ", "\n"])
def test_absent_networks_annotation_is_an_empty_list(text: str | None) -> None:
    assert parse_networks(text) == []


def test_no_attachment_is_encoded_as_empty_text() -> None:
    assert encode_networks([]) == ""


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "a,,b",
        "/a",
        "a/",
        "a/b/c",
        "a@",
        "@x",
        "a@b@c",
        "A",
        "a_b",
        "a@sixteen-bytes-xx",
        "a@b/c",
        "[",
        "{}",
        '["a"]',
        '[{"name":"A"}]',
        '[{"namespace":"a"}]',
        '[{"name":"a","namespace":"A"}]',
        '[{"name":"a","interface":".."}]',
        '[{"name":"a","interfaceRequest":"x y"}]',
        '[{"name":"a","interface":"x\\u0000y"}]',
        '[{"name":"a","interface":"net%d"}]',
        '[{"name":"a","interface":"n\u00e4t"}]',
        " " * (networks.MAX_ANNOTATION_BYTES) + "a",
        "a" + ",a" * networks.MAX_ELEMENTS,
        '[{"name":"a"}' + networks.MAX_ELEMENTS * ',{"name":"a"}' + "]",
    ],
)
def test_malformed_networks_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_networks(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a@" + "x" * 200_000, "is not a link name of 1 to 15 characters"),
        ("x" * 200_000 + "@", "is not of the form [namespace/]name[@interface]"),
    ],
)
def test_a_long_name_is_cut_where_an_error_quotes_it(text: str, what: str) -> None:
    """It becomes the text of an Event, and what is wrong must still be in it."""
    with pytest.raises(ValueError, match=re.escape(what)) as caught:
        parse_networks(text)
    assert len(str(caught.value)) <= MAX_TEXT


def test_deprecated_interface_request_key_is_read() -> None:
    (element,) = parse_networks('[{"name":"a","interfaceRequest":"net7"}]')
    assert element.requested_interface == "net7"


def test_keys_are_those_of_multus() -> None:
    element = NetworkSelectionElement(
        name="br", namespace="ns", interface="net1", cni_args={"a": 1}, infiniband_guid="g", default_route=["1.1.1.1"]
    )
    assert encode_networks([element]) == (
        '[{"name":"br","namespace":"ns","infiniband-guid":"g","interface":"net1",'
        '"cni-args":{"a":1},"default-route":["1.1.1.1"]}]'
    )


def test_network_status_is_formatted_as_multus_writes_it() -> None:
    text = encode_network_status(
        [
            NetworkStatus(name="cbr0", interface="eth0", ips=["10.0.0.2"], mac="02:00:00:00:00:02", default=True),
            NetworkStatus(name="default/br", interface="pod7e0055a6880", mtu=1450),
        ]
    )
    assert text == (
        '[{\n    "name": "cbr0",\n    "interface": "eth0",\n    "ips": [\n        "10.0.0.2"\n    ],\n'
        '    "mac": "02:00:00:00:00:02",\n    "default": true,\n    "dns": {}\n},{\n    "name": "default/br",\n'
        '    "interface": "pod7e0055a6880",\n    "mtu": 1450,\n    "dns": {}\n}]'
    )


@given(
    st.lists(
        st.builds(
            NetworkStatus,
            name=TEXT,
            interface=st.none() | LINK,
            ips=st.none() | st.lists(TEXT, min_size=1, max_size=2),
            mac=st.none() | TEXT,
            mtu=st.none() | st.integers(68, 65535),
            default=st.booleans(),
        ),
        max_size=3,
    )
)
def test_network_status_round_trip(statuses: list[NetworkStatus]) -> None:
    assert parse_network_status(encode_network_status(statuses)) == statuses


@pytest.mark.parametrize("text", ["{", "{}", '[{"interface":"a"}]', "x" * (networks.MAX_ANNOTATION_BYTES + 1)])
def test_malformed_network_status_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_network_status(text)


def test_absent_network_status_is_an_empty_list() -> None:
    assert parse_network_status(None) == []
    assert parse_network_status("") == []
    assert encode_network_status([]) == "[]"


FOREIGN_ELEMENT = '{"name": "x", "interface": "net1", "example.com/flag":[1e3,  null], "cni-args":{"b":1,"a":null}}'
FOREIGN_STATUS = '{ "name":"x","interface":"net1", "lane": 1.50, "dns": null}'


def test_rewritten_annotations_keep_the_bytes_of_items_that_do_not_change() -> None:
    ours = '{"name":"ours","namespace":"default","ipam-claim-reference":"claim","interface":"pod1"}'
    text = f"[{ours}, {FOREIGN_ELEMENT}]"
    own, foreign = parse_networks(text)
    assert encode_networks([foreign, own], text) == f"[{FOREIGN_ELEMENT},{ours}]"
    added = NetworkSelectionElement("added")
    assert encode_networks([added, foreign], text) == f'[{{"name":"added"}},{FOREIGN_ELEMENT}]'
    (status,) = parse_network_status(f"[{FOREIGN_STATUS}]")
    changed = msgspec.structs.replace(status, mtu=1400)
    rewritten = encode_network_status([status, changed], f"[{FOREIGN_STATUS}]")
    assert rewritten == f"[{FOREIGN_STATUS},{encode_network_status([changed])[1:]}"


def test_null_counts_as_a_missing_field() -> None:
    (status,) = parse_network_status('[{"name": "x", "default": null, "dns": null, "ips": null}]')
    assert status == NetworkStatus("x")
    port = '{"hostPort": 1, "containerPort": 2, "hostIP": null}'
    (element,) = parse_networks(f'[{{"name": "x", "portMappings": [{port}]}}]')
    assert element.port_mappings is not None
    assert element.port_mappings[0].host_port == 1
