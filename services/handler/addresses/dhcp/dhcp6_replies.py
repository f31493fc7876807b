"""Build the replies to a DHCPv6 client: the addresses of its NIC, only for the guest of the NIC. Pure.

As with DHCPv4, the server keeps no state between two messages.
Next: :mod:`services.handler.addresses.responder`, which calls this module.
"""

from ipaddress import IPv6Address

from services.handler.addresses.dhcp.dhcp6 import (
    CLIENT_PORT,
    SERVER_PORT,
    Dhcp6Message,
    Dhcp6MessageType,
    Dhcp6Option,
    Dhcp6Options,
    Dhcp6Status,
    IdentityAssociation,
    address_option,
    decode,
    decode_association,
    encode,
    encode_association,
    encode_options,
    status_option,
)
from services.handler.addresses.dhcp.names import encode_domains
from services.handler.addresses.neighbours import link_local
from services.handler.addresses.offer import LEASE_SECONDS, Ipv6Offer, Offer
from services.handler.addresses.packets.frames import Datagram, build_frame

_WITH_SERVER_ID = {
    Dhcp6MessageType.REQUEST,
    Dhcp6MessageType.RENEW,
    Dhcp6MessageType.RELEASE,
    Dhcp6MessageType.DECLINE,
}
"""Messages to one server: RFC 8415 section 16 requires its identifier."""
_WITHOUT_SERVER_ID = {Dhcp6MessageType.SOLICIT, Dhcp6MessageType.CONFIRM, Dhcp6MessageType.REBIND}
"""Messages to any server: RFC 8415 section 16 forbids a server identifier."""
_LEASES = {
    Dhcp6MessageType.SOLICIT,
    Dhcp6MessageType.REQUEST,
    Dhcp6MessageType.RENEW,
    Dhcp6MessageType.REBIND,
}
_MAX_PREFERENCE = 255
"""The client takes this server at once and waits for no other (RFC 8415 section 18.2.1)."""


def build_reply(offer: Offer, datagram: Datagram) -> bytes | None:
    """Return the frame that replies to a datagram; ``None`` if the server must not reply.

    :raises MalformedPacket: The datagram cannot be decoded.
    """
    ipv6 = offer.ipv6
    if ipv6 is None or datagram.destination_port != SERVER_PORT or datagram.source_mac != offer.mac:
        return None
    # Clients send from a link-local address (RFC 8415).
    if not isinstance(datagram.source, IPv6Address) or not datagram.source.is_link_local:
        return None
    reply = _reply_to(offer, ipv6, decode(datagram.payload))
    if reply is None:
        return None
    source = link_local(offer.server_mac)
    return build_frame(
        Datagram(offer.server_mac, offer.mac, source, datagram.source, SERVER_PORT, CLIENT_PORT, encode(reply))
    )


def is_decline(datagram: Datagram) -> bool:
    """Return whether a client declines an address because another host uses it.

    :raises MalformedPacket: The datagram cannot be decoded.
    """
    return (
        datagram.destination_port == SERVER_PORT and decode(datagram.payload).message_type == Dhcp6MessageType.DECLINE
    )


def server_id(offer: Offer) -> bytes:
    """Return the server's DUID-LL (RFC 8415 section 11.4); it is the same after every restart."""
    return b"\x00\x03\x00\x01" + offer.server_mac


def _reply_to(offer: Offer, ipv6: Ipv6Offer, request: Dhcp6Message) -> Dhcp6Message | None:
    own_id = server_id(offer)
    if not _is_for_server(request, own_id):
        return None
    message_type = Dhcp6MessageType.REPLY
    options: Dhcp6Options = ((Dhcp6Option.SERVER_ID, own_id),)
    if (client_id := request.first(Dhcp6Option.CLIENT_ID)) is not None:
        options += ((Dhcp6Option.CLIENT_ID, client_id),)
    if request.message_type == Dhcp6MessageType.SOLICIT:
        if request.first(Dhcp6Option.RAPID_COMMIT) is None:
            message_type = Dhcp6MessageType.ADVERTISE
            options += ((Dhcp6Option.PREFERENCE, bytes([_MAX_PREFERENCE])),)
        else:
            options += ((Dhcp6Option.RAPID_COMMIT, b""),)
    if request.message_type == Dhcp6MessageType.CONFIRM:
        status = _confirm_status(ipv6, request)
        return None if status is None else Dhcp6Message(message_type, request.transaction, (*options, status))
    if request.message_type in (Dhcp6MessageType.RELEASE, Dhcp6MessageType.DECLINE):
        # RFC 8415 requires a reply. The address stays assigned: the NIC has no others.
        success = status_option(Dhcp6Status.SUCCESS, "noted")
        return Dhcp6Message(message_type, request.transaction, (*options, success))
    if request.message_type in _LEASES:
        options += _associations(ipv6, request)
    return Dhcp6Message(message_type, request.transaction, (*options, *_configuration(offer, ipv6)))


def _is_for_server(request: Dhcp6Message, own_id: bytes) -> bool:
    client_id, addressed = request.first(Dhcp6Option.CLIENT_ID), request.first(Dhcp6Option.SERVER_ID)
    if request.message_type in _WITH_SERVER_ID:
        return client_id is not None and addressed == own_id
    if request.message_type in _WITHOUT_SERVER_ID:
        return client_id is not None and addressed is None
    # RFC 8415 section 16.12: an Information-request needs no client identifier.
    return request.message_type == Dhcp6MessageType.INFORMATION_REQUEST and addressed in (None, own_id)


def _associations(ipv6: Ipv6Offer, request: Dhcp6Message) -> Dhcp6Options:
    """Return the reply to each identity association: all addresses in the first IA_NA, none in the others."""
    options: Dhcp6Options = ()
    leased = False
    for code, value in request.options:
        if code == Dhcp6Option.IA_NA:
            association = decode_association(value)
            if leased:
                refusal = status_option(
                    Dhcp6Status.NO_ADDRESSES, "the addresses of this NIC are in another association"
                )
                options += ((code, encode_association(association.id, 0, 0, (refusal,))),)
            else:
                options += ((code, _lease(ipv6, association)),)
            leased = True
        elif code == Dhcp6Option.IA_TA:
            # An IA_TA has an identifier only, no T1 and T2 (RFC 8415 section 21.5).
            refusal = status_option(Dhcp6Status.NO_ADDRESSES, "no such addresses")
            options += ((code, value[:4].ljust(4, b"\0") + encode_options((refusal,))),)
        elif code == Dhcp6Option.IA_PD:
            refusal = status_option(Dhcp6Status.NO_PREFIXES, "no prefixes")
            options += ((code, encode_association(value[:4].ljust(4, b"\0"), 0, 0, (refusal,))),)
    return options


def _lease(ipv6: Ipv6Offer, requested: IdentityAssociation) -> bytes:
    offered = [interface.ip for interface in ipv6.addresses]
    wrong = [ip for ip in requested.addresses if ip not in offered]
    # Lifetime 0 makes the client stop using an address that is not the NIC's.
    options = (*(address_option(ip, LEASE_SECONDS) for ip in offered), *(address_option(ip, 0) for ip in wrong))
    # T1 and T2 are 0.5 and 0.8 of the lifetime, as RFC 8415 section 21.4 recommends.
    return encode_association(requested.id, LEASE_SECONDS // 2, LEASE_SECONDS // 5 * 4, options)


def _confirm_status(ipv6: Ipv6Offer, request: Dhcp6Message) -> tuple[int, bytes] | None:
    """Return whether a client's addresses fit this link; ``None`` if the client names no addresses."""
    had = [
        ip for code, value in request.options if code == Dhcp6Option.IA_NA for ip in decode_association(value).addresses
    ]
    # RFC 8415 section 18.3.3: a Confirm without addresses gets no reply.
    if not had:
        return None
    if set(had) <= {interface.ip for interface in ipv6.addresses}:
        return status_option(Dhcp6Status.SUCCESS, "these are the addresses of this NIC")
    return status_option(Dhcp6Status.NOT_ON_LINK, "this NIC has other addresses")


def _configuration(offer: Offer, ipv6: Ipv6Offer) -> Dhcp6Options:
    options: Dhcp6Options = ()
    if ipv6.nameservers:
        options += ((Dhcp6Option.DNS, b"".join(server.packed for server in ipv6.nameservers)),)
    if search := encode_domains(offer.search):
        options += ((Dhcp6Option.SEARCH, search),)
    return options
