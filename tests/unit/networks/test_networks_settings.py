"""The settings of an element besides its network: their digest, and their way to plugins as ``runtimeConfig``."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.networks import Bandwidth, NetworkSelectionElement, PortMapping
from services.common.runtime.settings import load
from services.networks.__main__ import Settings
from services.networks.multus_client import AttachmentFailure
from services.networks.network_config import with_runtime_config
from services.networks.plan.attachments import element_digest

MACS = st.none() | st.sampled_from(["", "02:00:00:00:00:0a", "02-00-00-00-00-0A", "02:00:00:00:00:0b"])
IPS = st.none() | st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2/24"]), max_size=2)
ARGS = st.none() | st.dictionaries(st.sampled_from("abc"), st.integers() | st.lists(st.text(max_size=3)), max_size=3)


@given(MACS, IPS, ARGS, MACS, IPS, ARGS)
def test_digests_are_equal_only_for_equal_settings(
    mac: str | None, ips: Any, args: Any, other_mac: str | None, other_ips: Any, other_args: Any
) -> None:
    def plain(text: str | None) -> str:
        return (text or "").lower().replace("-", ":")

    same = plain(mac) == plain(other_mac) and (ips or []) == (other_ips or [])
    same = same and json.dumps(args or {}, sort_keys=True) == json.dumps(other_args or {}, sort_keys=True)
    one = NetworkSelectionElement("net", mac=mac, ips=ips, cni_args=args)
    other = NetworkSelectionElement("net", mac=other_mac, ips=other_ips, cni_args=other_args)
    assert (element_digest(one) == element_digest(other)) is same


def test_the_digest_of_earlier_versions_is_kept() -> None:
    """It is stored in the annotations of running pods."""
    element = NetworkSelectionElement("n", mac="02:00:00:00:00:0A", ips=["10.0.0.1/24"], cni_args={"b": 1, "a": [True]})
    settings = '["02:00:00:00:00:0a",["10.0.0.1/24"],{"a":[true],"b":1}]'
    assert element_digest(element) == hashlib.sha256(settings.encode()).hexdigest()[:16]


def test_configuration_without_settings_stays_byte_for_byte() -> None:
    config = b'{ "type":"x" ,"capabilities":{"bandwidth":true}}'
    assert with_runtime_config(config, NetworkSelectionElement("net", mac="02:00:00:00:00:01")) == (config, {})


@pytest.mark.parametrize(
    ("fields", "capability", "value"),
    [
        ({"bandwidth": Bandwidth(ingress_rate=5)}, "bandwidth", {"ingressRate": 5}),
        (
            {"port_mappings": [PortMapping(host_port=80, container_port=8080, protocol="tcp")]},
            "portMappings",
            [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}],
        ),
        ({"infiniband_guid": "c2:11:22:33:44:55:66:77"}, "infinibandGUID", "c2:11:22:33:44:55:66:77"),
        ({"device_id": "0000:03:02.0"}, "deviceID", "0000:03:02.0"),
    ],
)
def test_settings_go_to_the_plugins_that_declare_the_capability(
    fields: dict[str, Any], capability: str, value: Any
) -> None:
    element = NetworkSelectionElement("net", **fields)
    declares = {"type": "b", "capabilities": {capability: True}, "runtimeConfig": {"other": 1}}
    undeclared = {"type": "c", "capabilities": {capability: False}}
    config, ignored = with_runtime_config(
        json.dumps({"name": "n", "plugins": [{"type": "a"}, declares, undeclared]}).encode(), element
    )
    plugins = json.loads(config)["plugins"]
    assert plugins == [{"type": "a"}, declares | {"runtimeConfig": {"other": 1, capability: value}}, undeclared]
    assert ignored == {}
    alone, _ = with_runtime_config(json.dumps(declares).encode(), element)
    assert json.loads(alone)["runtimeConfig"] == {"other": 1, capability: value}
    _, ignored = with_runtime_config(b'{"type":"a"}', element)
    assert list(ignored.values()) == ["no plugin of the network declares the capability"]


def test_a_malformed_runtime_config_is_a_final_failure_of_this_attachment() -> None:
    config = b'{"type":"a","capabilities":{"deviceID":true},"runtimeConfig":[1]}'
    with pytest.raises(AttachmentFailure, match="runtimeConfig of plugin a is not an object") as caught:
        with_runtime_config(config, NetworkSelectionElement("net", device_id="d"))
    assert (caught.value.reason, caught.value.final) == ("InvalidNetwork", True)


@given(st.recursive(st.none() | st.booleans() | st.text(), st.lists), st.booleans())
def test_arbitrary_plugin_list_does_not_fail(plugin: Any, wrapped: bool) -> None:
    document = {"type": "x", "plugins": plugin if wrapped else [plugin]}
    _, ignored = with_runtime_config(json.dumps(document).encode(), NetworkSelectionElement("net", device_id="d"))
    assert list(ignored) == ["deviceID"]


def test_namespace_isolation_settings() -> None:
    assert load(Settings, {"HOTNIC_NODE_NAME": "n"}).namespace_isolation is False
    settings = load(
        Settings,
        {"HOTNIC_NODE_NAME": "n", "HOTNIC_NAMESPACE_ISOLATION": "true", "HOTNIC_GLOBAL_NAMESPACES": "default, shared"},
    )
    assert settings.isolation().global_namespaces == {"default", "shared"}
    assert settings.isolation().enabled
