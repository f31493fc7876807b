"""DHCPv4 messages and their frames: encoding is reversible, and arbitrary input is parsed or refused."""

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses.dhcp.dhcp4 import (
    Dhcp4Message,
    Dhcp4MessageType,
    Dhcp4Option,
    classless_routes,
    decode,
    encode,
)
from services.handler.addresses.dhcp.names import encode_domains
from services.handler.addresses.packets.frames import Datagram, MalformedPacket, build_frame, checksum, parse_frame

MAC = bytes.fromhex("3e89925ab5a7")

ipv4 = st.integers(0, 0xFFFFFFFF).map(IPv4Address)
ipv6 = st.integers(0, (1 << 128) - 1).map(IPv6Address)
macs = st.binary(min_size=6, max_size=6)
ports = st.integers(0, 0xFFFF)
options = st.dictionaries(st.integers(1, 254), st.binary(max_size=300), max_size=3)
messages = st.builds(
    Dhcp4Message,
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


def parse_or_refuse(data: bytes) -> None:
    try:
        packet = parse_frame(data)
        if isinstance(packet, Datagram):
            decode(packet.payload)
    except MalformedPacket:
        return


@given(messages)
def test_message_survives_encode_and_decode(message: Dhcp4Message) -> None:
    assert decode(encode(message, 1472)) == message


@given(datagrams)
def test_datagram_survives_build_and_parse(datagram: Datagram) -> None:
    assert parse_frame(build_frame(datagram)) == datagram


@given(datagrams)
def test_frame_has_valid_checksums(datagram: Datagram) -> None:
    packet = build_frame(datagram)[14:]
    source, destination = datagram.source.packed, datagram.destination.packed
    if datagram.source.version == 4:
        assert checksum(packet[:20]) == 0
    body = packet[20 if datagram.source.version == 4 else 40 :]
    assert checksum(source + destination + struct.pack("!II", len(body), 17) + body) == 0


@given(st.binary(max_size=700))
def test_arbitrary_bytes_raise_only_malformed_packet(data: bytes) -> None:
    parse_or_refuse(data)
    try:
        decode(data)
    except MalformedPacket:
        return


@given(messages, st.data())
def test_corrupted_frame_is_parsed_or_refused(message: Dhcp4Message, data: st.DataObject) -> None:
    frame = bytearray(build_frame(Datagram(MAC, MAC, IPv4Address(0), IPv4Address(1), 68, 67, encode(message, 1472))))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    parse_or_refuse(bytes(frame[: data.draw(st.integers(0, len(frame)))]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({0: 3}, "operation"),
        ({1: 6}, "operation"),
        ({2: 16}, "operation"),
        ({236: 0}, "BOOTP"),
        ({241: 200}, "cut off"),
    ],
)
def test_malformed_message_error_names_the_reason(changes: dict[int, int], reason: str) -> None:
    data = bytearray(encode(Dhcp4Message(1, 7, MAC, options={Dhcp4Option.MESSAGE_TYPE: b"\1"}))[:243])
    for at, value in changes.items():
        data[at] = value
    with pytest.raises(MalformedPacket, match=reason):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("raw", "message_type"), [(b"\1", Dhcp4MessageType.DISCOVER), (b"\x63", None), (b"", None), (b"\1\1", None)]
)
def test_message_type_of_option_53(raw: bytes, message_type: Dhcp4MessageType | None) -> None:
    assert Dhcp4Message(1, 7, MAC, options={Dhcp4Option.MESSAGE_TYPE: raw}).message_type is message_type


def test_address_option_of_wrong_length_is_refused() -> None:
    with pytest.raises(MalformedPacket, match="expected an IPv4 address"):
        Dhcp4Message(1, 7, MAC, options={Dhcp4Option.REQUESTED_ADDRESS: b"\1\2\3"}).address(
            Dhcp4Option.REQUESTED_ADDRESS
        )


@pytest.mark.parametrize(
    ("requested", "size"), [(None, 548), (b"\x01\x00", 548), (b"\x04\x00", 996), (b"\xff\xff", 1472), (b"\x04", 548)]
)
def test_max_size_follows_the_clients_limit(requested: bytes | None, size: int) -> None:
    message = Dhcp4Message(1, 7, MAC, options={} if requested is None else {Dhcp4Option.MAX_MESSAGE_SIZE: requested})
    assert message.max_size() == size


def test_options_that_do_not_fit_are_left_out_whole() -> None:
    options: dict[int, bytes] = {
        Dhcp4Option.MESSAGE_TYPE: b"\2",
        Dhcp4Option.CLASSLESS_ROUTES: bytes(400),
        Dhcp4Option.MTU: b"\5\xdc",
    }
    sent = encode(Dhcp4Message(2, 7, MAC, options=options), 548)
    assert len(sent) <= 548
    assert decode(sent).options == {Dhcp4Option.MESSAGE_TYPE: b"\2", Dhcp4Option.MTU: b"\5\xdc"}


def test_messages_have_the_bootp_minimum_size() -> None:
    assert len(encode(Dhcp4Message(2, 7, MAC))) == 300


def test_classless_routes_contain_only_significant_octets() -> None:
    hop = IPv4Address("10.0.0.1")
    routes = [(IPv4Network(net), hop) for net in ("10.1.2.0/24", "10.0.0.0/8", "10.1.0.0/17", "0.0.0.0/0")]
    assert classless_routes(routes).hex(" ") == (
        "18 0a 01 02 0a 00 00 01 08 0a 0a 00 00 01 11 0a 01 00 0a 00 00 01 00 0a 00 00 01"
    )


def test_domains_that_dns_cannot_encode_are_left_out() -> None:
    assert encode_domains(["corp.example.", "", "a" * 64, ".".join(["b" * 50] * 6), "x"]) == b"\4corp\7example\0\1x\0"
