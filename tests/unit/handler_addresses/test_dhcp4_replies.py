"""A DHCPv4 client is given the address of its NIC, whatever it asks for, and nobody else is given anything."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses.dhcp4 import BROADCAST_FLAG, Kind, Message, Option, decode, encode
from services.handler.addresses.dhcp4_replies import answer, declined
from services.handler.addresses.frames import BROADCAST, Datagram, Malformed, read
from services.handler.addresses.offer import LEASE_SECONDS, Ipv4, Offer

MAC, OTHER, BRIDGE = (bytes.fromhex(mac) for mac in ("3e89925ab5a7", "3e89925ab5a8", "021122334455"))
MINE, SERVER, ELSE = IPv4Address("10.0.0.2"), IPv4Address("169.254.75.11"), IPv4Address("10.0.0.7")
EVERYWHERE, NOWHERE = IPv4Address("255.255.255.255"), IPv4Address("0.0.0.0")

OFFER = Offer(
    mac=MAC,
    server_mac=BRIDGE,
    mtu=1450,
    hostname="vm1",
    domain="corp.example",
    search=("corp.example", "example"),
    ipv4=Ipv4(
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


def asking(kind: Kind, *, flags: int = 0, ciaddr: IPv4Address = NOWHERE, **options: IPv4Address) -> Message:
    raw: dict[int, bytes] = {Option.KIND: bytes([kind])}
    raw |= {Option[name.upper()]: address.packed for name, address in options.items()}
    return Message(1, 0x1234, MAC, flags=flags, ciaddr=ciaddr, options=raw)


def heard(message: Message, source_mac: bytes = MAC, port: int = 67) -> Datagram:
    return Datagram(source_mac, BROADCAST, NOWHERE, EVERYWHERE, 68, port, encode(message))


def told(frame: bytes | None) -> tuple[Datagram, Message]:
    assert frame is not None
    datagram = read(frame)
    assert isinstance(datagram, Datagram)
    return datagram, decode(datagram.payload)


def said(message: Message) -> tuple[Datagram, Message]:
    return told(answer(OFFER, heard(message)))


def silent(message: Message, source_mac: bytes = MAC, port: int = 67) -> None:
    assert answer(OFFER, heard(message, source_mac, port)) is None


def test_an_offer_and_an_acknowledgement_say_all_there_is() -> None:
    for asked, kind in ((asking(Kind.DISCOVER), Kind.OFFER), (asking(Kind.REQUEST, requested=MINE), Kind.ACK)):
        datagram, message = said(asked)
        assert (message.op, message.xid, message.kind, message.yiaddr, message.chaddr) == (2, 0x1234, kind, MINE, MAC)
        assert (datagram.source_mac, datagram.source, datagram.source_port, datagram.port) == (BRIDGE, SERVER, 67, 68)
        assert message.options == {
            Option.KIND: bytes([kind]),
            Option.SERVER: SERVER.packed,
            Option.LEASE_TIME: LEASE_SECONDS.to_bytes(4),
            Option.MASK: b"\xff\xff\xff\0",
            Option.ROUTER: b"\x0a\0\0\1",
            Option.CLASSLESS_ROUTES: b"\x10\x0a\1\x0a\0\0\x09\0\x0a\0\0\1",
            Option.MTU: (1450).to_bytes(2),
            Option.DNS: b"\x0a\0\0\x35",
            Option.HOSTNAME: b"vm1",
            Option.DOMAIN: b"corp.example",
            Option.SEARCH: b"\4corp\7example\0\7example\0",
        }


def test_what_there_is_none_of_is_not_told() -> None:
    bare = Offer(mac=MAC, server_mac=BRIDGE, mtu=70000, ipv4=Ipv4(SERVER, IPv4Interface("10.0.0.2/24")))
    _, message = told(answer(bare, heard(asking(Kind.DISCOVER))))
    assert set(message.options) == {Option.KIND, Option.SERVER, Option.LEASE_TIME, Option.MASK}


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (asking(Kind.REQUEST, requested=MINE, server=SERVER), Kind.ACK),
        (asking(Kind.REQUEST, requested=ELSE, server=SERVER), Kind.NAK),
        (asking(Kind.REQUEST, requested=MINE, server=ELSE), None),
        (asking(Kind.REQUEST, requested=MINE), Kind.ACK),
        (asking(Kind.REQUEST, requested=ELSE), Kind.NAK),
        (asking(Kind.REQUEST, ciaddr=MINE), Kind.ACK),
        (asking(Kind.REQUEST, ciaddr=ELSE), Kind.NAK),
        (asking(Kind.REQUEST), Kind.NAK),
        (asking(Kind.INFORM, ciaddr=MINE), Kind.ACK),
        (asking(Kind.DECLINE, requested=MINE, server=SERVER), None),
        (asking(Kind.RELEASE, ciaddr=MINE, server=SERVER), None),
        (asking(Kind.OFFER), None),
        (Message(1, 7, MAC), None),
    ],
    ids=[
        "chosen", "chosen, another address", "another server chosen", "reboot", "reboot with an old address",
        "renewal", "renewal of an old address", "request of nothing", "inform", "decline", "release", "offer", "bootp",
    ],
)  # fmt: skip
def test_each_kind_of_message_has_its_answer(asked: Message, kind: Kind | None) -> None:
    if kind is None:
        silent(asked)
    else:
        assert said(asked)[1].kind is kind


def test_who_only_informs_itself_is_told_neither_address_nor_lease() -> None:
    datagram, message = said(asking(Kind.INFORM, ciaddr=ELSE))
    assert (message.yiaddr, datagram.destination) == (NOWHERE, ELSE)
    assert Option.LEASE_TIME not in message.options
    assert Option.DNS in message.options


def test_a_refusal_says_why_and_holds_nothing_else() -> None:
    datagram, message = said(asking(Kind.REQUEST, ciaddr=ELSE))
    assert set(message.options) == {Option.KIND, Option.SERVER, Option.MESSAGE}
    assert b"10.0.0.2" in message.options[Option.MESSAGE]
    assert (message.yiaddr, message.ciaddr, datagram.destination, datagram.mac) == (
        NOWHERE,
        NOWHERE,
        EVERYWHERE,
        BROADCAST,
    )


@pytest.mark.parametrize(
    ("asked", "mac", "destination"),
    [
        (asking(Kind.DISCOVER), MAC, MINE),
        (asking(Kind.DISCOVER, flags=BROADCAST_FLAG), BROADCAST, EVERYWHERE),
        (asking(Kind.REQUEST, ciaddr=MINE), MAC, MINE),
        (asking(Kind.REQUEST, ciaddr=MINE, flags=BROADCAST_FLAG), MAC, MINE),
    ],
    ids=["new client", "a client that cannot take unicast yet", "renewal", "renewal with the flag"],
)
def test_where_an_answer_goes(asked: Message, mac: bytes, destination: IPv4Address) -> None:
    datagram, message = said(asked)
    assert (datagram.mac, datagram.destination) == (mac, destination)
    assert message.flags == asked.flags


def test_a_clients_identifier_is_repeated() -> None:
    asked = asking(Kind.DISCOVER)
    asked = msgspec.structs.replace(asked, options={**asked.options, Option.CLIENT_ID: b"\1me"})
    assert said(asked)[1].options[Option.CLIENT_ID] == b"\1me"


def test_nobody_but_the_guest_is_answered() -> None:
    asked = asking(Kind.DISCOVER)
    silent(asked, source_mac=OTHER)
    silent(asked, port=68)
    silent(msgspec.structs.replace(asked, chaddr=OTHER))
    silent(msgspec.structs.replace(asked, giaddr=IPv4Address("10.0.0.9")))
    silent(msgspec.structs.replace(asked, op=2))
    ipv6_only = msgspec.structs.replace(OFFER, ipv4=None)
    assert answer(ipv6_only, heard(asked)) is None


def test_a_declined_address_is_noticed() -> None:
    assert declined(heard(asking(Kind.DECLINE, requested=MINE)))
    assert not declined(heard(asking(Kind.RELEASE)))


@given(
    st.binary(max_size=600) | st.builds(lambda tail: encode(asking(Kind.REQUEST))[:240] + tail, st.binary(max_size=300))
)
def test_whatever_a_client_sends_is_answered_or_refused(payload: bytes) -> None:
    datagram = Datagram(MAC, BROADCAST, NOWHERE, EVERYWHERE, 68, 67, payload)
    try:
        frame = answer(OFFER, datagram)
    except Malformed:
        return
    if frame is not None:
        assert told(frame)[1].kind in {Kind.OFFER, Kind.ACK, Kind.NAK}
