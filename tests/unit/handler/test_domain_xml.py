"""How libvirt's description of a domain is read, and how a new card is written."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.guest.domain_xml import card_xml, describe, has_card, senders, with_link
from services.handler.guest.port import Card, GuestNotReachable, NewCard

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


def test_cards_are_those_of_the_spec_with_their_cables() -> None:
    devices = nic("ua-Blue", 1, mac="02:AA:00:00:00:01") + nic("ua-red", 2, extra="<link state='down'/>")
    view = describe(domain(devices + nic("net0", 3) + "<interface type='user'/>" + ports(1, 2, 3)), None)
    assert view.cards == {
        "ua-Blue": Card("ua-Blue", "02:aa:00:00:00:01", up=True),
        "ua-red": Card("ua-red", "02:00:00:00:00:01", up=False),
    }


def test_a_card_by_which_the_guest_has_sent_something_is_driven() -> None:
    counters = {"net.count": 3, "net.0.rx.pkts": 9, "net.1.name": "tap1", "net.1.tx.pkts": 1}
    counters |= {"net.2.name": "tap2", "net.2.tx.pkts": 0, "net.2.rx.pkts": 9}
    assert senders(counters) == {"tap1"}
    assert senders({}) == set()
    assert describe(domain(nic("ua-a", 1)), None, {"tap1"}).cards["ua-a"].driven
    assert not describe(domain(nic("ua-a", 1)), None, {"tap2"}).cards["ua-a"].driven


@pytest.mark.parametrize(
    ("devices", "free"),
    [
        pytest.param(ports(1, 2, 10), ("pci.1", "pci.2", "pci.10"), id="all, in the order of numbers"),
        pytest.param(ports(1, 2) + nic("ua-a", 2), ("pci.1",), id="a card takes one"),
        pytest.param(
            ports(1, 2) + "<disk><address type='pci' bus='0x01'/></disk>", ("pci.2",), id="so does any other device"
        ),
        pytest.param(
            ports(1) + PORT.format(2).replace("/>", "><address type='pci' bus='0x01'/></controller>"),
            ("pci.2",),
            id="and a port behind a port",
        ),
        pytest.param(
            ports(1) + "<hostdev><source><address type='pci' bus='0x01'/></source></hostdev>",
            ("pci.1",),
            id="an address of the host is none of the guest",
        ),
        pytest.param(ports(1) + "<disk><address type='drive' bus='1'/></disk>", ("pci.1",), id="nor is a drive's"),
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
def test_free_slots_are_root_ports_with_nothing_in_them(devices: str, free: tuple[str, ...]) -> None:
    assert describe(domain(devices), None).free_slots == free


def test_a_slot_that_the_persistent_configuration_needs_is_not_free() -> None:
    persistent = domain(ports(1, 2) + nic("ua-a", 1), head="")
    assert describe(domain(ports(1, 2)), persistent).free_slots == ("pci.2",)


def test_the_processors_are_those_that_run() -> None:
    assert describe(domain("", vcpu="<vcpu current='2'>8</vcpu>"), None).cpus == 2
    assert describe(domain("", vcpu="<vcpu placement='static'>8</vcpu>"), None).cpus == 8


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
def test_what_is_no_running_domain_is_not_reachable(text: str) -> None:
    with pytest.raises(GuestNotReachable):
        describe(text, None)


def test_a_card_is_written_as_kubevirt_writes_it_with_the_case_of_its_name() -> None:
    xml = card_xml(NewCard("Blue_1", "02:00:00:00:00:09", "tap7e0055a6880", 1400), "pci.3")
    assert xml == (
        '<interface type="ethernet"><target dev="tap7e0055a6880" managed="no" />'
        '<model type="virtio-non-transitional" /><mac address="02:00:00:00:00:09" /><mtu size="1400" />'
        '<alias name="ua-Blue_1" /><rom enabled="no" />'
        '<address type="pci" domain="0x0000" bus="0x03" slot="0x00" function="0x0" /></interface>'
    )


def test_a_card_of_several_queues_without_its_cable_says_so() -> None:
    xml = card_xml(NewCard("a", "02:00:00:00:00:09", "tap1", 1500, queues=4, up=False), "pci.20")
    assert '<link state="down" /><alias name="ua-a" /><driver queues="4" />' in xml
    assert 'bus="0x14"' in xml


@pytest.mark.parametrize("slot", ["rp1", "", "pci.", "pci.0", "pci.x"])
def test_a_slot_of_another_domain_is_refused(slot: str) -> None:
    with pytest.raises(ValueError, match=r"slot|int"):
        card_xml(NewCard("a", "02:00:00:00:00:09", "tap1", 1500), slot)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1))
def test_no_text_gets_out_of_its_attribute(text: str) -> None:
    element = ElementTree.fromstring(card_xml(NewCard("a", "02:00:00:00:00:09", text, 1500), "pci.1"))
    assert [child.tag for child in element] == ["target", "model", "mac", "mtu", "alias", "rom", "address"]


def test_a_cable_is_changed_in_the_cards_own_element() -> None:
    text = domain(nic("ua-a", 1, extra="<link state='down'/>") + nic("ua-b", 2))
    plugged, pulled = with_link(text, "a", up=True), with_link(text, "b", up=False)
    assert plugged is not None
    assert "<link" not in plugged
    assert 'name="ua-a"' in plugged
    assert pulled is not None
    assert '<link state="down" />' in pulled
    assert with_link(text, "c", up=True) is None


def test_a_card_is_found_by_its_name_alone() -> None:
    text = domain(nic("ua-a", 1))
    assert (has_card(text, "a"), has_card(text, "A"), has_card(text, "b")) == (True, False, False)
