"""Decoding of requests: any bytes result in a call or in an error that names the reason."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from schemas.kubernetes.networks import Bandwidth, NetworkSelectionElement
from schemas.multus import InterfaceAttributes, build_delegate_request
from services.multus.cni.call import MalformedError, PodId, attributes_of, decode, plugin_args
from services.multus.cni.conflist import AttachmentAttributes
from services.multus.cni.errors import CniError

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "abc",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "net1",
    "CNI_ARGS": "K8S_POD_NAMESPACE=ns; K8S_POD_NAME=pod ;K8S_POD_UID=uid;IgnoreUnknown=1;",
}


def body(config: bytes = b"{}", attributes: Any = None, **changes: str | None) -> bytes:
    env = {key: value for key, value in {**ENV, **changes}.items() if value is not None}
    document = {"env": env, "config": base64.b64encode(config).decode(), "interfaceAttributes": attributes}
    return json.dumps(document).encode()


def test_decode_reads_a_request_of_the_networks_controller() -> None:
    request = build_delegate_request(
        command="add",
        sandbox_id="abc",
        netns="/run/netns/x",
        interface="pod7e0055a6880",
        pod_namespace="ns",
        pod_name="pod",
        pod_uid="uid",
        config=b'{"name":"blue"}',
        attributes=InterfaceAttributes(ips=["10.1.1.11/24"], mac="02:00:00:00:00:01"),
    )
    call = decode(msgspec.json.encode(request))
    assert (call.command, call.sandbox_id, call.ifname) == (cni.CniCommand.ADD, "abc", "pod7e0055a6880")
    assert (call.pod, call.config) == (PodId("ns", "pod", "uid"), b'{"name":"blue"}')
    assert call.attributes == AttachmentAttributes({"mac": "02:00:00:00:00:01", "ips": ["10.1.1.11/24"]})


def test_decode_reads_a_request_of_the_shim() -> None:
    call = decode(body(PATH="/bin", CNI_PATH="/opt/cni/bin"))
    assert call.pod == PodId("ns", "pod", "uid")
    assert call.attributes == AttachmentAttributes()
    assert decode(body(CNI_IFNAME=None)).ifname == "eth0"
    assert decode(body(CNI_COMMAND="DEL", CNI_NETNS="")).netns == ""
    assert decode(b'{"env":{"CNI_COMMAND":"STATUS"}}').command is cni.CniCommand.STATUS


def test_null_is_a_request_without_fields() -> None:
    with pytest.raises(CniError, match="missing CNI_COMMAND"):
        decode(b"null")


def test_a_hot_plug_names_its_network() -> None:
    def named(network: Any) -> tuple[str, str] | None:
        return decode(json.dumps({**json.loads(body()), "network": network}).encode()).network

    assert [named("ns/blue.x"), named(None)] == [("ns", "blue.x"), None]
    for network in ("blue", "ns/blue@net1", "../x", "a/b,c/d", "", "[]"):
        with pytest.raises(CniError, match=r"^network "):
            named(network)


def test_null_attributes_are_empty() -> None:
    call = decode(body(attributes={"cni-args": None, "ips": None}))
    assert call.attributes == AttachmentAttributes()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"CNI_COMMAND": None}, "missing CNI_COMMAND"),
        ({"CNI_COMMAND": "add"}, "unknown cmd type: add"),
        ({"CNI_COMMAND": "VERSION"}, "unknown cmd type: VERSION"),
        ({"CNI_CONTAINERID": None}, "missing CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "../../etc"}, "is not a container id"),
        ({"CNI_CONTAINERID": ""}, "is not a container id"),
        ({"CNI_NETNS": ""}, "CNI_NETNS is empty"),
        ({"CNI_NETNS": None}, "missing CNI_NETNS"),
        ({"CNI_IFNAME": ""}, "is not a link name"),
        ({"CNI_IFNAME": "a/b"}, "is not a link name"),
        ({"CNI_IFNAME": "a\0b"}, "is not a link name"),
        ({"CNI_IFNAME": "net%d"}, "is not a link name"),
        ({"CNI_IFNAME": "nät"}, "is not a link name"),
        ({"CNI_NETNS": "/run/netns/a\0b"}, "is not the path of a namespace"),
        ({"CNI_ARGS": None}, "missing CNI_ARGS"),
        ({"CNI_ARGS": "K8S_POD_NAME=x"}, "missing K8S_POD_NAMESPACE"),
        ({"CNI_ARGS": "K8S_POD_NAME"}, "invalid CNI_ARG"),
        ({"CNI_ARGS": "A=b=c"}, "invalid CNI_ARG"),
    ],
)
def test_a_missing_or_invalid_variable_is_named(changes: dict[str, str | None], part: str) -> None:
    with pytest.raises(CniError) as caught:
        decode(body(**changes))
    assert caught.value.code == cni.CniErrorCode.INVALID_ENVIRONMENT
    assert part in caught.value.msg


ZONE = {"ips": ["fe80::1%;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=x"]}


@pytest.mark.parametrize("attributes", [{"mac": "x;IP=1.2.3.4"}, {"mac": "02:00"}, {"ips": ["10.0.0.1,K=v"]}, ZONE])
def test_attributes_cannot_add_cni_args(attributes: dict[str, Any]) -> None:
    with pytest.raises(CniError) as caught:
        decode(body(attributes=attributes))
    assert caught.value.code == cni.CniErrorCode.INVALID_CONFIG


@pytest.mark.parametrize(
    ("pod", "attributes"),
    [
        (PodId("ns", "pod", "uid;MAC=02:00:00:00:00:01"), AttachmentAttributes()),
        (PodId("ns", "a=b"), AttachmentAttributes()),
        (PodId("ns", "pod\0"), AttachmentAttributes()),
        (None, AttachmentAttributes(ZONE)),
    ],
)
def test_a_value_that_would_add_cni_args_is_refused_where_they_are_built(
    pod: PodId | None, attributes: AttachmentAttributes
) -> None:
    with pytest.raises(CniError, match="cannot be a value in CNI_ARGS"):
        plugin_args(pod, "abc", attributes)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"env":[]}', b'{"env":{},"config":"*"}', b"\xff"])
def test_decode_refuses_what_is_not_a_request(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(data)


documents = st.fixed_dictionaries(
    {},
    optional={
        "env": st.dictionaries(st.sampled_from([*ENV, "X"]), st.text(max_size=20) | st.integers(), max_size=6)
        | st.just(ENV),
        "config": st.text(max_size=12) | st.none() | st.integers(),
        "interfaceAttributes": st.none()
        | st.dictionaries(st.sampled_from(["mac", "ips", "cni-args"]), st.none() | st.text() | st.lists(st.text())),
    },
)


@given(documents.map(lambda document: json.dumps(document).encode()) | st.binary(max_size=80))
def test_any_bytes_result_in_a_call_or_an_error(data: bytes) -> None:
    try:
        call = decode(data)
    except (MalformedError, CniError):
        return
    assert call.command in cni.CniCommand


def test_an_element_becomes_runtime_config_and_cni_args() -> None:
    element = NetworkSelectionElement(
        name="blue",
        mac="02:00:00:00:00:01",
        ips=["10.0.0.4/24"],
        bandwidth=Bandwidth(ingress_rate=5),
        cni_args={"a": 1},
    )
    attributes = attributes_of(element)
    assert attributes.runtime == {
        "mac": "02:00:00:00:00:01",
        "ips": ["10.0.0.4/24"],
        "bandwidth": {"ingressRate": 5},
    }
    assert plugin_args(PodId("ns", "pod", "uid"), "abc", attributes) == (
        "IgnoreUnknown=true;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=uid;"
        "MAC=02:00:00:00:00:01;IP=10.0.0.4/24"
    )


@pytest.mark.parametrize(
    "mac",
    [
        "02:00:00:00:00:01",
        "02-00-00-00-00-AB",
        "0200.0000.00ab",
        "02:00:00:00:00:01:02:03",
        "0200.0000.00ab.0102",
        ":".join(["ab"] * 20),
        ".".join(["abcd"] * 10),
    ],
)
def test_every_hardware_address_of_multus_is_accepted(mac: str) -> None:
    assert attributes_of(NetworkSelectionElement("n", mac=mac)).mac == mac
    assert attributes_of(NetworkSelectionElement("n", infiniband_guid=mac)).runtime == {"infinibandGUID": mac}


@pytest.mark.parametrize("mac", ["02:00:00:00:00", "02:00-00:00:00:01", "02:00:00:00:00:01:02", "0200.0000", "x" * 17])
def test_an_invalid_hardware_address_is_refused(mac: str) -> None:
    with pytest.raises(CniError, match=r"mac .* is not a MAC address"):
        attributes_of(NetworkSelectionElement("n", mac=mac))
    with pytest.raises(CniError, match=r"infiniband-guid .* is not a MAC address"):
        attributes_of(NetworkSelectionElement("n", infiniband_guid=mac))
