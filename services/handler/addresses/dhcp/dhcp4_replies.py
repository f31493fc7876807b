"""Build the replies to a DHCPv4 client: always the address that IPAM chose, only for the guest of the NIC. Pure.

The server keeps no state between two messages. So a client cannot exhaust anything, and a restarted handler answers a
renewal exactly as the previous one did. Next: :mod:`services.handler.addresses.responder`, which calls this module.
"""

from ipaddress import IPv4Address

import msgspec

from services.handler.addresses.dhcp.dhcp4 import (
    BROADCAST_FLAG,
    CLIENT_PORT,
    SERVER_PORT,
    Dhcp4Message,
    Dhcp4MessageType,
    Dhcp4Option,
    classless_routes,
    decode,
    encode,
)
from services.handler.addresses.dhcp.names import encode_domains
from services.handler.addresses.offer import LEASE_SECONDS, Ipv4Offer, Offer
from services.handler.addresses.packets.frames import BROADCAST, Datagram, build_frame

_UNSPECIFIED = IPv4Address(0)
_LIMITED_BROADCAST = IPv4Address(0xFFFFFFFF)


def build_reply(offer: Offer, datagram: Datagram) -> bytes | None:
    """Return the frame that replies to a datagram; ``None`` if the server must not reply.

    :raises MalformedPacket: The datagram cannot be decoded.
    """
    ipv4 = offer.ipv4
    if ipv4 is None or datagram.destination_port != SERVER_PORT or datagram.source_mac != offer.mac:
        return None
    request = decode(datagram.payload)
    # A relay agent (giaddr) has no place between a guest and its tap.
    if request.op != 1 or request.chaddr != offer.mac or request.giaddr != _UNSPECIFIED:
        return None
    reply = _reply_to(offer, ipv4, request)
    return None if reply is None else _frame(offer, ipv4, request, reply)


def is_decline(datagram: Datagram) -> bool:
    """Return whether a client declines its address because another host uses it.

    :raises MalformedPacket: The datagram cannot be decoded.
    """
    return (
        datagram.destination_port == SERVER_PORT and decode(datagram.payload).message_type is Dhcp4MessageType.DECLINE
    )


def _reply_to(offer: Offer, ipv4: Ipv4Offer, request: Dhcp4Message) -> Dhcp4Message | None:
    offered = ipv4.address.ip
    match request.message_type:
        case Dhcp4MessageType.DISCOVER:
            return _lease(offer, ipv4, request, Dhcp4MessageType.OFFER)
        case Dhcp4MessageType.REQUEST:
            server = request.address(Dhcp4Option.SERVER_ID)
            # The client has chosen another server (RFC 2131 section 4.3.2).
            if server not in (None, ipv4.server):
                return None
            # RFC 2131 section 4.3.2: a client that renews its lease names the address in ciaddr only.
            requested = request.address(Dhcp4Option.REQUESTED_ADDRESS) or request.ciaddr
            if requested != offered:
                return _nak(ipv4, request, f"the address of this NIC is {offered}")
            return _lease(offer, ipv4, request, Dhcp4MessageType.ACK)
        case Dhcp4MessageType.INFORM:
            return _server_message(ipv4, request, Dhcp4MessageType.ACK, _configuration(offer, ipv4))
    # RELEASE and DECLINE have no reply and change nothing: the NIC has only this one address.
    return None


def _lease(offer: Offer, ipv4: Ipv4Offer, request: Dhcp4Message, message_type: Dhcp4MessageType) -> Dhcp4Message:
    options = {Dhcp4Option.LEASE_TIME: LEASE_SECONDS.to_bytes(4)} | _configuration(offer, ipv4)
    return msgspec.structs.replace(_server_message(ipv4, request, message_type, options), yiaddr=ipv4.address.ip)


def _nak(ipv4: Ipv4Offer, request: Dhcp4Message, text: str) -> Dhcp4Message:
    # RFC 2131 table 3: ciaddr is 0 in a NAK. The client may have no usable address, so it is broadcast.
    return msgspec.structs.replace(
        _server_message(ipv4, request, Dhcp4MessageType.NAK, {Dhcp4Option.MESSAGE: text.encode()}),
        ciaddr=_UNSPECIFIED,
        flags=BROADCAST_FLAG,
    )


def _server_message(
    ipv4: Ipv4Offer, request: Dhcp4Message, message_type: Dhcp4MessageType, options: dict[Dhcp4Option, bytes]
) -> Dhcp4Message:
    head = {Dhcp4Option.MESSAGE_TYPE: bytes([message_type]), Dhcp4Option.SERVER_ID: ipv4.server.packed}
    # RFC 6842: the server returns the client identifier.
    if client_id := request.options.get(Dhcp4Option.CLIENT_ID):
        options = options | {Dhcp4Option.CLIENT_ID: client_id}
    return Dhcp4Message(
        op=2,
        xid=request.xid,
        chaddr=request.chaddr,
        flags=request.flags & BROADCAST_FLAG,
        ciaddr=request.ciaddr,
        options={int(code): value for code, value in (head | options).items()},
    )


def _configuration(offer: Offer, ipv4: Ipv4Offer) -> dict[Dhcp4Option, bytes]:
    """Return the options that configure the interface, the most important one first.

    The order matters: :func:`services.handler.addresses.dhcp.dhcp4.encode` leaves out what does not fit.
    """
    options = {
        Dhcp4Option.SUBNET_MASK: ipv4.address.netmask.packed,
        Dhcp4Option.ROUTER: ipv4.router.packed if ipv4.router else b"",
        Dhcp4Option.CLASSLESS_ROUTES: classless_routes(ipv4.routes),
        # RFC 2132 section 5.1: the option has 16 bits, and its minimum is 68.
        Dhcp4Option.MTU: offer.mtu.to_bytes(2) if 68 <= offer.mtu <= 0xFFFF else b"",
        Dhcp4Option.DNS: b"".join(server.packed for server in ipv4.nameservers),
        Dhcp4Option.HOSTNAME: offer.hostname.encode(),
        Dhcp4Option.DOMAIN: offer.domain.encode(),
        Dhcp4Option.SEARCH: encode_domains(offer.search),
    }
    return {option: value for option, value in options.items() if value}


def _frame(offer: Offer, ipv4: Ipv4Offer, request: Dhcp4Message, reply: Dhcp4Message) -> bytes:
    """Return the reply in a frame to the destination that RFC 2131 section 4.1 prescribes."""
    mac, destination = offer.mac, reply.yiaddr
    if reply.ciaddr != _UNSPECIFIED:
        destination = reply.ciaddr
    elif reply.flags & BROADCAST_FLAG or destination == _UNSPECIFIED:
        mac, destination = BROADCAST, _LIMITED_BROADCAST
    # The server's address is the in-pod bridge's, as in KubeVirt. The tap receives what a client sends to it (ADR 22).
    payload = encode(reply, request.max_size())
    return build_frame(Datagram(offer.server_mac, mac, ipv4.server, destination, SERVER_PORT, CLIENT_PORT, payload))
