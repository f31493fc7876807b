"""Reading libvirt's description of a domain, and writing the element of a new device."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.guest.domain_xml import (
    has_device,
    interface_xml,
    parse_domain,
    transmitting_taps,
    with_link_state,
)
from services.common.guest.port import GuestNotReachable, NetDevice, NetDeviceSpec

PORT = '<controller type="pci" index="{}" model="pcie-root-port"/>'


def domain(devices: str, *, head: str = "id='1'", vcpu: str = "<vcpu>1</vcpu>") -> str:
    return f"<domain type='kvm' {head}>{vcpu}<devices>{devices}</devices></domain>"


def nic(alias: str, bus: int, *, mac: str = "02:00:00:00:00:01", extra: str = "") -> str:
    return (
        f"<interface type='ethernet'><mac address='{mac}'/><target dev='tap1' managed='no'/>{extra}"
        f"<alias name='{alias}'/><address type='pci' bus='{bus:#04x}' slot='0x00'/></interface>"
    )


def ports(*indices: int) -> str:
    return "".join(PORT.format(index) for index in indices)


def test_the_devices_are_the_nics_of_the_spec_with_their_link_state() -> None:
    devices = nic("ua-Blue", 1, mac="02:AA:00:00:00:01") + nic("ua-red", 2, extra="<link state='down'/>")
    view = parse_domain(domain(devices + nic("net0", 3) + "<interface type='user'/>" + ports(1, 2, 3)), None)
    assert view.devices == {
        "ua-Blue": NetDevice("ua-Blue", "02:aa:00:00:00:01", up=True),
        "ua-red": NetDevice("ua-red", "02:00:00:00:00:01", up=False),
    }


def test_the_driver_of_a_nic_that_has_sent_packets_is_active() -> None:
    counters = {"net.count": 3, "net.0.rx.pkts": 9, "net.1.name": "tap1", "net.1.tx.pkts": 1}
    counters |= {"net.2.name": "tap2", "net.2.tx.pkts": 0, "net.2.rx.pkts": 9}
    assert transmitting_taps(counters) == {"tap1"}
    assert transmitting_taps({}) == set()
    assert parse_domain(domain(nic("ua-a", 1)), None, {"tap1"}).devices["ua-a"].driver_active
    assert not parse_domain(domain(nic("ua-a", 1)), None, {"tap2"}).devices["ua-a"].driver_active


@pytest.mark.parametrize(
    ("devices", "free"),
    [
        pytest.param(ports(1, 2, 10), ("pci.1", "pci.2", "pci.10"), id="all in numeric order"),
        pytest.param(ports(1, 2) + nic("ua-a", 2), ("pci.1",), id="a NIC takes one"),
        pytest.param(
            ports(1, 2) + "<disk><address type='pci' bus='0x01'/></disk>", ("pci.2",), id="another device takes one"
        ),
        pytest.param(
            ports(1) + PORT.format(2).replace("/>", "><address type='pci' bus='0x01'/></controller>"),
            ("pci.2",),
            id="a port behind a port takes one",
        ),
        pytest.param(
            ports(1) + "<hostdev><source><address type='pci' bus='0x01'/></source></hostdev>",
            ("pci.1",),
            id="the address of a host device does not count",
        ),
        pytest.param(
            ports(1) + "<disk><address type='drive' bus='1'/></disk>",
            ("pci.1",),
            id="the address of a drive does not count",
        ),
        pytest.param(
            '<controller type="pci" index="1" model="pcie-root-port"><target hotplug="off"/></controller>',
            (),
            id="a port without hot-plug",
        ),
        pytest.param(
            "<controller type='pci' index='0' model='pcie-root'/><controller type='pci' model='pcie-to-pci-bridge'"
            " index='1'/><controller type='usb' index='2' model='none'/>",
            (),
            id="other controllers",
        ),
    ],
)
def test_free_slots_are_root_ports_without_a_device(devices: str, free: tuple[str, ...]) -> None:
    assert parse_domain(domain(devices), None).free_slots == free


def test_a_slot_that_the_persistent_configuration_uses_is_not_free() -> None:
    persistent = domain(ports(1, 2) + nic("ua-a", 1), head="")
    assert parse_domain(domain(ports(1, 2)), persistent).free_slots == ("pci.2",)


def test_the_cpus_are_the_online_ones() -> None:
    assert parse_domain(domain("", vcpu="<vcpu current='2'>8</vcpu>"), None).cpus == 2
    assert parse_domain(domain("", vcpu="<vcpu placement='static'>8</vcpu>"), None).cpus == 8


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<domain",
        "<network id='1'/>",
        domain("", head=""),
        '<!DOCTYPE d [<!ENTITY a "b">]><domain id="1">&a;</domain>',
        "<domain id='1'>" + " " * 4 * 1024 * 1024 + "</domain>",
        domain("<controller type='pci' model='pcie-root-port' index='one'/>"),
    ],
)
def test_a_description_of_no_running_domain_is_not_reachable(text: str) -> None:
    with pytest.raises(GuestNotReachable):
        parse_domain(text, None)


def test_a_device_is_written_as_kubevirt_writes_it_with_the_case_of_its_name() -> None:
    xml = interface_xml(NetDeviceSpec("Blue_1", "02:00:00:00:00:09", "tap7e0055a6880", 1400), "pci.3")
    assert xml == (
        '<interface type="ethernet"><target dev="tap7e0055a6880" managed="no" />'
        '<model type="virtio-non-transitional" /><mac address="02:00:00:00:00:09" /><mtu size="1400" />'
        '<alias name="ua-Blue_1" /><rom enabled="no" />'
        '<address type="pci" domain="0x0000" bus="0x03" slot="0x00" function="0x0" /></interface>'
    )


def test_queues_and_link_state_are_written() -> None:
    xml = interface_xml(NetDeviceSpec("a", "02:00:00:00:00:09", "tap1", 1500, queues=4, up=False), "pci.20")
    assert '<link state="down" /><alias name="ua-a" /><driver queues="4" />' in xml
    assert 'bus="0x14"' in xml


def test_an_acpi_index_is_written_and_a_slot_is_known_by_its_bus() -> None:
    text = interface_xml(NetDeviceSpec("a", "02:00:00:00:00:09", "tap1", 1500, acpi_index=101), "pci.9")
    assert '<rom enabled="no" /><acpi index="101" /><address ' in text
    assert parse_domain(domain(ports(2, 10) + nic("ua-a", 2)), None).buses == {"pci.2": 2, "pci.10": 10}


@pytest.mark.parametrize("slot", ["rp1", "", "pci.", "pci.0", "pci.x"])
def test_a_slot_of_another_domain_is_refused(slot: str) -> None:
    with pytest.raises(ValueError, match=r"slot|int"):
        interface_xml(NetDeviceSpec("a", "02:00:00:00:00:09", "tap1", 1500), slot)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1))
def test_any_text_stays_within_its_attribute(text: str) -> None:
    element = ElementTree.fromstring(interface_xml(NetDeviceSpec("a", "02:00:00:00:00:09", text, 1500), "pci.1"))
    assert [child.tag for child in element] == ["target", "model", "mac", "mtu", "alias", "rom", "address"]


def test_the_link_state_is_changed_in_the_devices_own_element() -> None:
    text = domain(nic("ua-a", 1, extra="<link state='down'/>") + nic("ua-b", 2))
    up, down = with_link_state(text, "a", up=True), with_link_state(text, "b", up=False)
    assert up is not None
    assert "<link" not in up
    assert 'name="ua-a"' in up
    assert down is not None
    assert '<link state="down" />' in down
    assert with_link_state(text, "c", up=True) is None


def test_a_device_is_found_by_its_exact_name() -> None:
    text = domain(nic("ua-a", 1))
    assert (has_device(text, "a"), has_device(text, "A"), has_device(text, "b")) == (True, False, False)
