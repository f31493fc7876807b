"""What a DHCPv4 client is answered: always the same address, and only the guest the NIC belongs to. Pure.

Nothing is remembered between two messages, so there is nothing that a client could fill up, and a server that was
started a moment ago answers a renewal as the one before it would have.
Next: :mod:`services.handler.addresses.server`, which hears and answers.
"""

from ipaddress import IPv4Address

import msgspec

from services.handler.addresses.dhcp4 import (
    BROADCAST_FLAG,
    CLIENT_PORT,
    SERVER_PORT,
    Kind,
    Message,
    Option,
    classless_routes,
    decode,
    encode,
)
from services.handler.addresses.frames import BROADCAST, Datagram, build
from services.handler.addresses.names import dns_names
from services.handler.addresses.offer import LEASE_SECONDS, Ipv4, Offer

_NOWHERE = IPv4Address(0)
_EVERYWHERE = IPv4Address(0xFFFFFFFF)


def answer(offer: Offer, heard: Datagram) -> bytes | None:
    """The frame that answers a datagram; ``None`` where nothing is to be said.

    :raises Malformed: it cannot be read.
    """
    ipv4 = offer.ipv4
    if ipv4 is None or heard.port != SERVER_PORT or heard.source_mac != offer.mac:
        return None
    asked = decode(heard.payload)
    if asked.op != 1 or asked.chaddr != offer.mac or asked.giaddr != _NOWHERE:
        return None
    said = _said(offer, ipv4, asked)
    return None if said is None else _frame(offer, ipv4, asked, said)


def declined(heard: Datagram) -> bool:
    """Whether a client says that somebody else uses the address.

    :raises Malformed: it cannot be read.
    """
    return heard.port == SERVER_PORT and decode(heard.payload).kind is Kind.DECLINE


def _said(offer: Offer, ipv4: Ipv4, asked: Message) -> Message | None:
    mine = ipv4.address.ip
    match asked.kind:
        case Kind.DISCOVER:
            return _lease(offer, ipv4, asked, Kind.OFFER)
        case Kind.REQUEST:
            chosen = asked.address(Option.SERVER)
            if chosen not in (None, ipv4.server):
                return None
            wanted = asked.address(Option.REQUESTED) or asked.ciaddr
            if wanted != mine:
                return _no(ipv4, asked, f"the address of this NIC is {mine}")
            return _lease(offer, ipv4, asked, Kind.ACK)
        case Kind.INFORM:
            return _message(ipv4, asked, Kind.ACK, _settings(offer, ipv4))
    # A released address stays the guest's, and a declined one is still the only one there is.
    return None


def _lease(offer: Offer, ipv4: Ipv4, asked: Message, kind: Kind) -> Message:
    options = {Option.LEASE_TIME: LEASE_SECONDS.to_bytes(4)} | _settings(offer, ipv4)
    return msgspec.structs.replace(_message(ipv4, asked, kind, options), yiaddr=ipv4.address.ip)


def _no(ipv4: Ipv4, asked: Message, why: str) -> Message:
    return msgspec.structs.replace(
        _message(ipv4, asked, Kind.NAK, {Option.MESSAGE: why.encode()}), ciaddr=_NOWHERE, flags=BROADCAST_FLAG
    )


def _message(ipv4: Ipv4, asked: Message, kind: Kind, options: dict[Option, bytes]) -> Message:
    head = {Option.KIND: bytes([kind]), Option.SERVER: ipv4.server.packed}
    if client := asked.options.get(Option.CLIENT_ID):
        options = options | {Option.CLIENT_ID: client}
    return Message(
        op=2,
        xid=asked.xid,
        chaddr=asked.chaddr,
        flags=asked.flags & BROADCAST_FLAG,
        ciaddr=asked.ciaddr,
        options={int(code): value for code, value in (head | options).items()},
    )


def _settings(offer: Offer, ipv4: Ipv4) -> dict[Option, bytes]:
    """What goes with the address, in the order in which it matters; 16 bits and 255 bytes are what the fields hold."""
    found = {
        Option.MASK: ipv4.address.netmask.packed,
        Option.ROUTER: ipv4.router.packed if ipv4.router else b"",
        Option.CLASSLESS_ROUTES: classless_routes(ipv4.routes),
        Option.MTU: offer.mtu.to_bytes(2) if 68 <= offer.mtu <= 0xFFFF else b"",
        Option.DNS: b"".join(server.packed for server in ipv4.nameservers),
        Option.HOSTNAME: offer.hostname.encode(),
        Option.DOMAIN: offer.domain.encode(),
        Option.SEARCH: dns_names(offer.search),
    }
    return {option: value for option, value in found.items() if value}


def _frame(offer: Offer, ipv4: Ipv4, asked: Message, said: Message) -> bytes:
    """To where RFC 2131 §4.1 wants it."""
    mac, destination = offer.mac, said.yiaddr
    if said.ciaddr != _NOWHERE:
        destination = said.ciaddr
    elif said.flags & BROADCAST_FLAG or destination == _NOWHERE:
        mac, destination = BROADCAST, _EVERYWHERE
    payload = encode(said, asked.limit())
    return build(Datagram(offer.server_mac, mac, ipv4.server, destination, SERVER_PORT, CLIENT_PORT, payload))
