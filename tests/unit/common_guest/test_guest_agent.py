"""The client of the guest agent, and the poller on top of it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from services.common.guest.agent import (
    MAX_ADDRESSES,
    MAX_ALL_ADDRESSES,
    MAX_FOREIGN_RESPONSES,
    MAX_NAME_BYTES,
    MAX_NICS,
    MAX_RESPONSE_BYTES,
    AgentFloods,
    AgentUnavailable,
    GuestNic,
    QemuGuestAgent,
    parse_interfaces,
)
from services.handler.agent_poller import AgentPoller
from tests.support.guest.agent import FakeAgent, fake_agent

MAC = "02:00:00:00:00:01"


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[tuple[FakeAgent, QemuGuestAgent]]:
    async with fake_agent(tmp_path / "agent.sock") as scripted:
        agent = QemuGuestAgent(str(tmp_path / "agent.sock"))
        yield scripted, agent
        await agent.close()


async def test_the_guests_nics_are_listed_without_loopback(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    scripted.add_nic("lo", "00:00:00:00:00:00", "127.0.0.1")
    scripted.add_nic("eth1", "02:00:00:AA:00:01", "10.0.0.9", "fe80::1")
    assert await agent.interfaces(timeout=1) == (GuestNic("eth1", "02:00:00:aa:00:01", ("10.0.0.9", "fe80::1")),)


async def test_the_connection_stays_open_while_the_agent_responds(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    await agent.interfaces(timeout=1)
    await agent.interfaces(timeout=1)
    assert scripted.connections == 1


async def test_responses_to_an_earlier_client_are_ignored(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    scripted.noise = b'{"return": [{"name": "old"}]}\n\xff{"return": 999999}\n'
    scripted.add_nic("eth1", MAC)
    assert [nic.name for nic in await agent.interfaces(timeout=1)] == ["eth1"]


async def test_a_silent_agent_is_disconnected_and_connected_again(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    scripted.silent = True
    with pytest.raises(AgentUnavailable, match="no response"):
        await agent.interfaces(timeout=0.02)
    scripted.silent = False
    await agent.interfaces(timeout=1)
    assert scripted.connections == 2


async def test_an_agent_that_refuses_is_unavailable(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    scripted.error = {"class": "CommandNotFound", "desc": "disabled"}
    with pytest.raises(AgentUnavailable, match="disabled"):
        await agent.interfaces(timeout=1)


async def test_the_agent_of_a_guest_without_one_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(AgentUnavailable):
        await QemuGuestAgent(str(tmp_path / "nothing.sock")).interfaces(timeout=1)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_response_or_a_value_error(raw: bytes) -> None:
    try:
        assert isinstance(parse_interfaces(raw), tuple)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("name", "mac", "ips", "expected"),
    [
        ("eth\x1b[31m\n0", MAC, ["10.0.0.9"], GuestNic("eth?[31m?0", MAC, ("10.0.0.9",))),
        ("é" * 1000, MAC, [], GuestNic("é" * (MAX_NAME_BYTES // 2), MAC)),
        (
            "eth0",
            MAC,
            ["fe80::1%;K8S_POD_NAME=x", "\x1b", "1" * 100_000, "FE80:0::1"],
            GuestNic("eth0", MAC, ("fe80::1",)),
        ),
        ("eth0", MAC, [f"10.0.{n // 256}.{n % 256}" for n in range(3000)], None),
        ("eth0", "02:00:00:00:00:01\n", [], ()),
        ("eth0", "x" * 100_000, [], ()),
    ],
)
def test_what_a_guest_writes_is_parsed_and_cut(
    name: str, mac: str, ips: list[str], expected: GuestNic | tuple[()] | None
) -> None:
    response = {"name": name, "hardware-address": mac, "ip-addresses": [{"ip-address": ip} for ip in ips]}
    found = parse_interfaces(msgspec.json.encode([response]))
    if expected is None:
        assert len(found[0].ips) == MAX_ADDRESSES
    else:
        assert found == ((expected,) if isinstance(expected, GuestNic) else expected)


def test_a_guest_lists_a_bounded_number_of_nics() -> None:
    many = [{"name": f"eth{n}", "hardware-address": MAC} for n in range(2000)]
    assert len(parse_interfaces(msgspec.json.encode(many))) == MAX_NICS


@pytest.mark.parametrize(
    "response",
    [
        *("[" * 5000, '{"return":' + "[" * 5000, "\xff\xff", "1" * 5000, '{"error":"' + "\x1b" * 5000),
        '{"error":"' + "\\u009b" * 5000 + '"}',
    ],
)
async def test_hostile_responses_make_the_agent_unavailable(
    fake: tuple[FakeAgent, QemuGuestAgent], response: str
) -> None:
    scripted, agent = fake
    scripted.raw = response.encode()
    with pytest.raises(AgentUnavailable) as caught:
        await agent.interfaces(timeout=1)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def legitimate_response(nics: int) -> bytes:
    """Return what qemu-ga answers in a guest with many NICs, each with counters and an address of each kind."""
    names = ("rx-bytes", "rx-packets", "rx-errs", "rx-dropped", "tx-bytes", "tx-packets", "tx-errs", "tx-dropped")
    kinds = {"ipv4": ("10.200.100.100", 24), "ipv6": ("2001:db8:1111:2222:3333:4444:5555:6666", 64)}
    addresses = [
        {"ip-address-type": kind, "ip-address": address, "prefix": prefix} for kind, (address, prefix) in kinds.items()
    ]
    one = {"hardware-address": MAC, "ip-addresses": addresses, "statistics": dict.fromkeys(names, 10**10)}
    return msgspec.json.encode([{"name": f"veth0a1b2c{n}", **one} for n in range(nics)])


async def test_a_guest_with_many_nics_and_addresses_is_listed(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    scripted.raw = b'{"return":' + legitimate_response(256) + b"}"
    found = await agent.interfaces(timeout=60)
    assert (len(found), len(found[0].ips)) == (256, 2)


def values(count: int) -> bytes:
    """Return the members of an array that has many values in few bytes."""
    return b",".join([b"[]"] * count)


FULL = msgspec.json.encode(
    [
        {"name": f"eth{n}", "hardware-address": MAC, "ip-addresses": [{"ip-address": f"::{n}"}] * MAX_ADDRESSES}
        for n in range(MAX_ALL_ADDRESSES // MAX_ADDRESSES + 1)
    ]
)


@pytest.mark.parametrize(
    "response",
    [
        b'{"return":[],"error":[' + values(MAX_RESPONSE_BYTES // 3) + b"]}",
        b'{"return":' + FULL + b"}",
    ],
)
async def test_a_response_that_takes_long_to_parse_is_a_flood(
    fake: tuple[FakeAgent, QemuGuestAgent], response: bytes
) -> None:
    scripted, agent = fake
    scripted.raw = response
    with pytest.raises(AgentFloods):
        await agent.interfaces(timeout=60)


async def test_what_is_not_used_of_a_response_is_not_decoded(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    scripted.raw = b'{"return":[],"error":[' + values(MAX_RESPONSE_BYTES // 6) + b"]}"
    begin = sys.getallocatedblocks()
    found: list[int] = []
    sys.setprofile(lambda *_: found.append(sys.getallocatedblocks()))
    try:
        assert await agent.interfaces(timeout=60) == ()
    finally:
        sys.setprofile(None)
    # Decoded, each value is an object.
    assert max(found) - begin < MAX_RESPONSE_BYTES // 6


async def test_a_response_is_not_read_beyond_its_limit(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    scripted.raw = b"x" * (2 * MAX_RESPONSE_BYTES)
    with pytest.raises(AgentUnavailable) as caught:
        await agent.interfaces(timeout=10)
    assert isinstance(caught.value.__cause__, asyncio.LimitOverrunError)


LONG_RESPONSE = b'\xff{"error":"' + b"x" * 60_000 + b'"}\n'


@pytest.mark.parametrize("noise", [b"\xff{}\n" * 200_000, 30 * LONG_RESPONSE, b"y" * 2_000_000])
async def test_a_guest_that_writes_without_end_delays_nothing_else(
    fake: tuple[FakeAgent, QemuGuestAgent], noise: bytes
) -> None:
    scripted, agent = fake
    scripted.noise = noise
    turns: list[int] = []

    async def sibling() -> None:
        while True:
            turns.append(len(turns))
            await asyncio.sleep(0)

    other = asyncio.create_task(sibling())
    with pytest.raises(AgentFloods):
        await agent.interfaces(timeout=60)
    other.cancel()
    assert len(turns) >= min(MAX_FOREIGN_RESPONSES, noise.count(b"\xff") // 2)
    scripted.noise = b"\xff{}\n" * MAX_FOREIGN_RESPONSES
    assert await agent.interfaces(timeout=60) == ()


class PolledAgent:
    """A poller of an agent, and the number of changes it reported."""

    def __init__(self, agent: QemuGuestAgent) -> None:
        self.changes = 0
        self.change_reported = asyncio.Event()
        self.poller = AgentPoller(agent, self._changed, structlog.get_logger(), timeout=0.05)

    def _changed(self) -> None:
        self.changes += 1
        self.change_reported.set()

    async def finished(self, delays: Sequence[float]) -> None:
        self.poller.poll(delays)
        task = self.poller._task
        assert task is not None
        await task


async def test_each_different_response_calls_on_change_once(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    polled = PolledAgent(agent)
    await polled.finished((0.0, 0.0, 0.0))
    assert (polled.changes, polled.poller.nics) == (1, ())
    scripted.add_nic("eth1", MAC)
    await polled.finished((0.0, 0.0))
    assert (polled.changes, polled.poller.nics) == (2, (GuestNic("eth1", MAC),))


async def test_a_query_without_a_response_does_not_end_the_series(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    scripted, agent = fake
    scripted.silent = True
    polled = PolledAgent(agent)
    polled.poller.poll((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    await scripted.requested.wait()
    scripted.silent = False
    await asyncio.wait_for(polled.change_reported.wait(), 2)
    assert polled.poller.nics == ()
    await polled.poller.close()


async def test_a_single_query_does_not_replace_a_series(fake: tuple[FakeAgent, QemuGuestAgent]) -> None:
    _, agent = fake
    polled = PolledAgent(agent)
    polled.poller.poll((30.0, 30.0))
    running = polled.poller._task
    polled.poller.poll()
    assert polled.poller._task is running
    polled.poller.poll((0.0, 0.0))
    assert polled.poller._task is not running
    await asyncio.wait_for(polled.change_reported.wait(), 2)
    await polled.poller.close()
