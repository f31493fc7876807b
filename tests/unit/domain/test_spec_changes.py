"""Guarded patches of both lists, eligibility of interfaces, and hash collisions."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.apiserver.rest.patch import PatchFailed, apply_json_patch
from schemas.kubernetes.objects import Interface, Network
from schemas.kubernetes.operations import (
    Operation,
    encode_annotation,
    operation_key,
    read_operation,
    read_operation_at,
    stale_operation_keys,
)
from schemas.names import interface_hash
from schemas.stages import OperationKind
from services.common.domain.eligibility import (
    find_change_obstacle,
    find_hash_collision,
    find_plug_obstacle,
)
from services.common.domain.nic import parse_nics
from services.common.domain.spec_patch import build_patch, operation_annotations, template_spec_holder, vmi_spec_holder
from services.common.domain.template import is_active, owns
from tests.support.observed import objects

PLUG = Operation("plug", OperationKind.PLUG, "iface1")


def test_patch_applies_only_to_the_observed_state() -> None:
    vm = objects.vm(objects.nic("a"), annotations={"some": "thing"})
    holder = template_spec_holder(vm)
    ops = build_patch(holder, holder.lists.with_absent(["a"]), operation_annotations([PLUG], vm.metadata.uid))
    document = msgspec.to_builtins(vm)
    patched = apply_json_patch(document, ops)
    assert patched["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][1]["state"] == "absent"
    assert read_operation(patched["metadata"]["annotations"], "iface1") == PLUG
    for changed in (
        objects.vm(objects.nic("a"), objects.nic("b"), annotations={"some": "thing"}),
        objects.vm(objects.nic("a"), annotations={"some": "thing"} | {operation_key("iface1"): "another"}),
    ):
        with pytest.raises(PatchFailed):
            apply_json_patch(msgspec.to_builtins(changed), ops)


def test_unchanged_lists_are_not_written() -> None:
    holder = vmi_spec_holder(objects.vmi(objects.nic("a"), annotations={operation_key("a"): "x"}))
    ops = build_patch(holder, holder.lists, {operation_key("a"): None})
    assert [op["op"] for op in ops] == ["test", "test", "test", "remove"]


@given(st.lists(st.sampled_from(["a", "b", "c"]), unique=True))
def test_without_interfaces_removes_interface_and_network(names: list[str]) -> None:
    lists = vmi_spec_holder(objects.vmi(*(objects.nic(name) for name in ("a", "b", "c")))).lists.without_interfaces(
        names
    )
    left = ["default", *(name for name in ("a", "b", "c") if name not in names)]
    assert [item["name"] for item in lists.networks or ()] == left
    assert [item["name"] for item in lists.interfaces or ()] == left


def network(**source: object) -> Network:
    return msgspec.convert({"name": "iface1", **source}, Network)


NAD = network(multus={"networkName": "net1"})


@pytest.mark.parametrize(
    ("interface", "network", "fixed", "not_pluggable"),
    [
        (Interface("iface1", bridge={}), NAD, None, None),
        (Interface("iface1", bridge={}, model="virtio"), NAD, None, None),
        (Interface("iface1", bridge={}, model="e1000"), NAD, None, "virtio"),
        (Interface("a b", bridge={}), NAD, None, "malformed"),
        (Interface("iface1", bridge={}), None, "no network", "no network"),
        (Interface("iface1", bridge={}), network(pod={}), "primary", "primary"),
        (Interface("iface1", bridge={}), network(multus={"networkName": "n", "default": True}), "primary", "primary"),
        (Interface("iface1", sriov={}), NAD, "bridge", "bridge"),
        (Interface("iface1", masquerade={}), NAD, "bridge", "bridge"),
    ],
)
def test_only_bridge_interfaces_on_secondary_networks_can_change(
    interface: Interface, network: Network | None, fixed: str | None, not_pluggable: str | None
) -> None:
    for reason, expected in (
        (find_change_obstacle(interface, network), fixed),
        (find_plug_obstacle(interface, network), not_pluggable),
    ):
        assert (reason is None) == (expected is None)
        assert expected is None or expected in str(reason)


def test_first_of_two_interfaces_with_a_hash_collision_is_used() -> None:
    first, second = objects.COLLIDING
    assert interface_hash(first) == interface_hash(second)
    vmi = objects.vmi(objects.nic(first), objects.nic(second))
    assert list(parse_nics(vmi, None).nics) == [first]
    assert find_hash_collision(vmi.spec, second) == first
    assert find_hash_collision(vmi.spec, "other") is None


def test_operations_are_read_by_key_and_stale_keys_are_found() -> None:
    annotations = {
        operation_key("iface1"): encode_annotation(PLUG),
        operation_key("b"): encode_annotation(PLUG),
        "some": "thing",
    }
    assert read_operation_at(annotations, operation_key("iface1")) == PLUG
    assert read_operation_at(annotations, operation_key("b")) is None, "it names another interface"
    assert read_operation_at(annotations, "some") is None
    assert stale_operation_keys(annotations, {interface_hash("iface1")}) == [operation_key("b")]


def test_vm_owns_the_vmi_that_was_created_from_it() -> None:
    assert owns(objects.vm(), objects.vmi(owned=True))
    assert not owns(objects.vm(), objects.vmi())
    assert is_active(objects.vmi())
    assert not is_active(objects.vmi(phase="Failed"))
