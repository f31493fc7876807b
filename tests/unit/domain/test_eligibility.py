"""What is refused by name in an interface's spec, and MAC addresses."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.objects import Interface, MultusNetwork, Network
from services.common.domain.eligibility import (
    OUTSIDE_SPEC,
    find_mac_holder,
    find_plug_obstacle,
    find_spec_obstacle,
)
from services.common.domain.mac_address import normalize_mac
from services.common.domain.nic import parse_nics
from tests.support.observed import objects

MAC = "02:00:00:00:00:01"


@pytest.mark.parametrize("text", ["02:00:00:00:00:01", "02-00-00-00-00-01", "0200.0000.0001"])
def test_every_form_of_a_mac_is_normalized(text: str) -> None:
    assert normalize_mac(text) == MAC
    assert normalize_mac(text.upper()) == MAC


IMPOSSIBLE = [
    ({"macAddress": "67:4f:16:00:00:01"}, "multicast"),
    ({"macAddress": "FF:FF:FF:FF:FF:FF"}, "broadcast"),
    ({"macAddress": "00:00:00:00:00:00"}, "zero"),
    ({"macAddress": "de:ad:00:00:be"}, "six bytes"),
    ({"macAddress": "02:00:00:00:00:01;"}, "six bytes"),
    ({"macAddress": "02:00-00:00:00:01"}, "six bytes"),
    ({"masquerade": {}}, "2 bindings (bridge, masquerade)"),
    ({"binding": {"name": "plugin"}}, "2 bindings (bridge, binding)"),
    ({"state": "paused"}, "state 'paused' is unknown"),
    ({"model": "e1000"}, "only virtio"),
    ({"acpiIndex": 16384}, "from 1 to 16383"),
    ({"acpiIndex": -1}, "from 1 to 16383"),
    ({"pciAddress": "0000:81:01.0"}, "not behind a PCIe root port"),
    ({"pciAddress": "0001:09:00.0"}, "not behind a PCIe root port"),
    ({"pciAddress": "0000:00:00.0"}, "not behind a PCIe root port"),
]


@pytest.mark.parametrize(("fields", "text"), IMPOSSIBLE)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], text: str) -> None:
    found = find_spec_obstacle(msgspec.convert({"name": "blue", "bridge": {}, **fields}, Interface))
    assert found is not None
    assert found[0] in OUTSIDE_SPEC
    assert "'blue'" in found[1]
    assert text in found[1]


@pytest.mark.parametrize("field", ["tag", "bootOrder", "dhcpOptions"])
def test_a_field_of_the_start_is_refused_in_a_change_only(field: str) -> None:
    interface = msgspec.convert({"name": "blue", "bridge": {}, field: "x"}, Interface)
    network = Network("blue", multus=MultusNetwork("net1"))
    assert f"has {field}, which applies at the VM's start" in (find_plug_obstacle(interface, network) or "")
    assert find_spec_obstacle(interface) is None


@pytest.mark.parametrize(
    "fields",
    [{}, {"macAddress": MAC, "state": "down"}, {"acpiIndex": 101, "pciAddress": "0000:0a:00.0"}, {"acpiIndex": 0}],
)
def test_what_can_be_done_is_accepted(fields: dict[str, Any]) -> None:
    assert find_spec_obstacle(msgspec.convert({"name": "blue", "bridge": {}, **fields}, Interface)) is None


@pytest.mark.parametrize(
    ("second", "in_guest", "refused"),
    [
        ("0200.0000.0001", "a", ["b"]),
        ("02-00-00-00-00-01", "b", ["a", "b"]),
        ("02:00:00:00:00:02", "a", []),
        ("ff:ff:ff:ff:ff:ff", "a", []),
    ],
    ids=["the first has it", "the one in the guest has it", "another MAC", "no MAC"],
)
def test_a_mac_of_another_interface_is_refused(second: str, in_guest: str, refused: list[str]) -> None:
    status = [{"name": in_guest, "infoSource": "domain"}]
    vmi = objects.vmi(objects.nic("a", macAddress=MAC), objects.nic("b", macAddress=second), status=status)
    nics = parse_nics(vmi, None)
    assert [name for name, one in nics.interfaces.items() if find_mac_holder(nics, one)] == refused


def test_a_mac_that_only_the_status_shows_is_taken() -> None:
    vmi = objects.vmi(objects.nic("a"), status=[{"name": "a", "mac": MAC, "infoSource": "domain"}])
    new = Interface("b", mac_address=MAC)
    assert find_mac_holder(parse_nics(vmi, None), new) is not None
    assert find_mac_holder(parse_nics(objects.vmi(), None), new) is None
    assert find_mac_holder(parse_nics(objects.vmi(), None), new, [Interface("c", mac_address=MAC)]) is not None
