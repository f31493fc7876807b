"""CNI configurations: parsing, a plugin's standard input, and the fingerprint of an attachment."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from schemas.inputs import Edge
from services.multus.cni.conflist import AttachmentAttributes, fingerprint, parse, parse_recorded, plugin_stdin
from services.multus.cni.errors import CniError

LIST: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "blue",
    "plugins": [
        {"type": "bridge", "capabilities": {"mac": True, "ips": False}, "custom": {"kept": [1, None]}},
        {"type": "tuning", "args": {"cni": {"a": 1}}},
    ],
}


def text(**changes: Any) -> str:
    return json.dumps({**LIST, **changes})


def test_parse_reads_a_list_and_a_single_plugin() -> None:
    network = parse(text())
    assert (network.name, network.version, network.types) == ("blue", "1.0.0", ["bridge", "tuning"])
    assert network.capabilities() == {"mac"}
    single = parse('{"type":"macvlan","master":"eth0"}', name="nad-name", version="0.4.0")
    assert (single.name, single.version, single.types) == ("nad-name", "0.4.0", ["macvlan"])


def test_a_malformed_list_of_versions_counts_as_absent() -> None:
    assert parse('{"name":"a","type":"bridge","cniVersion":"0.4.0","cniVersions":5}').version == "0.4.0"


def test_the_configuration_of_a_record_may_be_deeper_than_a_new_one() -> None:
    """Otherwise its DEL would fail, and what ADD has acquired would stay."""
    text = '{"name":"a","type":"bridge","x":' + "[" * 100 + "]" * 100 + "}"
    with pytest.raises(CniError, match="not a JSON object: nested more than 64 levels"):
        parse(text)
    assert parse_recorded(text).types == ["bridge"]


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ("{", cni.CniErrorCode.DECODE_FAILURE),
        ("[]", cni.CniErrorCode.DECODE_FAILURE),
        (b"\xff\xfe", cni.CniErrorCode.DECODE_FAILURE),
        ('{"type":"bridge"}', cni.CniErrorCode.INVALID_CONFIG),
        ('{"name":"a b","type":"bridge"}', cni.CniErrorCode.INVALID_CONFIG),
        ('{"name":"a"}', cni.CniErrorCode.INVALID_CONFIG),
        ('{"name":"a","plugins":[]}', cni.CniErrorCode.INVALID_CONFIG),
        ('{"name":"a","plugins":[{"type":"../../bin/sh"}]}', cni.CniErrorCode.INVALID_CONFIG),
        ('{"name":"a","plugins":["bridge"]}', cni.CniErrorCode.INVALID_CONFIG),
        ('{"name":"a","type":"bridge","args":{"cni":[1]}}', cni.CniErrorCode.INVALID_CONFIG),
        ('{"name":"a","type":"bridge","capabilities":["mac"]}', cni.CniErrorCode.INVALID_CONFIG),
        ('{"name":"a","type":"bridge","cniVersion":"0.0.9"}', cni.CniErrorCode.INCOMPATIBLE_VERSION),
        ('{"name":"a","type":"bridge","cniVersion":"9.9.9"}', cni.CniErrorCode.INCOMPATIBLE_VERSION),
    ],
)
def test_parse_refuses_what_is_not_a_configuration(document: str | bytes, code: int) -> None:
    with pytest.raises(CniError) as caught:
        parse(document)
    assert caught.value.code == code


def test_the_newest_common_version_is_used() -> None:
    assert parse(text(cniVersions=["0.4.0", "1.1.0", "2.0.0"])).version == "1.1.0"
    assert parse(text(cniVersion="0.3.0")).version == "0.3.0"


def test_plugin_stdin_has_the_plugins_object_and_declared_capabilities_only() -> None:
    network = parse(text())
    attributes = AttachmentAttributes({"mac": "02:00:00:00:00:01", "ips": ["10.0.0.1/24"]}, {"a": 2, "b": 3})
    first = json.loads(plugin_stdin(network, 0, attributes))
    assert first == {
        "cniVersion": "1.0.0",
        "name": "blue",
        "type": "bridge",
        "capabilities": {"mac": True, "ips": False},
        "custom": {"kept": [1, None]},
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "args": {"cni": {"a": 2, "b": 3}},
    }
    result = cni.CniResult(cni_version="1.1.0", interfaces=[cni.CniInterface("net1", mtu=1400, sandbox="/ns")])
    second = json.loads(plugin_stdin(network, 1, attributes, previous=result))
    assert second["args"] == {"cni": {"a": 2, "b": 3}}
    assert second["prevResult"] == {"cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": "/ns"}]}
    assert "runtimeConfig" not in second


def test_plugin_stdin_does_not_change_the_configuration() -> None:
    network = parse(text())
    plugin_stdin(network, 1, AttachmentAttributes({}, {"a": 2}), previous=cni.CniResult())
    assert json.loads(json.dumps(network.plugins[1])) == LIST["plugins"][1]


def test_plugin_stdin_drops_stale_runtime_keys() -> None:
    network = parse('{"name":"a","type":"b","runtimeConfig":{"mac":"x"},"prevResult":{"ips":[]}}')
    assert json.loads(plugin_stdin(network, 0, AttachmentAttributes())) == {
        "cniVersion": "1.0.0",
        "name": "a",
        "type": "b",
    }


def test_attributes_override_declared_runtime_keys_of_the_configuration() -> None:
    """The networks role passes in ``runtimeConfig`` what ``interfaceAttributes`` has no field for."""
    network = parse(
        '{"name":"a","type":"b","capabilities":{"mac":true,"bandwidth":true},'
        '"runtimeConfig":{"bandwidth":{"ingressRate":1},"mac":"x","ips":["1.1.1.1"]}}'
    )
    read = json.loads(plugin_stdin(network, 0, AttachmentAttributes({"mac": "02:00:00:00:00:01"})))
    assert read["runtimeConfig"] == {"bandwidth": {"ingressRate": 1}, "mac": "02:00:00:00:00:01"}
    bare = parse('{"name":"a","type":"b","capabilities":{"mac":true,"bandwidth":true}}')
    assert fingerprint(network, AttachmentAttributes()) == fingerprint(bare, AttachmentAttributes())


def test_equal_attachments_have_equal_fingerprints() -> None:
    plain = parse('{"cniVersion":"1.0.0","type":"bridge","bridge":"b"}', name="blue")
    filled = parse('{"bridge":"b",   "name":"blue","type":"bridge","cniVersion":"1.0.0"}')
    upper, lower = (
        AttachmentAttributes({"mac": "0A:00:00:00:00:01"}),
        AttachmentAttributes({"mac": "0a:00:00:00:00:01"}),
    )
    assert fingerprint(plain, upper) == fingerprint(filled, lower)
    with_bandwidth = AttachmentAttributes({"mac": "0a:00:00:00:00:01", "bandwidth": {"ingressRate": 1}})
    assert fingerprint(plain, with_bandwidth) == fingerprint(plain, lower)
    for other in (
        AttachmentAttributes(),
        AttachmentAttributes({"mac": "0a:00:00:00:00:02"}),
        AttachmentAttributes({}, {"k": "v"}),
    ):
        assert fingerprint(plain, other) != fingerprint(plain, lower)
    assert fingerprint(parse(plain.text, name="red"), lower) != fingerprint(plain, lower)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["name", "type", "plugins", "cniVersion", "cniVersions", "args", "capabilities", "runtimeConfig", "ipam", "x"]
)


@given(st.dictionaries(keys, json_values) | json_values)
def test_any_document_is_refused_or_can_be_run(document: object) -> None:
    try:
        network = parse(json.dumps(document))
    except CniError:
        return
    attributes = AttachmentAttributes({"mac": "02:00:00:00:00:01"}, {"k": "v"})
    for index in range(len(network.plugins)):
        read = json.loads(plugin_stdin(network, index, attributes, previous=cni.CniResult()))
        assert read["name"] == network.name
        assert read["args"]["cni"]["k"] == "v"
    assert fingerprint(network, attributes) == fingerprint(parse(network.text), attributes)


@given(st.binary(max_size=64))
def test_parse_refuses_random_bytes(data: bytes) -> None:
    with pytest.raises(CniError):
        parse(data)


@pytest.mark.parametrize("edge", [Edge.NETWORK, Edge.MULTUS])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "a", "type": "bridge", "x": "x" * 200_000}, "bytes; the limit is"),
        ({"name": "a", "plugins": [{"type": "tuning"}] * 33}, "33 plugins; the limit is 32"),
    ],
)
def test_what_a_network_may_cost_is_bounded_but_for_what_is_recorded(
    config: dict[str, Any], message: str, edge: Edge
) -> None:
    text = json.dumps(config)
    with pytest.raises(CniError, match=message):
        parse(text, edge=edge)
    assert parse_recorded(text).name == parse(text, edge=Edge.FILE).name == "a"
