"""VMs and VMIs are decoded within limits; one that is malformed or too large is rejected, and keeps what is right."""

import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.inputs import RejectedInput, count_values
from schemas.kubernetes.decoding import ObjectDecoder, rejection_of
from schemas.kubernetes.limits import MAX_INTERFACES, MAX_PART_VALUES, MAX_STATUS_INTERFACES
from schemas.kubernetes.objects import VirtualMachine, VirtualMachineInstance
from tests.support.observed import objects

VM_DECODER, VMI_DECODER = ObjectDecoder(VirtualMachine), ObjectDecoder(VirtualMachineInstance)
META = {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": "7"}


def vm(devices: dict[str, Any] | None = None, **spec: Any) -> bytes:
    """Return a halted VM with these fields of its template's spec."""
    inner = {"domain": {"devices": devices or {}}, **spec}
    return msgspec.json.encode({"metadata": META, "spec": {"running": False, "template": {"spec": inner}}})


def vmi(status: dict[str, Any], **metadata: Any) -> bytes:
    """Return a VMI with these fields."""
    return msgspec.json.encode({"metadata": META | metadata, "spec": {"hostname": "h"}, "status": status})


MANY: list[Any] = [{}] * 300_000
HOSTILE_VMS = {
    "interface": vm({"interfaces": [{"name": "a", "z": MANY}]}),
    "interfaces": vm({"interfaces": MANY}),
    "networks": vm(networks=[{"name": "a", "z": MANY}]),
    "keys": vm({"interfaces": [dict.fromkeys(map(str, range(100_000)))]}),
    "text": vm({"interfaces": [{"name": "x" * 1_300_000}]}),
    "labels": msgspec.json.encode({"metadata": META | {"labels": {f"l{n}": "" for n in range(100_000)}}}),
    "queue": msgspec.json.encode({"metadata": META, "status": {"interfaceRequests": [{"z": MANY}]}}),
}


@pytest.mark.parametrize("text", HOSTILE_VMS.values(), ids=HOSTILE_VMS)
def test_a_cached_object_costs_no_more_than_what_is_used_of_it(text: bytes) -> None:
    VM_DECODER.decode(text)
    before = sys.getallocatedblocks()
    found = VM_DECODER.decode(text)
    assert sys.getallocatedblocks() - before < 500
    assert found.metadata.resource_version == "7"
    assert "limit" in rejection_of(found)
    with pytest.raises(ValueError, match="limit"):
        found.spec.template.spec.interface_items()
    with pytest.raises(ValueError, match="limit"):
        found.spec.template.spec.network_items()


def test_what_is_not_read_costs_nothing_and_rejects_nothing() -> None:
    text = vm({"interfaces": [{"name": "a"}], "disks": MANY}, volumes=MANY, domain2=MANY)
    VM_DECODER.decode(text)
    before = sys.getallocatedblocks()
    found = VM_DECODER.decode(text)
    assert sys.getallocatedblocks() - before < 500
    assert [item.name for item in found.spec.template.spec.interface_items()] == ["a"]


@pytest.mark.parametrize(
    ("status", "where"),
    [
        ({"runtimeUser": "x"}, "status.runtimeUser"),
        ({"interfaces": {"a": 1}}, "status.interfaces"),
        ({"interfaces": [{"z": [{}] * 10_000}]}, "status.interfaces"),
        ({"conditions": [{"type": 1}]}, "status.conditions"),
        ({"activePods": {"u": 1}}, "status.activePods"),
    ],
)
def test_a_rejected_vmi_keeps_what_is_right(status: dict[str, Any], where: str) -> None:
    found = VMI_DECODER.decode(vmi({"phase": "Running", "nodeName": "n1", **status}))
    assert rejection_of(found).startswith(f"{where}: ")
    assert (found.status.phase, found.status.node_name, found.metadata.uid) == ("Running", "n1", "u")
    with pytest.raises(ValueError, match=where):
        found.spec.interface_items()


@pytest.mark.parametrize("text", ["[]", "{", '{"metadata":7}', "null", '{"metadata":{"name":"a"},"x":' + "[" * 5000])
def test_what_is_no_object_is_refused_or_rejected(text: str) -> None:
    try:
        assert rejection_of(VMI_DECODER.decode(text))
    except RejectedInput:
        return


def test_a_deeply_nested_object_is_rejected_and_keeps_its_metadata() -> None:
    for levels in (100, 5000):
        text = vm({"interfaces": [{"name": "a", "z": 1}]}).replace(b'"z":1', b'"z":' + b"[" * levels + b"]" * levels)
        found = VM_DECODER.decode(text)
        assert (found.metadata.name, found.metadata.uid) == ("a", "u")
        assert "nested" in rejection_of(found)


def test_as_many_interfaces_as_are_allowed_pass() -> None:
    interface = {"bridge": {}, "macAddress": "02:00:00:00:00:01", "model": "virtio", "bootOrder": 3, "state": "up"}
    names = [f"interface-{n}" for n in range(MAX_INTERFACES)]
    text = vm(
        {"interfaces": [{"name": name, **interface} for name in names]},
        networks=[{"name": name, "multus": {"networkName": f"namespace/{name}"}} for name in names],
    )
    spec = VM_DECODER.decode(text).spec.template.spec
    assert (len(spec.interface_items()), len(spec.network_items())) == (MAX_INTERFACES, MAX_INTERFACES)
    entry = {"infoSource": "guest-agent", "interfaceName": "veth", "ipAddress": "fe80::1", "ipAddresses": ["fe80::1"]}
    entries = [{"name": f"i{n}", "mac": "02:00:00:00:00:01", **entry} for n in range(MAX_STATUS_INTERFACES)]
    found = VMI_DECODER.decode(vmi({"interfaces": entries}))
    assert rejection_of(found) == ""
    assert found.status.interfaces == entries


def test_values_in_an_annotation_do_not_count() -> None:
    found = VMI_DECODER.decode(vmi({}, annotations={"a": '[{"x":[1,2]},' * 5000}))
    assert rejection_of(found) == ""


def test_field_by_field_an_object_is_the_same() -> None:
    text = msgspec.json.encode(objects.vmi(objects.nic("blue"), objects.nic("red")))
    # What is not read makes the object large, so that it is not decoded at once.
    large = text[:-1] + b',"x":[' + b"0," * MAX_PART_VALUES + b"0]}"
    assert VMI_DECODER.decode(large) == VMI_DECODER.decode(text)


@given(st.recursive(st.text('\\",[{', max_size=4), lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_values_are_counted(value: Any) -> None:
    assert count_values(msgspec.json.encode(value)) in range(_values(value) - 1, 2 * _values(value) + 1)


def _values(value: Any) -> int:
    return 1 + sum(map(_values, value)) if isinstance(value, list) else 1
