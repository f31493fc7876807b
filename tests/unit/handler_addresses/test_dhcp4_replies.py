"""DHCPv4 replies: the guest always gets the address of its NIC, and nobody else gets a reply."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses.dhcp.dhcp4 import (
    BROADCAST_FLAG,
    Dhcp4Message,
    Dhcp4MessageType,
    Dhcp4Option,
    decode,
    encode,
)
from services.handler.addresses.dhcp.dhcp4_replies import build_reply, is_decline
from services.handler.addresses.offer import LEASE_SECONDS, Ipv4Offer, Offer
from services.handler.addresses.packets.frames import BROADCAST, Datagram, MalformedPacket, parse_frame

MAC, OTHER_MAC, BRIDGE = (bytes.fromhex(mac) for mac in ("3e89925ab5a7", "3e89925ab5a8", "021122334455"))
OFFERED, SERVER, OTHER_ADDRESS = IPv4Address("10.0.0.2"), IPv4Address("169.254.75.11"), IPv4Address("10.0.0.7")
LIMITED_BROADCAST, UNSPECIFIED = IPv4Address("255.255.255.255"), IPv4Address("0.0.0.0")

OFFER = Offer(
    mac=MAC,
    server_mac=BRIDGE,
    mtu=1450,
    hostname="vm1",
    domain="corp.example",
    search=("corp.example", "example"),
    ipv4=Ipv4Offer(
        server=SERVER,
        address=IPv4Interface("10.0.0.2/24"),
        router=IPv4Address("10.0.0.1"),
        routes=(
            (IPv4Network("10.1.0.0/16"), IPv4Address("10.0.0.9")),
            (IPv4Network("0.0.0.0/0"), IPv4Address("10.0.0.1")),
        ),
        nameservers=(IPv4Address("10.0.0.53"),),
    ),
)


def make_request(
    message_type: Dhcp4MessageType, *, flags: int = 0, ciaddr: IPv4Address = UNSPECIFIED, **options: IPv4Address
) -> Dhcp4Message:
    raw: dict[int, bytes] = {Dhcp4Option.MESSAGE_TYPE: bytes([message_type])}
    raw |= {Dhcp4Option[name.upper()]: address.packed for name, address in options.items()}
    return Dhcp4Message(1, 0x1234, MAC, flags=flags, ciaddr=ciaddr, options=raw)


def as_datagram(message: Dhcp4Message, source_mac: bytes = MAC, port: int = 67) -> Datagram:
    return Datagram(source_mac, BROADCAST, UNSPECIFIED, LIMITED_BROADCAST, 68, port, encode(message))


def parse_reply(frame: bytes | None) -> tuple[Datagram, Dhcp4Message]:
    assert frame is not None
    datagram = parse_frame(frame)
    assert isinstance(datagram, Datagram)
    return datagram, decode(datagram.payload)


def reply_to(message: Dhcp4Message) -> tuple[Datagram, Dhcp4Message]:
    return parse_reply(build_reply(OFFER, as_datagram(message)))


def assert_no_reply(message: Dhcp4Message, source_mac: bytes = MAC, port: int = 67) -> None:
    assert build_reply(OFFER, as_datagram(message, source_mac, port)) is None


def test_offer_and_ack_carry_the_whole_configuration() -> None:
    for client_message, message_type in (
        (make_request(Dhcp4MessageType.DISCOVER), Dhcp4MessageType.OFFER),
        (make_request(Dhcp4MessageType.REQUEST, requested_address=OFFERED), Dhcp4MessageType.ACK),
    ):
        datagram, message = reply_to(client_message)
        assert (message.op, message.xid, message.message_type, message.yiaddr, message.chaddr) == (
            2,
            0x1234,
            message_type,
            OFFERED,
            MAC,
        )
        assert (datagram.source_mac, datagram.source, datagram.source_port, datagram.destination_port) == (
            BRIDGE,
            SERVER,
            67,
            68,
        )
        assert message.options == {
            Dhcp4Option.MESSAGE_TYPE: bytes([message_type]),
            Dhcp4Option.SERVER_ID: SERVER.packed,
            Dhcp4Option.LEASE_TIME: LEASE_SECONDS.to_bytes(4),
            Dhcp4Option.SUBNET_MASK: b"\xff\xff\xff\0",
            Dhcp4Option.ROUTER: b"\x0a\0\0\1",
            Dhcp4Option.CLASSLESS_ROUTES: b"\x10\x0a\1\x0a\0\0\x09\0\x0a\0\0\1",
            Dhcp4Option.MTU: (1450).to_bytes(2),
            Dhcp4Option.DNS: b"\x0a\0\0\x35",
            Dhcp4Option.HOSTNAME: b"vm1",
            Dhcp4Option.DOMAIN: b"corp.example",
            Dhcp4Option.SEARCH: b"\4corp\7example\0\7example\0",
        }


def test_options_without_a_value_are_left_out() -> None:
    bare = Offer(mac=MAC, server_mac=BRIDGE, mtu=70000, ipv4=Ipv4Offer(SERVER, IPv4Interface("10.0.0.2/24")))
    _, message = parse_reply(build_reply(bare, as_datagram(make_request(Dhcp4MessageType.DISCOVER))))
    assert set(message.options) == {
        Dhcp4Option.MESSAGE_TYPE,
        Dhcp4Option.SERVER_ID,
        Dhcp4Option.LEASE_TIME,
        Dhcp4Option.SUBNET_MASK,
    }


@pytest.mark.parametrize(
    ("client_message", "reply_type"),
    [
        (make_request(Dhcp4MessageType.REQUEST, requested_address=OFFERED, server_id=SERVER), Dhcp4MessageType.ACK),
        (
            make_request(Dhcp4MessageType.REQUEST, requested_address=OTHER_ADDRESS, server_id=SERVER),
            Dhcp4MessageType.NAK,
        ),
        (make_request(Dhcp4MessageType.REQUEST, requested_address=OFFERED, server_id=OTHER_ADDRESS), None),
        (make_request(Dhcp4MessageType.REQUEST, requested_address=OFFERED), Dhcp4MessageType.ACK),
        (make_request(Dhcp4MessageType.REQUEST, requested_address=OTHER_ADDRESS), Dhcp4MessageType.NAK),
        (make_request(Dhcp4MessageType.REQUEST, ciaddr=OFFERED), Dhcp4MessageType.ACK),
        (make_request(Dhcp4MessageType.REQUEST, ciaddr=OTHER_ADDRESS), Dhcp4MessageType.NAK),
        (make_request(Dhcp4MessageType.REQUEST), Dhcp4MessageType.NAK),
        (make_request(Dhcp4MessageType.INFORM, ciaddr=OFFERED), Dhcp4MessageType.ACK),
        (make_request(Dhcp4MessageType.DECLINE, requested_address=OFFERED, server_id=SERVER), None),
        (make_request(Dhcp4MessageType.RELEASE, ciaddr=OFFERED, server_id=SERVER), None),
        (make_request(Dhcp4MessageType.OFFER), None),
        (Dhcp4Message(1, 7, MAC), None),
    ],
    ids=[
        "selecting", "selecting another address", "selecting another server", "init-reboot",
        "init-reboot with an old address", "renewal", "renewal of an old address", "request without an address",
        "inform", "decline", "release", "offer", "bootp",
    ],
)  # fmt: skip
def test_reply_to_each_message_type(client_message: Dhcp4Message, reply_type: Dhcp4MessageType | None) -> None:
    if reply_type is None:
        assert_no_reply(client_message)
    else:
        assert reply_to(client_message)[1].message_type is reply_type


def test_reply_to_inform_has_neither_address_nor_lease_time() -> None:
    datagram, message = reply_to(make_request(Dhcp4MessageType.INFORM, ciaddr=OTHER_ADDRESS))
    assert (message.yiaddr, datagram.destination) == (UNSPECIFIED, OTHER_ADDRESS)
    assert Dhcp4Option.LEASE_TIME not in message.options
    assert Dhcp4Option.DNS in message.options


def test_nak_carries_only_the_reason() -> None:
    datagram, message = reply_to(make_request(Dhcp4MessageType.REQUEST, ciaddr=OTHER_ADDRESS))
    assert set(message.options) == {Dhcp4Option.MESSAGE_TYPE, Dhcp4Option.SERVER_ID, Dhcp4Option.MESSAGE}
    assert b"10.0.0.2" in message.options[Dhcp4Option.MESSAGE]
    assert (message.yiaddr, message.ciaddr, datagram.destination, datagram.destination_mac) == (
        UNSPECIFIED,
        UNSPECIFIED,
        LIMITED_BROADCAST,
        BROADCAST,
    )


@pytest.mark.parametrize(
    ("client_message", "mac", "destination"),
    [
        (make_request(Dhcp4MessageType.DISCOVER), MAC, OFFERED),
        (make_request(Dhcp4MessageType.DISCOVER, flags=BROADCAST_FLAG), BROADCAST, LIMITED_BROADCAST),
        (make_request(Dhcp4MessageType.REQUEST, ciaddr=OFFERED), MAC, OFFERED),
        (make_request(Dhcp4MessageType.REQUEST, ciaddr=OFFERED, flags=BROADCAST_FLAG), MAC, OFFERED),
    ],
    ids=["new client", "a client that cannot receive unicast yet", "renewal", "renewal with the broadcast flag"],
)
def test_destination_of_a_reply(client_message: Dhcp4Message, mac: bytes, destination: IPv4Address) -> None:
    datagram, message = reply_to(client_message)
    assert (datagram.destination_mac, datagram.destination) == (mac, destination)
    assert message.flags == client_message.flags


def test_client_identifier_is_returned() -> None:
    client_message = make_request(Dhcp4MessageType.DISCOVER)
    client_message = msgspec.structs.replace(
        client_message, options={**client_message.options, Dhcp4Option.CLIENT_ID: b"\1me"}
    )
    assert reply_to(client_message)[1].options[Dhcp4Option.CLIENT_ID] == b"\1me"


def test_only_the_guest_gets_a_reply() -> None:
    client_message = make_request(Dhcp4MessageType.DISCOVER)
    assert_no_reply(client_message, source_mac=OTHER_MAC)
    assert_no_reply(client_message, port=68)
    assert_no_reply(msgspec.structs.replace(client_message, chaddr=OTHER_MAC))
    assert_no_reply(msgspec.structs.replace(client_message, giaddr=IPv4Address("10.0.0.9")))
    assert_no_reply(msgspec.structs.replace(client_message, op=2))
    ipv6_only = msgspec.structs.replace(OFFER, ipv4=None)
    assert build_reply(ipv6_only, as_datagram(client_message)) is None


def test_decline_is_recognized() -> None:
    assert is_decline(as_datagram(make_request(Dhcp4MessageType.DECLINE, requested_address=OFFERED)))
    assert not is_decline(as_datagram(make_request(Dhcp4MessageType.RELEASE)))


@given(
    st.binary(max_size=600)
    | st.builds(lambda tail: encode(make_request(Dhcp4MessageType.REQUEST))[:240] + tail, st.binary(max_size=300))
)
def test_arbitrary_payload_is_answered_or_refused(payload: bytes) -> None:
    datagram = Datagram(MAC, BROADCAST, UNSPECIFIED, LIMITED_BROADCAST, 68, 67, payload)
    try:
        frame = build_reply(OFFER, datagram)
    except MalformedPacket:
        return
    if frame is not None:
        assert parse_reply(frame)[1].message_type in {
            Dhcp4MessageType.OFFER,
            Dhcp4MessageType.ACK,
            Dhcp4MessageType.NAK,
        }
