"""CNI results of all versions, bodies of the multus socket, options of the subresources, resource paths."""

import base64
import json
from typing import Any

import msgspec
import pytest

from schemas.cni import (
    NEWEST_VERSION,
    SUPPORTED_VERSIONS,
    CniInterface,
    CniIp,
    CniResult,
    CniRoute,
    down_convert,
    up_convert,
)
from schemas.inputs import RejectedInput
from schemas.kubernetes import objects as kube
from schemas.kubernetes.options import AddInterfaceOptions
from schemas.multus import CniRequest, DelegateResponse, InterfaceAttributes, build_delegate_request

RESULT = CniResult(
    cni_version=NEWEST_VERSION,
    interfaces=[CniInterface("br0", mac="02:00:00:00:00:01", mtu=1500), CniInterface("net1", sandbox="/run/netns/a")],
    ips=[CniIp("10.0.0.5/24", gateway="10.0.0.1", interface=1), CniIp("fd00::5/64", interface=1)],
    routes=[CniRoute("0.0.0.0/0", gw="10.0.0.1", mtu=1400, priority=100)],
)


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_result_survives_conversion_to_an_older_version_and_back(version: str) -> None:
    document = down_convert(RESULT, version)
    assert document["cniVersion"] == version
    converted = up_convert(json.dumps(document).encode())
    assert converted.cni_version == NEWEST_VERSION
    assert converted.ips == RESULT.ips
    assert [link.name for link in converted.interfaces] == ["br0", "net1"]
    assert [route.dst for route in converted.routes] == ["0.0.0.0/0"]


def test_newest_version_preserves_all_fields() -> None:
    assert up_convert(json.dumps(down_convert(RESULT, NEWEST_VERSION)).encode()) == RESULT


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_old_versions_contain_the_address_family(version: str) -> None:
    assert [ip["version"] for ip in down_convert(RESULT, version)["ips"]] == ["4", "6"]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_older_versions_omit_fields_of_1_1_0(version: str) -> None:
    document = down_convert(RESULT, version)
    assert document["interfaces"][0] == {"name": "br0", "mac": "02:00:00:00:00:01"}
    assert document["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]


@pytest.mark.parametrize("version", ["", "0.0.9", "2.0.0"])
def test_unsupported_versions_are_rejected(version: str) -> None:
    with pytest.raises(ValueError, match="not supported"):
        down_convert(RESULT, version)


@pytest.mark.parametrize("raw", [b"", b"null", b"{}"])
def test_empty_output_is_an_empty_result(raw: bytes) -> None:
    assert up_convert(raw) == CniResult(cni_version=NEWEST_VERSION)


@pytest.mark.parametrize(
    ("field", "item", "limit"),
    [
        ("interfaces", {"name": "eth0", "sandbox": "/run/netns/x"}, 256),
        ("ips", {"address": "192.0.2.1/24", "interface": 0}, 1024),
        ("routes", {"dst": "0.0.0.0/0"}, 1024),
        ("dns", "192.0.2.1", 1024),
    ],
)
def test_a_result_has_no_more_of_anything_than_its_limit(field: str, item: Any, limit: int) -> None:
    """Links are compared with addresses, and these with routes."""
    for count in (limit, limit + 1, 60_000):
        items: Any = [item] * count
        raw = json.dumps({"cniVersion": "1.0.0", field: {"nameservers": items} if field == "dns" else items}).encode()
        if count == limit:
            up_convert(raw)
            continue
        with pytest.raises(RejectedInput, match=f"{count} .*; the limit is {limit}"):
            up_convert(raw)


@pytest.mark.parametrize(
    "document",
    [
        {"ips": [{"address": "fe80::1%;A=b/64"}]},
        {"ips": [{"address": "fd00::1/64", "gateway": "fe80::1%x"}]},
        {"routes": [{"dst": "fe80::%x/64"}]},
    ],
)
def test_addresses_with_a_zone_are_rejected(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has a zone"):
        up_convert(json.dumps(document).encode())


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"ips":[{}]}', b'{"interfaces":{}}'])
def test_malformed_results_are_rejected(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        up_convert(raw)


def test_delegate_request_has_five_variables() -> None:
    request = build_delegate_request(
        command="add",
        sandbox_id="s",
        netns="/run/netns/a",
        interface="net1",
        pod_namespace="ns",
        pod_name="pod",
        pod_uid="u",
        config=b'{"type":"bridge"}',
        attributes=InterfaceAttributes(mac="02:00:00:00:00:01"),
    )
    body = json.loads(msgspec.json.encode(request))
    assert body == {
        "env": {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "s",
            "CNI_NETNS": "/run/netns/a",
            "CNI_IFNAME": "net1",
            "CNI_ARGS": "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_UID=u",
        },
        "config": base64.b64encode(b'{"type":"bridge"}').decode(),
        "interfaceAttributes": {"cni-args": None, "mac": "02:00:00:00:00:01"},
    }
    assert msgspec.json.decode(msgspec.json.encode(request), type=CniRequest) == request
    assert request.config_bytes() == b'{"type":"bridge"}'


def test_request_without_attributes_omits_them() -> None:
    assert json.loads(msgspec.json.encode(CniRequest(env={"A": "b"}))) == {"env": {"A": "b"}}
    assert CniRequest().config_bytes() == b""


def test_configuration_that_is_not_base64_is_rejected() -> None:
    with pytest.raises(ValueError, match=r".+"):
        CniRequest(config="{}").config_bytes()


def test_delegate_response_capitalises_result() -> None:
    assert json.loads(msgspec.json.encode(DelegateResponse(result=CniResult(cni_version="1.1.0")))) == {
        "Result": {"cniVersion": "1.1.0"}
    }
    assert msgspec.json.encode(DelegateResponse()) == b"{}"


def test_options_ignore_unknown_fields() -> None:
    text = b'{"networkAttachmentDefinitionName":"ns/br","name":"iface1","dryRun":["All"]}'
    assert msgspec.json.decode(text, type=AddInterfaceOptions) == AddInterfaceOptions("ns/br", "iface1")


def test_resource_paths() -> None:
    assert kube.PODS.path() == "/api/v1/pods"
    assert kube.PODS.path("ns", "p", "status") == "/api/v1/namespaces/ns/pods/p/status"
    assert kube.VMIS.path("ns") == "/apis/kubevirt.io/v1/namespaces/ns/virtualmachineinstances"
    assert kube.PODS.path("..", "a/b?c\0", "status") == "/api/v1/namespaces/../pods/a%2Fb%3Fc%00/status"
    assert kube.NADS.api_version == "k8s.cni.cncf.io/v1"
    assert kube.PODS.api_version == "v1"


def test_items_of_a_spec_preserve_unknown_fields() -> None:
    raw = {"spec": {"domain": {"devices": {"interfaces": [{"name": "a", "bridge": {}, "unknown": 1}]}}}}
    vmi = msgspec.convert(raw, kube.VirtualMachineInstance)
    assert vmi.spec.domain.devices.interfaces == [{"name": "a", "bridge": {}, "unknown": 1}]
    (item,) = vmi.spec.interface_items()
    assert (item.name, item.bridge, item.state) == ("a", {}, "")
    assert vmi.spec.network_items() == []
