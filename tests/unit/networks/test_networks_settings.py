"""What an element asks beside its network: compared, and handed to plugins as ``runtimeConfig``."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.multus import InterfaceAttributes
from schemas.networks import Bandwidth, NetworkSelectionElement, PortMapping
from services.common.settings import load
from services.networks.__main__ import Settings
from services.networks.attachment_settings import digest, of_element, of_record, with_runtime

MACS = st.none() | st.sampled_from(["", "02:00:00:00:00:0a", "02:00:00:00:00:0A", "02:00:00:00:00:0b"])
IPS = st.none() | st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2/24"]), max_size=2)
ARGS = st.none() | st.dictionaries(st.sampled_from("abc"), st.integers() | st.lists(st.text(max_size=3)), max_size=3)


@given(MACS, IPS, ARGS)
def test_an_element_and_the_record_of_its_add_agree(mac: str | None, ips: list[str] | None, args: Any) -> None:
    element = NetworkSelectionElement("net", mac=mac, ips=ips, cni_args=args)
    sent = InterfaceAttributes(cni_args=args or None, ips=ips or msgspec.UNSET, mac=mac or msgspec.UNSET)
    assert of_record(msgspec.json.decode(msgspec.json.encode(sent), type=InterfaceAttributes)) == of_element(element)


@given(MACS, IPS, ARGS, MACS, IPS, ARGS)
def test_two_wishes_are_equal_only_when_they_ask_the_same(
    mac: str | None, ips: Any, args: Any, other_mac: str | None, other_ips: Any, other_args: Any
) -> None:
    same = (mac or "").lower() == (other_mac or "").lower() and (ips or []) == (other_ips or [])
    same = same and json.dumps(args or {}, sort_keys=True) == json.dumps(other_args or {}, sort_keys=True)
    assert (digest(mac, ips, args) == digest(other_mac, other_ips, other_args)) is same


def test_a_configuration_that_nothing_is_asked_of_stays_byte_for_byte() -> None:
    config = b'{ "type":"x" ,"capabilities":{"bandwidth":true}}'
    assert with_runtime(config, NetworkSelectionElement("net", mac="02:00:00:00:00:01")) == (config, {})


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
def test_every_further_field_goes_to_the_plugins_that_declare_it(
    fields: dict[str, Any], capability: str, value: Any
) -> None:
    element = NetworkSelectionElement("net", **fields)
    declares = {"type": "b", "capabilities": {capability: True}, "runtimeConfig": {"kept": 1}}
    refuses = {"type": "c", "capabilities": {capability: False}}
    config, unheard = with_runtime(
        json.dumps({"name": "n", "plugins": [{"type": "a"}, declares, refuses]}).encode(), element
    )
    plugins = json.loads(config)["plugins"]
    assert plugins == [{"type": "a"}, declares | {"runtimeConfig": {"kept": 1, capability: value}}, refuses]
    assert unheard == {}
    alone, _ = with_runtime(json.dumps(declares).encode(), element)
    assert json.loads(alone)["runtimeConfig"] == {"kept": 1, capability: value}
    _, unheard = with_runtime(b'{"type":"a"}', element)
    assert list(unheard.values()) == ["no plugin of the network declares the capability"]


@given(st.recursive(st.none() | st.booleans() | st.text(), st.lists), st.booleans())
def test_any_plugin_list_is_followed_as_far_as_it_goes(plugin: Any, wrapped: bool) -> None:
    document = {"type": "x", "plugins": plugin if wrapped else [plugin]}
    _, unheard = with_runtime(json.dumps(document).encode(), NetworkSelectionElement("net", device_id="d"))
    assert list(unheard) == ["deviceID"]


def test_isolation_is_a_setting() -> None:
    assert load(Settings, {"HOTNIC_NODE_NAME": "n"}).namespace_isolation is False
    settings = load(
        Settings,
        {"HOTNIC_NODE_NAME": "n", "HOTNIC_NAMESPACE_ISOLATION": "true", "HOTNIC_GLOBAL_NAMESPACES": "default, shared"},
    )
    assert settings.isolation().shared == {"default", "shared"}
    assert settings.isolation().on
