"""The console parser: its events do not depend on how the log is split or on what else is printed."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.guest.console import (
    AddressEvent,
    ConsoleFollower,
    ConsoleParser,
    GuestEvent,
    LinkEvent,
    Ready,
    parse_line,
)

ADD = "[    8.608547] hotnic-guest: link add eth1 mac 02:00:00:00:01:01 mtu 1450 state down carrier off"
READY = "[    3.513785] hotnic-guest: ready"

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.@-]{0,14}", fullmatch=True)
macs = st.lists(st.integers(0, 255), min_size=6, max_size=6).map(lambda b: ":".join(f"{x:02x}" for x in b))
times = st.integers(0, 10**9).map(lambda micro: micro / 10**6)
links = st.builds(
    LinkEvent,
    action=st.sampled_from(["add", "change", "move"]),
    name=names,
    mac=macs,
    mtu=st.integers(68, 65535),
    up=st.booleans(),
    carrier=st.booleans(),
    guest_time=times,
    arrived_at=st.just(7.0),
) | st.builds(
    LinkEvent,
    action=st.just("remove"),
    name=names,
    mac=st.none(),
    mtu=st.none(),
    up=st.none(),
    carrier=st.none(),
    guest_time=times,
    arrived_at=st.just(7.0),
)
numbers = st.none() | st.integers(0, 0xFFFFFFFF)
addresses = st.builds(
    AddressEvent,
    action=st.sampled_from(["bound", "renew"]),
    name=names,
    address=numbers.map(lambda n: None if n is None else f"{IPv4Address(n)}/24"),
    router=numbers.map(lambda n: None if n is None else str(IPv4Address(n))),
    server=numbers.map(lambda n: None if n is None else str(IPv4Address(n))),
    lease=numbers,
    guest_time=times,
    arrived_at=st.just(7.0),
)
events = links | addresses | st.builds(Ready, guest_time=times, arrived_at=st.just(7.0))
noise = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n"), max_size=40).filter(
    lambda text: "hotnic-guest" not in text
)


def printed(event: GuestEvent) -> str:
    stamp = f"[{event.guest_time:12.6f}] hotnic-guest: "
    if isinstance(event, Ready):
        return stamp + "ready"
    if isinstance(event, AddressEvent):
        fields = f"router {event.router or '-'} server {event.server or '-'}"
        lease = "-" if event.lease is None else event.lease
        return f"{stamp}address {event.action} {event.name} {event.address or '-'} {fields} lease {lease}"
    state = {True: "up", False: "down", None: "-"}[event.up]
    carrier = {True: "on", False: "off", None: "-"}[event.carrier]
    link = f"link {event.action} {event.name} mac {event.mac or '-'} mtu {event.mtu or '-'}"
    return f"{stamp}{link} state {state} carrier {carrier}"


@given(events)
def test_printed_event_reads_back(event: GuestEvent) -> None:
    assert parse_line(printed(event), 7.0) == event


@given(st.text())
def test_parser_accepts_any_line(text: str) -> None:
    parse_line(text, 0.0)


@given(st.lists(events | noise, max_size=12), st.data())
def test_events_do_not_depend_on_split_or_noise(content: list[GuestEvent | str], data: st.DataObject) -> None:
    lines = [item if isinstance(item, str) else printed(item) + "\r" for item in content]
    output = "".join(line + "\n" for line in lines).encode()
    parser, found = ConsoleParser(), []
    while output:
        size = data.draw(st.integers(1, len(output)))
        found += parser.feed(output[:size], 7.0)
        output = output[size:]
    assert found == [item for item in content if not isinstance(item, str)]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hotnic-guest: ready",
        "[    3.513785] hotnic-guest: readily",
        "[    3.5] hotnic-guest: link add eth1 mac 02:00:00:00:01:01 mtu big state down carrier off",
        "[    3.5] hotnic-guest: link vanish eth1 mac - mtu - state - carrier -",
        "[    3.513785] some-other: ready",
    ],
)
def test_lines_without_a_report_are_ignored(line: str) -> None:
    assert parse_line(line, 0.0) is None


def test_report_after_a_prompt_is_parsed() -> None:
    event = parse_line("/ # \x1b[6n" + ADD, 1.0)
    assert event == LinkEvent("add", "eth1", "02:00:00:00:01:01", 1450, False, False, 8.608547, 1.0)


def test_output_without_newline_is_bounded() -> None:
    parser = ConsoleParser()
    for _ in range(100):
        assert parser.feed(b"x" * 10_000, 0.0) == []
    assert parser.feed(b"\n" + READY.encode() + b"\n", 0.0) == [Ready(3.513785, 0.0)]


async def test_follower_wakes_on_write(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    async with ConsoleFollower(log) as console:
        waiting = asyncio.create_task(console.wait_for_link("02:00:00:00:01:01", timeout=5))
        await asyncio.sleep(0)
        with log.open("a") as out:
            out.write(READY + "\r\n" + ADD)
            out.flush()
            await console.wait_ready(timeout=5)
            assert not waiting.done()
            out.write("\r\n")
        assert (await waiting).mtu == 1450
        assert list(console.links_seen()) == ["eth1"]


async def test_follower_reads_existing_output(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text(f"{ADD}\n[   9.000000] hotnic-guest: link remove eth1 mac - mtu - state - carrier -\n{READY}\n")
    async with ConsoleFollower(log) as console:
        assert (await console.wait_ready(timeout=5)).guest_time == 3.513785
        assert (await console.wait_for_link("02:00:00:00:01:01", timeout=5)).name == "eth1"
        assert console.links_seen() == {}


async def test_wait_ends_at_deadline_or_console_end(tmp_path: Path) -> None:
    async with ConsoleFollower(tmp_path / "console.log") as console:
        with pytest.raises(TimeoutError):
            await console.wait_ready(timeout=0.01)
        waiting = asyncio.create_task(console.wait_ready(timeout=5))
        await asyncio.sleep(0)
        console.end("QEMU ended")
        with pytest.raises(ConnectionError, match="QEMU ended"):
            await waiting
    console.close()
