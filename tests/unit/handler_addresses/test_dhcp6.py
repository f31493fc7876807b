"""DHCPv6: what is built reads back, whatever comes is read or refused, and each message has its answer."""

from ipaddress import IPv6Address, IPv6Interface

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses.dhcp6 import (
    MAX_OPTIONS,
    Kind,
    Message,
    Option,
    Options,
    Status,
    address,
    association,
    decode,
    decode_association,
    decode_options,
    encode,
    encode_options,
)
from services.handler.addresses.dhcp6_replies import answer, declined, server_id
from services.handler.addresses.frames import Datagram, Malformed, read
from services.handler.addresses.neighbours import link_local
from services.handler.addresses.offer import LEASE_SECONDS, Ipv6, Offer

MAC, OTHER, BRIDGE = (bytes.fromhex(mac) for mac in ("3e89925ab5a7", "3e89925ab5a8", "021122334455"))
MINE, SECOND, ELSE = (IPv6Address(ip) for ip in ("fd00::2", "fd01::2", "fd00::77"))
GUEST, SERVERS = link_local(MAC), IPv6Address("ff02::1:2")
CLIENT = b"\0\3\0\1" + MAC
OFFER = Offer(
    mac=MAC,
    server_mac=BRIDGE,
    mtu=1450,
    search=("corp.example",),
    ipv6=Ipv6((IPv6Interface("fd00::2/64"), IPv6Interface("fd01::2/64")), nameservers=(IPv6Address("fd00::53"),)),
)
SERVER = server_id(OFFER)

options = st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=5).map(tuple)
messages = st.builds(Message, st.integers(0, 255), st.binary(min_size=3, max_size=3), options)


def heard(message: Message, source_mac: bytes = MAC, source: IPv6Address = GUEST, port: int = 547) -> Datagram:
    return Datagram(source_mac, b"\x33\x33\0\1\0\2", source, SERVERS, 546, port, encode(message))


def ia(*ips: IPv6Address, number: int = 1) -> tuple[int, bytes]:
    return Option.IA_NA, association(bytes(3) + bytes([number]), 0, 0, tuple(address(ip, 0) for ip in ips))


def asking(kind: Kind, *more: tuple[int, bytes], client: bool = True, server: bytes | None = None) -> Message:
    found: Options = ((Option.CLIENT_ID, CLIENT),) if client else ()
    if server is not None:
        found += ((Option.SERVER_ID, server),)
    return Message(kind, b"abc", (*found, *more))


def said(message: Message) -> Message:
    frame = answer(OFFER, heard(message))
    assert frame is not None
    datagram = read(frame)
    assert isinstance(datagram, Datagram)
    assert (datagram.source_mac, datagram.mac, datagram.source_port, datagram.port) == (BRIDGE, MAC, 547, 546)
    assert (datagram.source, datagram.destination) == (link_local(BRIDGE), GUEST)
    told = decode(datagram.payload)
    assert told.transaction == b"abc"
    assert told.first(Option.SERVER_ID) == SERVER
    assert told.first(Option.CLIENT_ID) == message.first(Option.CLIENT_ID)
    return told


def lifetimes(message: Message, number: int = 0) -> dict[IPv6Address, int]:
    """The addresses of an association and for how long they are given."""
    value = [value for code, value in message.options if code == Option.IA_NA][number]
    found = {}
    for code, inner in decode_options(value[12:]):
        if code == Option.IA_ADDRESS:
            assert inner[16:20] == inner[20:24]
            found[IPv6Address(inner[:16])] = int.from_bytes(inner[20:24])
    return found


def status(options: Options) -> int | None:
    return next((int.from_bytes(value[:2]) for code, value in options if code == Option.STATUS), None)


@given(messages)
def test_a_message_reads_back(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=300) | messages.map(encode))
def test_whatever_a_client_sends_is_answered_or_refused(payload: bytes) -> None:
    datagram = msgspec.structs.replace(heard(asking(Kind.SOLICIT)), payload=payload)
    try:
        frame = answer(OFFER, datagram)
    except Malformed:
        return
    if frame is not None:
        told = read(frame)
        assert isinstance(told, Datagram)
        assert decode(told.payload).kind in (Kind.ADVERTISE, Kind.REPLY)


@given(st.sampled_from(list(Kind)), st.sampled_from([Option.IA_NA, Option.IA_TA, Option.IA_PD]), st.binary(max_size=60))
def test_whatever_an_association_holds_is_answered_or_refused(kind: Kind, option: Option, value: bytes) -> None:
    for server in (None, SERVER):
        try:
            answer(OFFER, heard(asking(kind, (option, value), server=server)))
        except Malformed:
            continue


@pytest.mark.parametrize(
    "data",
    [b"\1ab", b"\1abc\0\1", b"\1abc\0\1\0\2x", b"\1abc" + encode_options(((1, b""),) * (MAX_OPTIONS + 1))],
    ids=["short", "no length", "cut off", "too many"],
)
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


@pytest.mark.parametrize("value", [b"", bytes(11), bytes(12) + encode_options(((Option.IA_ADDRESS, bytes(23)),))])
def test_an_association_that_is_cut_off_is_refused(value: bytes) -> None:
    with pytest.raises(Malformed):
        decode_association(value)


def test_a_client_gets_every_address_of_its_nic() -> None:
    told = said(asking(Kind.SOLICIT, ia()))
    assert (told.kind, told.first(Option.PREFERENCE)) == (Kind.ADVERTISE, b"\xff")
    for asked in (
        asking(Kind.REQUEST, ia(MINE), server=SERVER),
        asking(Kind.RENEW, ia(MINE, SECOND), server=SERVER),
        asking(Kind.REBIND, ia(MINE)),
        asking(Kind.SOLICIT, ia(), (Option.RAPID_COMMIT, b"")),
    ):
        told = said(asked)
        assert told.kind == Kind.REPLY
        assert lifetimes(told) == {MINE: LEASE_SECONDS, SECOND: LEASE_SECONDS}
        assert told.first(Option.DNS) == IPv6Address("fd00::53").packed
        assert told.first(Option.SEARCH) == b"\4corp\7example\0"
        assert (told.first(Option.RAPID_COMMIT) is not None) == (asked.kind == Kind.SOLICIT)


def test_an_address_that_is_not_the_nics_is_taken_back() -> None:
    told = said(asking(Kind.RENEW, ia(ELSE), server=SERVER))
    assert lifetimes(told) == {MINE: LEASE_SECONDS, SECOND: LEASE_SECONDS, ELSE: 0}


def test_only_the_first_association_gets_addresses() -> None:
    told = said(asking(Kind.SOLICIT, ia(), ia(number=2), (Option.IA_TA, b"\0\0\0\7"), (Option.IA_PD, bytes(12))))
    assert (len(lifetimes(told)), lifetimes(told, 1)) == (2, {})
    inside = {code: value for code, value in told.options if code in (Option.IA_NA, Option.IA_TA, Option.IA_PD)}
    assert status(decode_options(inside[Option.IA_NA][12:])) == Status.NO_ADDRESSES
    assert status(decode_options(inside[Option.IA_TA][4:])) == Status.NO_ADDRESSES
    assert status(decode_options(inside[Option.IA_PD][12:])) == Status.NO_PREFIXES


@pytest.mark.parametrize(
    ("ips", "verdict"), [((MINE,), Status.SUCCESS), ((MINE, ELSE), Status.NOT_ON_LINK), ((), None)]
)
def test_a_client_that_was_away_learns_whether_its_addresses_hold(
    ips: tuple[IPv6Address, ...], verdict: Status | None
) -> None:
    asked = asking(Kind.CONFIRM, ia(*ips))
    if verdict is None:
        assert answer(OFFER, heard(asked)) is None
    else:
        assert status(said(asked).options) == verdict


@pytest.mark.parametrize("kind", [Kind.RELEASE, Kind.DECLINE])
def test_giving_an_address_back_is_noted(kind: Kind) -> None:
    asked = asking(kind, ia(MINE), server=SERVER)
    told = said(asked)
    assert (told.kind, status(told.options), told.first(Option.IA_NA)) == (Kind.REPLY, Status.SUCCESS, None)
    assert declined(heard(asked)) == (kind is Kind.DECLINE)


def test_who_only_informs_itself_gets_no_address() -> None:
    told = said(asking(Kind.INFORMATION_REQUEST, client=False))
    assert (told.kind, told.first(Option.IA_NA)) == (Kind.REPLY, None)
    assert told.first(Option.DNS) is not None


@pytest.mark.parametrize(
    "asked",
    [
        asking(Kind.SOLICIT, ia(), client=False),
        asking(Kind.SOLICIT, ia(), server=SERVER),
        asking(Kind.REQUEST, ia()),
        asking(Kind.REQUEST, ia(), server=b"somebody else"),
        asking(Kind.RENEW, ia(), server=b"somebody else"),
        asking(Kind.REBIND, ia(), server=SERVER),
        asking(Kind.INFORMATION_REQUEST, server=b"somebody else"),
        asking(Kind.ADVERTISE, ia()),
        asking(Kind.REPLY, ia(), server=SERVER),
        Message(12, b"abc", ((Option.CLIENT_ID, CLIENT),)),
    ],
)
def test_what_is_not_meant_for_this_server_is_not_answered(asked: Message) -> None:
    assert answer(OFFER, heard(asked)) is None


def test_nobody_but_the_guest_is_answered() -> None:
    asked = asking(Kind.SOLICIT, ia())
    assert answer(OFFER, heard(asked)) is not None
    assert answer(OFFER, heard(asked, source_mac=OTHER)) is None
    assert answer(OFFER, heard(asked, source=MINE)) is None
    assert answer(OFFER, heard(asked, port=546)) is None
    assert answer(msgspec.structs.replace(OFFER, ipv6=None), heard(asked)) is None


def test_the_server_is_the_same_after_a_restart() -> None:
    assert server_id(OFFER) == b"\0\3\0\1" + BRIDGE
