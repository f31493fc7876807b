"""A process that serves its own libvirt socket sends a description or events of any size and number."""

import pytest

from services.common.guest.domain_xml import MAX_DESCRIPTION, MAX_MARKUP, has_device, parse_domain, with_link_state
from services.common.guest.pending_events import EVENTS_PER_SECOND, MAX_EVENTS, EventGate
from services.common.guest.port import MAX_NAME, GuestFloods, GuestNotReachable
from tests.support.hostile.memory import peak_below

MIB = 1024 * 1024
PORT = '<controller type="pci" index="{}" model="pcie-root-port"/>'
MAC = "02:00:00:00:00:01"


def domain(devices: str, *, vcpu: str = "<vcpu>1</vcpu>") -> str:
    return f"<domain type='kvm' id='1'>{vcpu}<devices>{devices}</devices></domain>"


def nic(alias: str, mac: str) -> str:
    return f"<interface><mac address='{mac}'/><alias name='{alias}'/><address type='pci' bus='0x01'/></interface>"


@pytest.mark.parametrize("unit", ["<a/>", "<a b=''/>", "<a></a>", " ", "ä"])
def test_a_large_description_is_refused_before_it_is_parsed(unit: str) -> None:
    text = domain(unit * 1_000_000)
    for live, persistent in ((text, None), (domain(""), text)):
        with peak_below(MIB), pytest.raises(GuestFloods):
            parse_domain(live, persistent)
    for read in (lambda: has_device(text, "blue"), lambda: with_link_state(text, "blue", True)):
        with peak_below(MIB), pytest.raises(GuestFloods):
            read()


@pytest.mark.parametrize("unit", ["<a/>", "<a b=''/>", "<a></a>", "<a>ä</a>"])
def test_the_largest_descriptions_take_a_bounded_amount_of_memory(unit: str) -> None:
    marks = unit.count("<") + unit.count("=")
    text = domain(unit * (MAX_MARKUP // marks - 10))
    with peak_below(16 * MIB):
        parse_domain(text, text)


def test_the_description_of_a_domain_with_many_devices_is_no_flood() -> None:
    """As many as a VM may have interfaces, each with all that libvirt writes, and as many disks and ports."""
    address = "<address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"
    interface = (
        f"<interface type='ethernet'><mac address='{MAC}'/><target dev='tap7e0055a6880' managed='no'/>"
        "<model type='virtio-non-transitional'/><driver name='vhost' queues='4' rx_queue_size='1024'/>"
        "<mtu size='1500'/>"
        f"<link state='up'/><alias name='ua-blue'/><rom enabled='no'/><acpi index='1'/>{address}</interface>"
    )
    disk = (
        "<disk type='block' device='disk' model='virtio-non-transitional'><driver name='qemu' type='raw' cache='none'"
        " error_policy='stop' io='native' discard='unmap'/><source dev='/dev/data' index='1'>"
        "<reservations managed='no'/></source><backingStore/><target dev='vda' bus='virtio'/>"
        f"<alias name='ua-data'/>{address}</disk>"
    )
    port = (
        "<controller type='pci' index='1' model='pcie-root-port'><model name='pcie-root-port'/>"
        f"<target chassis='1' port='0x10'/><alias name='pci.1'/>{address}</controller>"
    )
    text = domain((interface + disk + port * 2) * 128)
    assert set(parse_domain(text, text).devices) == {"ua-blue"}


@pytest.mark.parametrize("mac", ["b" * 100_000, "02:00", "", "01:00:00:00:00:01"])
def test_a_device_whose_mac_is_none_is_no_nic_and_takes_its_slot(mac: str) -> None:
    view = parse_domain(domain(PORT.format(1) + PORT.format(2) + nic("ua-a", mac) + nic("ua-b", MAC)), None)
    assert set(view.devices) == {"ua-b"}
    assert view.free_slots == ("pci.2",)


def test_a_long_alias_is_not_read() -> None:
    assert parse_domain(domain(nic("ua-" + "a" * MAX_NAME, MAC)), None).devices == {}


def test_an_element_that_is_nested_deeply_is_not_written_back() -> None:
    text = domain(nic("ua-a", MAC).replace("<alias", f"{'<a>' * 5000}{'</a>' * 5000}<alias"))
    assert set(parse_domain(text, text).devices) == {"ua-a"}
    with pytest.raises(GuestNotReachable, match="nested"):
        with_link_state(text, "a", True)


@pytest.mark.parametrize("number", ["-1", "0x10000", "0x" + "f" * 100_000, "9" * 5000, "1e3"])
def test_a_number_that_no_bus_has_makes_the_domain_unreachable(number: str) -> None:
    for text in (domain(PORT.format(number)), domain("", vcpu=f"<vcpu>{number}</vcpu>")):
        with pytest.raises(GuestNotReachable, match="not the number") as caught:
            parse_domain(text, None)
        assert len(str(caught.value)) < 200


def test_events_beyond_what_a_domain_has_are_dropped_and_reported_once() -> None:
    forwarded: list[int] = []
    floods: list[str] = []
    gate: EventGate[int] = EventGate(forwarded.append, lambda: floods.append("flood"))
    for number in range(10 * EVENTS_PER_SECOND):
        gate.put(number, number / EVENTS_PER_SECOND)
    assert (len(forwarded), floods) == (10 * EVENTS_PER_SECOND, [])
    for number in range(3 * MAX_EVENTS):
        gate.put(number, 10.0)
    assert len(forwarded) <= MAX_EVENTS + 10 * EVENTS_PER_SECOND
    assert floods == ["flood"]


def test_a_description_that_is_too_long_is_not_kept() -> None:
    with pytest.raises(GuestFloods, match="characters"):
        parse_domain(domain("x" * MAX_DESCRIPTION), None)
