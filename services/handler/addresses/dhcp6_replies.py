"""What a DHCPv6 client is answered: the addresses of its NIC, and only the guest the NIC belongs to. Pure.

As with DHCPv4 nothing is remembered between two messages.
Next: :mod:`services.handler.addresses.server`, which hears and answers.
"""

from ipaddress import IPv6Address

from services.handler.addresses.dhcp6 import (
    CLIENT_PORT,
    SERVER_PORT,
    Association,
    Kind,
    Message,
    Option,
    Options,
    Status,
    address,
    association,
    decode,
    decode_association,
    encode,
    encode_options,
    status,
)
from services.handler.addresses.frames import Datagram, build
from services.handler.addresses.names import dns_names
from services.handler.addresses.neighbours import link_local
from services.handler.addresses.offer import LEASE_SECONDS, Ipv6, Offer

_KNOWS_SERVER = {Kind.REQUEST, Kind.RENEW, Kind.RELEASE, Kind.DECLINE}
_KNOWS_NO_SERVER = {Kind.SOLICIT, Kind.CONFIRM, Kind.REBIND}
_LEASES = {Kind.SOLICIT, Kind.REQUEST, Kind.RENEW, Kind.REBIND}
_FIRST = 255
"""The preference that makes a client look for no other server."""


def answer(offer: Offer, heard: Datagram) -> bytes | None:
    """The frame that answers a datagram; ``None`` where nothing is to be said.

    :raises Malformed: it cannot be read.
    """
    ipv6 = offer.ipv6
    if ipv6 is None or heard.port != SERVER_PORT or heard.source_mac != offer.mac:
        return None
    if not isinstance(heard.source, IPv6Address) or not heard.source.is_link_local:
        return None
    said = _said(offer, ipv6, decode(heard.payload))
    if said is None:
        return None
    source = link_local(offer.server_mac)
    return build(Datagram(offer.server_mac, offer.mac, source, heard.source, SERVER_PORT, CLIENT_PORT, encode(said)))


def declined(heard: Datagram) -> bool:
    """Whether a client says that somebody else uses its address.

    :raises Malformed: it cannot be read.
    """
    return heard.port == SERVER_PORT and decode(heard.payload).kind == Kind.DECLINE


def server_id(offer: Offer) -> bytes:
    """The server's DUID-LL (RFC 8415 §11.4): the same after every restart."""
    return b"\x00\x03\x00\x01" + offer.server_mac


def _said(offer: Offer, ipv6: Ipv6, asked: Message) -> Message | None:
    client, server = asked.first(Option.CLIENT_ID), asked.first(Option.SERVER_ID)
    mine = server_id(offer)
    if asked.kind in _KNOWS_SERVER:
        if client is None or server != mine:
            return None
    elif asked.kind in _KNOWS_NO_SERVER:
        if client is None or server is not None:
            return None
    elif asked.kind != Kind.INFORMATION_REQUEST or server not in (None, mine):
        return None
    kind = Kind.REPLY
    options: Options = ((Option.SERVER_ID, mine),)
    if client is not None:
        options += ((Option.CLIENT_ID, client),)
    if asked.kind == Kind.SOLICIT:
        if asked.first(Option.RAPID_COMMIT) is None:
            kind = Kind.ADVERTISE
            options += ((Option.PREFERENCE, bytes([_FIRST])),)
        else:
            options += ((Option.RAPID_COMMIT, b""),)
    if asked.kind == Kind.CONFIRM:
        verdict = _confirmed(ipv6, asked)
        return None if verdict is None else Message(kind, asked.transaction, (*options, verdict))
    if asked.kind in (Kind.RELEASE, Kind.DECLINE):
        # The address stays the card's, whatever the guest thinks of it.
        return Message(kind, asked.transaction, (*options, status(Status.SUCCESS, "noted")))
    if asked.kind in _LEASES:
        options += _associations(ipv6, asked)
    return Message(kind, asked.transaction, (*options, *_settings(offer, ipv6)))


def _associations(ipv6: Ipv6, asked: Message) -> Options:
    """The answer to each association: all addresses for the first one, none for others."""
    found: Options = ()
    given = False
    for code, value in asked.options:
        if code == Option.IA_NA:
            one = decode_association(value)
            if given:
                none = status(Status.NO_ADDRESSES, "the addresses of this NIC are in another association")
                found += ((code, association(one.id, 0, 0, (none,))),)
            else:
                found += ((code, _lease(ipv6, one)),)
            given = True
        elif code == Option.IA_TA:
            found += (
                (code, value[:4].ljust(4, b"\0") + encode_options((status(Status.NO_ADDRESSES, "no such addresses"),))),
            )
        elif code == Option.IA_PD:
            none = status(Status.NO_PREFIXES, "no prefixes")
            found += ((code, association(value[:4].ljust(4, b"\0"), 0, 0, (none,))),)
    return found


def _lease(ipv6: Ipv6, asked: Association) -> bytes:
    mine = [one.ip for one in ipv6.addresses]
    wrong = [ip for ip in asked.addresses if ip not in mine]
    inside = (*(address(ip, LEASE_SECONDS) for ip in mine), *(address(ip, 0) for ip in wrong))
    return association(asked.id, LEASE_SECONDS // 2, LEASE_SECONDS // 5 * 4, inside)


def _confirmed(ipv6: Ipv6, asked: Message) -> tuple[int, bytes] | None:
    """Whether a client's addresses suit this link; nothing is said of no addresses."""
    had = [ip for code, value in asked.options if code == Option.IA_NA for ip in decode_association(value).addresses]
    if not had:
        return None
    if set(had) <= {one.ip for one in ipv6.addresses}:
        return status(Status.SUCCESS, "these are the addresses of this NIC")
    return status(Status.NOT_ON_LINK, "this NIC has other addresses")


def _settings(offer: Offer, ipv6: Ipv6) -> Options:
    found: Options = ()
    if ipv6.nameservers:
        found += ((Option.DNS, b"".join(server.packed for server in ipv6.nameservers)),)
    if search := dns_names(offer.search):
        found += ((Option.SEARCH, search),)
    return found
