"""A process that serves its own QMP socket answers every command, with as much as it likes, or with nonsense."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from lab.guest.double import GREETING, Monitors
from lab.guest.double_machine import NAMED, DoubleMachine, Reply
from schemas.inputs import RejectedInput
from services.common.guest.port import MAX_NAME, GuestChange, GuestEvent, GuestFloods, GuestNotReachable, NetDevice
from services.common.guest.qmp import QmpGuest
from services.common.guest.qmp_answers import MAX_OBJECTS, active_devices, bus_numbers, parse_event
from services.common.guest.qmp_client import MAX_GREETING_BYTES, MAX_MESSAGE_BYTES
from tests.support.guest.monitor import served_guest
from tests.support.hostile.memory import peak_below

MIB = 1024 * 1024
MAC = "02:00:00:00:00:01"


class HostileMachine(DoubleMachine):
    """The lab's double of a machine, with devices that the test adds, and any text in the place of their properties.

    :ivar devices: further devices, as ``qom-list`` lists them.
    :ivar texts: answers to ``qom-get``, by property; of any type.
    :ivar answers: answers to other commands: of the machine's own if there is none.
    """

    def __init__(self, monitors: Monitors) -> None:
        super().__init__(
            ports=2, cpus=1, unplug_delay=60, bind_delay=60, emit_event=monitors.emit_event, print_line=lambda _: None
        )
        self.devices: list[Reply] = []
        self.texts: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}

    def qom_list(self, path: str) -> list[Reply]:
        return super().qom_list(path) + (self.devices if path == NAMED else [])

    def qom_get(self, path: str, name: str) -> Any:
        return self.texts[name] if path.startswith(f"{NAMED}/ua-") else super().qom_get(path, name)

    def rx_filters(self) -> Any:
        return self.answers.get("query-rx-filter", [])

    def pci(self) -> Any:
        return self.answers.get("query-pci") or super().pci()


@pytest.fixture
async def machine() -> AsyncIterator[tuple[HostileMachine, QmpGuest]]:
    monitors = Monitors()
    hostile = monitors.machine = HostileMachine(monitors)
    async with served_guest(monitors.serve_client) as guest:
        yield hostile, guest


def nics(count: int) -> list[Reply]:
    """Return devices that are NICs of the spec."""
    return [{"name": f"ua-x{number}", "type": "child<virtio-net-pci>"} for number in range(count)]


async def test_a_domain_with_large_answers_is_left_alone_before_they_fill_the_memory(
    machine: tuple[HostileMachine, QmpGuest],
) -> None:
    hostile, guest = machine
    hostile.devices, hostile.texts = nics(60), {"parent_bus": "b" * MIB, "mac": "b" * MIB}
    with peak_below(16 * MIB):
        for _ in range(3):
            with pytest.raises(GuestNotReachable, match="too many messages, or too large ones"):
                await guest.list()
    # The pause is over.
    guest.client._flooded_until, hostile.texts = 0.0, {"parent_bus": "/machine", "mac": MAC}
    assert len((await guest.list()).devices) == 60


@pytest.mark.parametrize("unit", [{"": []}, {"name": "", "type": "", "": []}, {"name": "x", "type": "child<x>"}])
async def test_a_domain_that_lists_more_than_any_has_is_left_alone(
    machine: tuple[HostileMachine, QmpGuest], unit: Reply
) -> None:
    hostile, guest = machine
    hostile.devices = [unit | ({"name": f"x{n}"} if "name" in unit else {}) for n in range(MAX_OBJECTS + 1)]
    with pytest.raises(GuestFloods):
        await guest.list()
    with pytest.raises(GuestFloods, match="not connected for 30 s"):
        await guest.list()


async def test_answers_of_many_lists_are_no_large_answer(machine: tuple[HostileMachine, QmpGuest]) -> None:
    hostile, guest = machine
    hostile.answers["query-rx-filter"] = [{"name": "ua-a", "vlan-table": list(range(4096))}] * 60
    for _ in range(5):
        await guest.list()


@pytest.mark.parametrize("mac", ["b" * 100_000, "02:00", "", "ff:ff:ff:ff:ff:ff"])
async def test_a_device_whose_mac_is_none_is_no_nic_and_takes_its_slot(
    machine: tuple[HostileMachine, QmpGuest], mac: str
) -> None:
    hostile, guest = machine
    hostile.devices, hostile.texts = nics(1), {"parent_bus": f"{NAMED}/rp1/rp1", "mac": mac}
    view = await guest.list()
    assert (view.devices, view.free_slots) == ({}, ("rp2",))


async def test_what_is_kept_of_a_device_is_short(machine: tuple[HostileMachine, QmpGuest]) -> None:
    hostile, guest = machine
    hostile.devices, hostile.texts = nics(1), {"parent_bus": "/machine/" + "b" * 100_000, "mac": MAC.upper()}
    assert (await guest.list()).devices == {"ua-x0": NetDevice("ua-x0", MAC)}
    assert len(str(guest._known)) < 2000
    hostile.devices = [{"name": "x" * (MAX_NAME + 1), "type": "child<virtio-net-pci>"}]
    with pytest.raises(GuestNotReachable, match="device's name"):
        await guest.list()


@pytest.mark.parametrize("answer", [7, ["a"], {"a": "b"}, None])
async def test_a_property_that_is_no_text_makes_the_domain_unreachable(
    machine: tuple[HostileMachine, QmpGuest], answer: Any
) -> None:
    hostile, guest = machine
    hostile.devices, hostile.texts = nics(1), {"parent_bus": answer, "mac": MAC}
    with pytest.raises(GuestNotReachable, match="list of devices"):
        await guest.list()


@pytest.mark.parametrize("unit", [b"{},", b'{"name":""},', b"[],", b"[[[[1]]]],", b'"a",', b"1234567,"])
async def test_an_answer_of_many_values_is_refused_before_it_is_decoded(unit: bytes) -> None:
    answer = msgspec.Raw(b"[" + unit * (MAX_MESSAGE_BYTES // len(unit)) + unit[:-1] + b"]")
    with peak_below(8 * MIB), pytest.raises(RejectedInput):
        active_devices(answer)


@pytest.mark.parametrize(
    ("tables", "active"),
    [
        ({"promiscuous": True}, False),
        ({"promiscuous": False}, True),
        ({"multicast-table": [], "unicast-table": [], "vlan-table": [1, 2]}, False),
        ({"multicast-table": ["33:33:00:00:00:01"]}, True),
        ({"unicast-table": [MAC]}, True),
    ],
)
def test_a_receive_filter_that_differs_from_that_after_a_reset_shows_a_driver(
    tables: dict[str, Any], active: bool
) -> None:
    answer = json.dumps([{"name": "ua-a", "promiscuous": True} | tables])
    for text in (answer, answer.replace("[]", "[ ]")):
        assert active_devices(msgspec.Raw(text.encode())) == ({"ua-a"} if active else set())


@pytest.mark.parametrize("number", [0, -1, 256, 10**30])
def test_only_a_port_with_a_number_that_a_bus_can_have_is_kept(number: int) -> None:
    bridges = [("rp1", 1), ("rp2", number), ("x" * 1000, 3)]
    devices = [{"qdev_id": name, "pci_bridge": {"bus": {"number": 0, "secondary": bus}}} for name, bus in bridges]
    answer = msgspec.Raw(json.dumps([{"bus": 0, "devices": [{"slot": 0}, *devices]}]).encode())
    assert bus_numbers(answer, {"rp1", "rp2"}) == {"rp1": 1}


@pytest.mark.parametrize("device", ["x" * (MAX_NAME + 1), ["ua-a"], {"a": 1}, 7])
def test_an_event_about_what_is_no_device_is_rejected(device: Any) -> None:
    with pytest.raises(RejectedInput):
        parse_event({"event": "DEVICE_DELETED", "data": {"device": device}})
    assert parse_event({"event": "DEVICE_DELETED", "data": {"path": "/x"}}) == GuestEvent(GuestChange.DEVICE_DELETED)


async def test_an_event_of_many_values_ends_the_connection(machine: tuple[HostileMachine, QmpGuest]) -> None:
    hostile, guest = machine
    events = guest.events()
    first = asyncio.ensure_future(anext(events))
    await guest.list()
    hostile._emit_event("DEVICE_DELETED", {"device": "ua-a", "x": [{}] * MAX_OBJECTS})
    with pytest.raises(StopAsyncIteration):
        await first


@pytest.mark.parametrize(
    "extra", [{"x": "x" * MAX_GREETING_BYTES}, {"x": [[]] * 5000}, {"version": 7}], ids=["large", "many", "malformed"]
)
async def test_a_greeting_is_kept_and_therefore_small(extra: dict[str, Any]) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps({"QMP": GREETING["QMP"] | extra}).encode() + b"\n")

    async with served_guest(greet) as guest:
        with pytest.raises(GuestNotReachable):
            await guest.list()
