"""CNI configurations: what is read, what a plugin gets on standard input, and when two are the same."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from services.multus.conflist import Attributes, fingerprint, parse, stdin
from services.multus.errors import CniError

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


def test_a_list_and_a_lone_plugin_are_read() -> None:
    network = parse(text())
    assert (network.name, network.version, network.types) == ("blue", "1.0.0", ["bridge", "tuning"])
    assert network.capabilities() == {"mac"}
    lone = parse('{"type":"macvlan","master":"eth0"}', name="nad-name", version="0.4.0")
    assert (lone.name, lone.version, lone.types) == ("nad-name", "0.4.0", ["macvlan"])


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ("{", cni.Code.DECODE_FAILURE),
        ("[]", cni.Code.DECODE_FAILURE),
        (b"\xff\xfe", cni.Code.DECODE_FAILURE),
        ('{"type":"bridge"}', cni.Code.INVALID_CONFIG),
        ('{"name":"a b","type":"bridge"}', cni.Code.INVALID_CONFIG),
        ('{"name":"a"}', cni.Code.INVALID_CONFIG),
        ('{"name":"a","plugins":[]}', cni.Code.INVALID_CONFIG),
        ('{"name":"a","plugins":[{"type":"../../bin/sh"}]}', cni.Code.INVALID_CONFIG),
        ('{"name":"a","plugins":["bridge"]}', cni.Code.INVALID_CONFIG),
        ('{"name":"a","type":"bridge","args":{"cni":[1]}}', cni.Code.INVALID_CONFIG),
        ('{"name":"a","type":"bridge","capabilities":["mac"]}', cni.Code.INVALID_CONFIG),
        ('{"name":"a","type":"bridge","cniVersion":"0.2.0"}', cni.Code.INCOMPATIBLE_VERSION),
        ('{"name":"a","type":"bridge","cniVersion":"9.9.9"}', cni.Code.INCOMPATIBLE_VERSION),
    ],
)
def test_what_is_no_configuration_is_refused(document: str | bytes, code: int) -> None:
    with pytest.raises(CniError) as caught:
        parse(document)
    assert caught.value.code == code


def test_the_newest_version_that_both_know_is_spoken() -> None:
    assert parse(text(cniVersions=["0.4.0", "1.1.0", "2.0.0"])).version == "1.1.0"
    assert parse(text(cniVersion="0.3.0")).version == "0.3.0"


def test_a_plugin_reads_its_own_object_and_only_declared_capabilities() -> None:
    network = parse(text())
    attributes = Attributes({"mac": "02:00:00:00:00:01", "ips": ["10.0.0.1/24"]}, {"a": 2, "b": 3})
    first = json.loads(stdin(network, 0, attributes))
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
    second = json.loads(stdin(network, 1, attributes, previous=result))
    assert second["args"] == {"cni": {"a": 2, "b": 3}}
    assert second["prevResult"] == {"cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": "/ns"}]}
    assert "runtimeConfig" not in second


def test_the_configuration_is_not_changed_by_what_a_plugin_reads() -> None:
    network = parse(text())
    stdin(network, 1, Attributes({}, {"a": 2}), previous=cni.CniResult())
    assert json.loads(json.dumps(network.plugins[1])) == LIST["plugins"][1]


def test_stale_runtime_keys_of_a_configuration_are_dropped() -> None:
    network = parse('{"name":"a","type":"b","runtimeConfig":{"mac":"x"},"prevResult":{"ips":[]}}')
    assert json.loads(stdin(network, 0, Attributes())) == {"cniVersion": "1.0.0", "name": "a", "type": "b"}


def test_a_declared_runtime_key_of_a_configuration_is_kept_below_what_is_asked() -> None:
    """The networks role puts there what ``interfaceAttributes`` has no field for."""
    network = parse(
        '{"name":"a","type":"b","capabilities":{"mac":true,"bandwidth":true},'
        '"runtimeConfig":{"bandwidth":{"ingressRate":1},"mac":"x","ips":["1.1.1.1"]}}'
    )
    read = json.loads(stdin(network, 0, Attributes({"mac": "02:00:00:00:00:01"})))
    assert read["runtimeConfig"] == {"bandwidth": {"ingressRate": 1}, "mac": "02:00:00:00:00:01"}
    bare = parse('{"name":"a","type":"b","capabilities":{"mac":true,"bandwidth":true}}')
    assert fingerprint(network, Attributes()) == fingerprint(bare, Attributes())


def test_the_same_attachment_has_the_same_fingerprint() -> None:
    plain = parse('{"cniVersion":"1.0.0","type":"bridge","bridge":"b"}', name="blue")
    filled = parse('{"bridge":"b",   "name":"blue","type":"bridge","cniVersion":"1.0.0"}')
    upper, lower = Attributes({"mac": "0A:00:00:00:00:01"}), Attributes({"mac": "0a:00:00:00:00:01"})
    assert fingerprint(plain, upper) == fingerprint(filled, lower)
    with_bandwidth = Attributes({"mac": "0a:00:00:00:00:01", "bandwidth": {"ingressRate": 1}})
    assert fingerprint(plain, with_bandwidth) == fingerprint(plain, lower)
    for other in (Attributes(), Attributes({"mac": "0a:00:00:00:00:02"}), Attributes({}, {"k": "v"})):
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
def test_any_document_is_read_or_refused_and_what_is_read_can_be_run(document: object) -> None:
    try:
        network = parse(json.dumps(document))
    except CniError:
        return
    attributes = Attributes({"mac": "02:00:00:00:00:01"}, {"k": "v"})
    for index in range(len(network.plugins)):
        read = json.loads(stdin(network, index, attributes, previous=cni.CniResult()))
        assert read["name"] == network.name
        assert read["args"]["cni"]["k"] == "v"
    assert fingerprint(network, attributes) == fingerprint(parse(network.text), attributes)


@given(st.binary(max_size=64))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(CniError):
        parse(data)
