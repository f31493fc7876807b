"""Guarded patches of both lists, what may be plugged at all, and names that collide."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kube import Interface, Network
from schemas.names import interface_hash
from schemas.networks import NETWORKS, NetworkSelectionElement, encode_networks
from schemas.operations import Operation, encode, operation_key, operation_of, operation_under, stale_operations
from schemas.stages import OperationKind
from services.common.domain.attachments import secondary
from services.common.domain.eligibility import hash_collision, ordinal, why_fixed, why_not_pluggable
from services.common.domain.spec_patch import change, notes, of_vm, of_vmi
from services.common.domain.template import lives, owns
from services.lab.apiserver.patch import PatchFailed, apply_json_patch
from tests.support import objects

PLUG = Operation("plug", OperationKind.PLUG, "iface1")


def test_a_change_applies_to_what_was_seen_and_to_nothing_else() -> None:
    vm = objects.vm(objects.nic("a"), annotations={"some": "thing"})
    holder = of_vm(vm)
    ops = change(holder, holder.lists.absent(["a"]), notes([PLUG]))
    document = msgspec.to_builtins(vm)
    patched = apply_json_patch(document, ops)
    assert patched["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][1]["state"] == "absent"
    assert operation_of(patched["metadata"]["annotations"], "iface1") == PLUG
    for changed in (
        objects.vm(objects.nic("a"), objects.nic("b"), annotations={"some": "thing"}),
        objects.vm(objects.nic("a"), annotations={"some": "thing"} | {operation_key("iface1"): "another"}),
    ):
        with pytest.raises(PatchFailed):
            apply_json_patch(msgspec.to_builtins(changed), ops)


def test_lists_that_do_not_change_are_not_written() -> None:
    holder = of_vmi(objects.vmi(objects.nic("a"), annotations={operation_key("a"): "x"}))
    ops = change(holder, holder.lists, {operation_key("a"): None})
    assert [op["op"] for op in ops] == ["test", "test", "test", "remove"]


@given(st.lists(st.sampled_from(["a", "b", "c"]), unique=True))
def test_without_takes_interface_and_network(names: list[str]) -> None:
    lists = of_vmi(objects.vmi(*(objects.nic(name) for name in ("a", "b", "c")))).lists.without(names)
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
def test_only_bridges_on_a_network_of_their_own_can_change(
    interface: Interface, network: Network | None, fixed: str | None, not_pluggable: str | None
) -> None:
    for why, expected in (
        (why_fixed(interface, network), fixed),
        (why_not_pluggable(interface, network), not_pluggable),
    ):
        assert (why is None) == (expected is None)
        assert expected is None or expected in str(why)


def test_of_two_names_with_the_same_links_the_first_one_counts() -> None:
    first, second = objects.COLLIDING
    assert interface_hash(first) == interface_hash(second)
    vmi = objects.vmi(objects.nic(first), objects.nic(second))
    assert [interface.name for interface, _ in secondary(vmi.spec)] == [first]
    assert hash_collision(vmi.spec, second) == first
    assert hash_collision(vmi.spec, "other") is None


def test_a_pod_with_one_ordinal_name_is_ordinal() -> None:
    elements = [NetworkSelectionElement("a", interface="podabc"), NetworkSelectionElement("b", interface="net1")]
    assert ordinal(objects.pod({NETWORKS: encode_networks(elements)}))
    assert not ordinal(objects.pod({NETWORKS: encode_networks(elements[:1])}))
    assert not ordinal(objects.pod())


def test_operations_are_found_under_their_key_and_stale_ones_told() -> None:
    annotations = {operation_key("iface1"): encode(PLUG), operation_key("b"): encode(PLUG), "some": "thing"}
    assert operation_under(annotations, operation_key("iface1")) == PLUG
    assert operation_under(annotations, operation_key("b")) is None, "it speaks of another interface"
    assert operation_under(annotations, "some") is None
    assert stale_operations(annotations, {interface_hash("iface1")}) == [operation_key("b")]


def test_a_vmi_belongs_to_the_vm_it_was_made_from() -> None:
    assert owns(objects.vm(), objects.vmi(owned=True))
    assert not owns(objects.vm(), objects.vmi())
    assert lives(objects.vmi())
    assert not lives(objects.vmi(phase="Failed"))
