"""DHCPv6: encoding is reversible, arbitrary input is parsed or refused, and each message gets its reply."""

from ipaddress import IPv6Address, IPv6Interface

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses.dhcp.dhcp6 import (
    MAX_OPTIONS,
    Dhcp6Message,
    Dhcp6MessageType,
    Dhcp6Option,
    Dhcp6Options,
    Dhcp6Status,
    address_option,
    decode,
    decode_association,
    decode_options,
    encode,
    encode_association,
    encode_options,
)
from services.handler.addresses.dhcp.dhcp6_replies import build_reply, is_decline, server_id
from services.handler.addresses.neighbours import link_local
from services.handler.addresses.offer import LEASE_SECONDS, Ipv6Offer, Offer
from services.handler.addresses.packets.frames import Datagram, MalformedPacket, parse_frame

MAC, OTHER_MAC, BRIDGE = (bytes.fromhex(mac) for mac in ("3e89925ab5a7", "3e89925ab5a8", "021122334455"))
OFFERED, SECOND, OTHER_ADDRESS = (IPv6Address(ip) for ip in ("fd00::2", "fd01::2", "fd00::77"))
GUEST, SERVERS = link_local(MAC), IPv6Address("ff02::1:2")
CLIENT = b"\0\3\0\1" + MAC
OFFER = Offer(
    mac=MAC,
    server_mac=BRIDGE,
    mtu=1450,
    search=("corp.example",),
    ipv6=Ipv6Offer((IPv6Interface("fd00::2/64"), IPv6Interface("fd01::2/64")), nameservers=(IPv6Address("fd00::53"),)),
)
SERVER = server_id(OFFER)

options = st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=5).map(tuple)
messages = st.builds(Dhcp6Message, st.integers(0, 255), st.binary(min_size=3, max_size=3), options)


def as_datagram(
    message: Dhcp6Message, source_mac: bytes = MAC, source: IPv6Address = GUEST, port: int = 547
) -> Datagram:
    return Datagram(source_mac, b"\x33\x33\0\1\0\2", source, SERVERS, 546, port, encode(message))


def ia(*ips: IPv6Address, number: int = 1) -> tuple[int, bytes]:
    return Dhcp6Option.IA_NA, encode_association(
        bytes(3) + bytes([number]), 0, 0, tuple(address_option(ip, 0) for ip in ips)
    )


def make_request(
    message_type: Dhcp6MessageType, *more: tuple[int, bytes], client: bool = True, server: bytes | None = None
) -> Dhcp6Message:
    found: Dhcp6Options = ((Dhcp6Option.CLIENT_ID, CLIENT),) if client else ()
    if server is not None:
        found += ((Dhcp6Option.SERVER_ID, server),)
    return Dhcp6Message(message_type, b"abc", (*found, *more))


def reply_to(message: Dhcp6Message) -> Dhcp6Message:
    frame = build_reply(OFFER, as_datagram(message))
    assert frame is not None
    datagram = parse_frame(frame)
    assert isinstance(datagram, Datagram)
    assert (datagram.source_mac, datagram.destination_mac, datagram.source_port, datagram.destination_port) == (
        BRIDGE,
        MAC,
        547,
        546,
    )
    assert (datagram.source, datagram.destination) == (link_local(BRIDGE), GUEST)
    reply = decode(datagram.payload)
    assert reply.transaction == b"abc"
    assert reply.first(Dhcp6Option.SERVER_ID) == SERVER
    assert reply.first(Dhcp6Option.CLIENT_ID) == message.first(Dhcp6Option.CLIENT_ID)
    return reply


def lifetimes(message: Dhcp6Message, number: int = 0) -> dict[IPv6Address, int]:
    """Return the addresses of an association with their lifetimes."""
    value = [value for code, value in message.options if code == Dhcp6Option.IA_NA][number]
    found = {}
    for code, inner in decode_options(value[12:]):
        if code == Dhcp6Option.IA_ADDRESS:
            assert inner[16:20] == inner[20:24]
            found[IPv6Address(inner[:16])] = int.from_bytes(inner[20:24])
    return found


def status(options: Dhcp6Options) -> int | None:
    return next((int.from_bytes(value[:2]) for code, value in options if code == Dhcp6Option.STATUS), None)


@given(messages)
def test_message_survives_encode_and_decode(message: Dhcp6Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=300) | messages.map(encode))
def test_arbitrary_payload_is_answered_or_refused(payload: bytes) -> None:
    datagram = msgspec.structs.replace(as_datagram(make_request(Dhcp6MessageType.SOLICIT)), payload=payload)
    try:
        frame = build_reply(OFFER, datagram)
    except MalformedPacket:
        return
    if frame is not None:
        reply = parse_frame(frame)
        assert isinstance(reply, Datagram)
        assert decode(reply.payload).message_type in (Dhcp6MessageType.ADVERTISE, Dhcp6MessageType.REPLY)


@given(
    st.sampled_from(list(Dhcp6MessageType)),
    st.sampled_from([Dhcp6Option.IA_NA, Dhcp6Option.IA_TA, Dhcp6Option.IA_PD]),
    st.binary(max_size=60),
)
def test_arbitrary_association_is_answered_or_refused(
    message_type: Dhcp6MessageType, option: Dhcp6Option, value: bytes
) -> None:
    for server in (None, SERVER):
        try:
            build_reply(OFFER, as_datagram(make_request(message_type, (option, value), server=server)))
        except MalformedPacket:
            continue


@pytest.mark.parametrize(
    "data",
    [b"\1ab", b"\1abc\0\1", b"\1abc\0\1\0\2x", b"\1abc" + encode_options(((1, b""),) * (MAX_OPTIONS + 1))],
    ids=["short", "no length", "cut off", "too many"],
)
def test_malformed_message_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode(data)


@pytest.mark.parametrize("value", [b"", bytes(11), bytes(12) + encode_options(((Dhcp6Option.IA_ADDRESS, bytes(23)),))])
def test_association_that_is_cut_off_is_refused(value: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode_association(value)


def test_client_gets_every_address_of_its_nic() -> None:
    reply = reply_to(make_request(Dhcp6MessageType.SOLICIT, ia()))
    assert (reply.message_type, reply.first(Dhcp6Option.PREFERENCE)) == (Dhcp6MessageType.ADVERTISE, b"\xff")
    for client_message in (
        make_request(Dhcp6MessageType.REQUEST, ia(OFFERED), server=SERVER),
        make_request(Dhcp6MessageType.RENEW, ia(OFFERED, SECOND), server=SERVER),
        make_request(Dhcp6MessageType.REBIND, ia(OFFERED)),
        make_request(Dhcp6MessageType.SOLICIT, ia(), (Dhcp6Option.RAPID_COMMIT, b"")),
    ):
        reply = reply_to(client_message)
        assert reply.message_type == Dhcp6MessageType.REPLY
        assert lifetimes(reply) == {OFFERED: LEASE_SECONDS, SECOND: LEASE_SECONDS}
        assert reply.first(Dhcp6Option.DNS) == IPv6Address("fd00::53").packed
        assert reply.first(Dhcp6Option.SEARCH) == b"\4corp\7example\0"
        assert (reply.first(Dhcp6Option.RAPID_COMMIT) is not None) == (
            client_message.message_type == Dhcp6MessageType.SOLICIT
        )


def test_address_of_another_nic_gets_lifetime_zero() -> None:
    reply = reply_to(make_request(Dhcp6MessageType.RENEW, ia(OTHER_ADDRESS), server=SERVER))
    assert lifetimes(reply) == {OFFERED: LEASE_SECONDS, SECOND: LEASE_SECONDS, OTHER_ADDRESS: 0}


def test_only_the_first_association_gets_addresses() -> None:
    reply = reply_to(
        make_request(
            Dhcp6MessageType.SOLICIT,
            ia(),
            ia(number=2),
            (Dhcp6Option.IA_TA, b"\0\0\0\7"),
            (Dhcp6Option.IA_PD, bytes(12)),
        )
    )
    assert (len(lifetimes(reply)), lifetimes(reply, 1)) == (2, {})
    inside = {
        code: value
        for code, value in reply.options
        if code in (Dhcp6Option.IA_NA, Dhcp6Option.IA_TA, Dhcp6Option.IA_PD)
    }
    assert status(decode_options(inside[Dhcp6Option.IA_NA][12:])) == Dhcp6Status.NO_ADDRESSES
    assert status(decode_options(inside[Dhcp6Option.IA_TA][4:])) == Dhcp6Status.NO_ADDRESSES
    assert status(decode_options(inside[Dhcp6Option.IA_PD][12:])) == Dhcp6Status.NO_PREFIXES


@pytest.mark.parametrize(
    (("ips", "expected")),
    [((OFFERED,), Dhcp6Status.SUCCESS), ((OFFERED, OTHER_ADDRESS), Dhcp6Status.NOT_ON_LINK), ((), None)],
)
def test_confirm_returns_whether_the_addresses_are_valid(
    ips: tuple[IPv6Address, ...], expected: Dhcp6Status | None
) -> None:
    client_message = make_request(Dhcp6MessageType.CONFIRM, ia(*ips))
    if expected is None:
        assert build_reply(OFFER, as_datagram(client_message)) is None
    else:
        assert status(reply_to(client_message).options) == expected


@pytest.mark.parametrize("message_type", [Dhcp6MessageType.RELEASE, Dhcp6MessageType.DECLINE])
def test_release_and_decline_get_a_success_status(message_type: Dhcp6MessageType) -> None:
    client_message = make_request(message_type, ia(OFFERED), server=SERVER)
    reply = reply_to(client_message)
    assert (reply.message_type, status(reply.options), reply.first(Dhcp6Option.IA_NA)) == (
        Dhcp6MessageType.REPLY,
        Dhcp6Status.SUCCESS,
        None,
    )
    assert is_decline(as_datagram(client_message)) == (message_type is Dhcp6MessageType.DECLINE)


def test_reply_to_information_request_has_no_address() -> None:
    reply = reply_to(make_request(Dhcp6MessageType.INFORMATION_REQUEST, client=False))
    assert (reply.message_type, reply.first(Dhcp6Option.IA_NA)) == (Dhcp6MessageType.REPLY, None)
    assert reply.first(Dhcp6Option.DNS) is not None


@pytest.mark.parametrize(
    "client_message",
    [
        make_request(Dhcp6MessageType.SOLICIT, ia(), client=False),
        make_request(Dhcp6MessageType.SOLICIT, ia(), server=SERVER),
        make_request(Dhcp6MessageType.REQUEST, ia()),
        make_request(Dhcp6MessageType.REQUEST, ia(), server=b"another server"),
        make_request(Dhcp6MessageType.RENEW, ia(), server=b"another server"),
        make_request(Dhcp6MessageType.REBIND, ia(), server=SERVER),
        make_request(Dhcp6MessageType.INFORMATION_REQUEST, server=b"another server"),
        make_request(Dhcp6MessageType.ADVERTISE, ia()),
        make_request(Dhcp6MessageType.REPLY, ia(), server=SERVER),
        Dhcp6Message(12, b"abc", ((Dhcp6Option.CLIENT_ID, CLIENT),)),
    ],
)
def test_message_that_is_not_for_this_server_gets_no_reply(client_message: Dhcp6Message) -> None:
    assert build_reply(OFFER, as_datagram(client_message)) is None


def test_only_the_guest_gets_a_reply() -> None:
    client_message = make_request(Dhcp6MessageType.SOLICIT, ia())
    assert build_reply(OFFER, as_datagram(client_message)) is not None
    assert build_reply(OFFER, as_datagram(client_message, source_mac=OTHER_MAC)) is None
    assert build_reply(OFFER, as_datagram(client_message, source=OFFERED)) is None
    assert build_reply(OFFER, as_datagram(client_message, port=546)) is None
    assert build_reply(msgspec.structs.replace(OFFER, ipv6=None), as_datagram(client_message)) is None


def test_server_id_depends_only_on_the_bridge_mac() -> None:
    assert server_id(OFFER) == b"\0\3\0\1" + BRIDGE
