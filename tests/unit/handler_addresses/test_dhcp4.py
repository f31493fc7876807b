"""DHCPv4 messages and their frames: what is built reads back, and whatever comes is read or refused."""

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses.dhcp4 import Kind, Message, Option, classless_routes, decode, encode
from services.handler.addresses.frames import Datagram, Malformed, build, checksum, read
from services.handler.addresses.names import dns_names

MAC = bytes.fromhex("3e89925ab5a7")

ipv4 = st.integers(0, 0xFFFFFFFF).map(IPv4Address)
ipv6 = st.integers(0, (1 << 128) - 1).map(IPv6Address)
macs = st.binary(min_size=6, max_size=6)
ports = st.integers(0, 0xFFFF)
options = st.dictionaries(st.integers(1, 254), st.binary(max_size=300), max_size=3)
messages = st.builds(
    Message,
    op=st.sampled_from([1, 2]),
    xid=st.integers(0, 0xFFFFFFFF),
    chaddr=macs,
    flags=ports,
    ciaddr=ipv4,
    yiaddr=ipv4,
    giaddr=ipv4,
    options=options,
)
datagrams = st.builds(Datagram, macs, macs, ipv4, ipv4, ports, ports, st.binary(max_size=600)) | st.builds(
    Datagram, macs, macs, ipv6, ipv6, ports, ports, st.binary(max_size=600)
)


def whatever(data: bytes) -> None:
    try:
        packet = read(data)
        if isinstance(packet, Datagram):
            decode(packet.payload)
    except Malformed:
        return


@given(messages)
def test_a_message_reads_back(message: Message) -> None:
    assert decode(encode(message, 1472)) == message


@given(datagrams)
def test_a_datagram_reads_back_from_its_frame(datagram: Datagram) -> None:
    assert read(build(datagram)) == datagram


@given(datagrams)
def test_a_frame_carries_right_checksums(datagram: Datagram) -> None:
    packet = build(datagram)[14:]
    source, destination = datagram.source.packed, datagram.destination.packed
    if datagram.source.version == 4:
        assert checksum(packet[:20]) == 0
    body = packet[20 if datagram.source.version == 4 else 40 :]
    assert checksum(source + destination + struct.pack("!II", len(body), 17) + body) == 0


@given(st.binary(max_size=700))
def test_whatever_bytes_come_are_refused_in_one_way(data: bytes) -> None:
    whatever(data)
    try:
        decode(data)
    except Malformed:
        return


@given(messages, st.data())
def test_a_frame_that_was_tampered_with_is_read_or_refused(message: Message, data: st.DataObject) -> None:
    frame = bytearray(build(Datagram(MAC, MAC, IPv4Address(0), IPv4Address(1), 68, 67, encode(message, 1472))))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    whatever(bytes(frame[: data.draw(st.integers(0, len(frame)))]))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({0: 3}, "operation"),
        ({1: 6}, "operation"),
        ({2: 16}, "operation"),
        ({236: 0}, "BOOTP"),
        ({241: 200}, "cut off"),
    ],
)
def test_what_is_no_message_says_why(changes: dict[int, int], why: str) -> None:
    data = bytearray(encode(Message(1, 7, MAC, options={Option.KIND: b"\1"}))[:243])
    for at, value in changes.items():
        data[at] = value
    with pytest.raises(Malformed, match=why):
        decode(bytes(data))


@pytest.mark.parametrize(("raw", "kind"), [(b"\1", Kind.DISCOVER), (b"\x63", None), (b"", None), (b"\1\1", None)])
def test_the_kind_of_a_message(raw: bytes, kind: Kind | None) -> None:
    assert Message(1, 7, MAC, options={Option.KIND: raw}).kind is kind


def test_an_address_of_another_length_is_refused() -> None:
    with pytest.raises(Malformed, match="should be an address"):
        Message(1, 7, MAC, options={Option.REQUESTED: b"\1\2\3"}).address(Option.REQUESTED)


@pytest.mark.parametrize(
    ("asked", "limit"), [(None, 548), (b"\x01\x00", 548), (b"\x04\x00", 996), (b"\xff\xff", 1472), (b"\x04", 548)]
)
def test_a_client_is_sent_what_it_can_take(asked: bytes | None, limit: int) -> None:
    message = Message(1, 7, MAC, options={} if asked is None else {Option.MAX_SIZE: asked})
    assert message.limit() == limit


def test_options_that_do_not_fit_are_left_out_and_the_others_stay_whole() -> None:
    options: dict[int, bytes] = {Option.KIND: b"\2", Option.CLASSLESS_ROUTES: bytes(400), Option.MTU: b"\5\xdc"}
    sent = encode(Message(2, 7, MAC, options=options), 548)
    assert len(sent) <= 548
    assert decode(sent).options == {Option.KIND: b"\2", Option.MTU: b"\5\xdc"}


def test_no_message_is_shorter_than_what_old_clients_want() -> None:
    assert len(encode(Message(2, 7, MAC))) == 300


def test_classless_routes_have_only_the_bytes_that_count() -> None:
    hop = IPv4Address("10.0.0.1")
    routes = [(IPv4Network(net), hop) for net in ("10.1.2.0/24", "10.0.0.0/8", "10.1.0.0/17", "0.0.0.0/0")]
    assert classless_routes(routes).hex(" ") == (
        "18 0a 01 02 0a 00 00 01 08 0a 0a 00 00 01 11 0a 01 00 0a 00 00 01 00 0a 00 00 01"
    )


def test_names_that_dns_cannot_carry_are_left_out() -> None:
    assert dns_names(["corp.example.", "", "a" * 64, ".".join(["b" * 50] * 6), "x"]) == b"\4corp\7example\0\1x\0"
