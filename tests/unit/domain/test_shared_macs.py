"""MACs that VMs of one namespace share on one network: what counts as shared, and what is said about it."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.objects import VirtualMachine, VirtualMachineInstance
from services.common.domain.mac_address import MacUse, explain_shared_mac, find_shared_macs, mac_index
from tests.support.observed import objects

MAC = "02:00:00:00:00:01"
OWN = objects.vm(objects.nic("blue", macAddress=MAC))


def named(name: str, found: VirtualMachine | VirtualMachineInstance) -> VirtualMachine | VirtualMachineInstance:
    return msgspec.structs.replace(found, metadata=msgspec.structs.replace(found.metadata, name=name))


def other(*nics: Any, **metadata: Any) -> VirtualMachine:
    return objects.vm(*nics, name="vm2", uid="other", **metadata)


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (other(objects.nic("red", macAddress="0200.0000.0001")), ("vm2",)),
        (other(objects.nic("red", "default/net1", macAddress=MAC)), ("vm2",)),
        # A running VM whose MAC the network's plugin has chosen.
        (named("vm2", objects.vmi(objects.nic("red"), status=[{"name": "red", "mac": MAC}])), ("vm2",)),
        # Another network, or one that is not known to be the same.
        (other(objects.nic("red", "net2", macAddress=MAC)), ()),
        (other(objects.nic("red", macAddress="02:00:00:00:00:02")), ()),
        (other(objects.nic("red", macAddress=MAC, state="absent")), ()),
        (other(objects.nic("red", macAddress=MAC), deletionTimestamp="2027-01-01T00:00:00Z"), ()),
        # So many that no role looks at the VM.
        (other(*(objects.nic(f"red{i}", macAddress=MAC) for i in range(129))), ()),
        # The VM's own VMI, and a namespace of somebody else.
        (objects.vmi(objects.nic("blue", macAddress=MAC)), ()),
        (other(objects.nic("red", "default/net1", macAddress=MAC), namespace="theirs"), ()),
        # Every pod has a primary network of its own.
        (other(({"name": "default", "masquerade": {}, "macAddress": MAC}, {"name": "default", "pod": {}})), ()),
        (
            other(({"name": ["x"], "macAddress": 1}, {"name": {}, "multus": {"networkName": 2}}), ({}, {"multus": 3})),
            (),
        ),
    ],
)
def test_only_the_same_network_of_the_same_namespace_is_shared(
    found: VirtualMachine | VirtualMachineInstance, names: tuple[str, ...]
) -> None:
    index = mac_index(found)
    shared = list(find_shared_macs([OWN], lambda value: [found] if value in index else []))
    assert [one.others for one in shared] == ([names] if names else [])
    assert all((one.use, one.interface) == (MacUse("blue", MAC, "default/net1"), "red") for one in shared)


def test_a_shared_mac_is_named_once_with_the_first_of_the_others() -> None:
    found = [other(objects.nic("red", macAddress=MAC)), OWN, named("vm3", other(objects.nic("red", macAddress=MAC)))]
    (shared,) = find_shared_macs([OWN, objects.vmi(objects.nic("blue", macAddress=MAC))], lambda _value: found)
    text = explain_shared_mac(shared)
    assert text.startswith(f"interface 'blue' has the MAC address {MAC} of interface 'red' of VM vm2 and of others on ")


def test_a_network_name_that_nothing_can_have_is_not_in_the_index() -> None:
    assert mac_index(other(objects.nic("red", "n" * 508, macAddress=MAC))) == []
    assert len(mac_index(other(objects.nic("red", "n" * 253, macAddress=MAC)))) == 1
