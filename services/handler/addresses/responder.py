"""Compute the replies of one address server to a frame. Pure, except for the pending neighbour solicitations.

Next: :mod:`services.handler.addresses.server`, which receives the frames and sends the replies.
"""

from ipaddress import IPv6Address

import msgspec

from services.handler.addresses import neighbours
from services.handler.addresses.dhcp import dhcp4_replies, dhcp6_replies
from services.handler.addresses.offer import Offer
from services.handler.addresses.packets.frames import Datagram, Icmp6, build_frame, parse_frame

_UNSPECIFIED = IPv6Address(0)


class Replies(msgspec.Struct, frozen=True):
    """The frames that the server sends in reply to a frame, and the guest events that the frame reveals.

    :ivar to_guest: frames to send to the guest.
    :ivar to_network: a frame to send to the network behind the bridge.
    :ivar declined: whether the guest declined its address because another host uses it.
    :ivar dhcp_reply: whether a DHCP reply is among the frames, so that the guest may have new addresses soon.
    """

    to_guest: tuple[bytes, ...] = ()
    to_network: bytes | None = None
    declined: bool = False
    dhcp_reply: bool = False


NO_REPLIES = Replies()


class Responder:
    """The protocols that serve one NIC: DHCPv4, DHCPv6 and neighbour discovery.

    :ivar offer: what the guest is offered.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        hops = [hop.address for hop in offer.ipv6.hops] if offer.ipv6 else []
        self._routers = {neighbours.router_alias(hop): hop for hop in hops if not hop.is_link_local}
        # By router address: MAC and address of the guest that solicited last, and the alias it solicited.
        self._solicitations: dict[IPv6Address, tuple[bytes, IPv6Address, IPv6Address]] = {}

    @property
    def needs_network(self) -> bool:
        """Whether a router has no known link-local address, so that its MAC must be requested from the network."""
        return bool(self._routers)

    def router_advertisements(self) -> tuple[bytes, ...]:
        """Return the frames of the router advertisements; none for a NIC without IPv6."""
        ipv6 = self.offer.ipv6
        return tuple(map(build_frame, neighbours.router_advertisements(self.offer, ipv6))) if ipv6 else ()

    def reply_to_guest(self, frame: bytes) -> Replies:
        """Return the replies to a frame that the guest sent.

        :raises MalformedPacket: The frame cannot be parsed.
        """
        packet = parse_frame(frame)
        if isinstance(packet, Icmp6):
            return self._reply_to_icmp6(packet)
        return self._reply_to_dhcp(packet)

    def reply_to_network(self, frame: bytes) -> Replies:
        """Return the replies to a frame from the network: a router's neighbour advertisement goes on to the guest.

        :raises MalformedPacket: The frame cannot be parsed.
        """
        packet = parse_frame(frame)
        if not isinstance(packet, Icmp6):
            return NO_REPLIES
        target, target_mac = neighbours.advertised_neighbour(packet)
        if target not in self._solicitations:
            return NO_REPLIES
        mac, address, alias = self._solicitations.pop(target)
        advertisement = neighbours.neighbour_advertisement(self.offer.server_mac, mac, address, alias, target_mac)
        return Replies(to_guest=(build_frame(advertisement),))

    def _reply_to_dhcp(self, request: Datagram) -> Replies:
        protocol = dhcp4_replies if request.source.version == 4 else dhcp6_replies
        reply = protocol.build_reply(self.offer, request)
        declined = request.source_mac == self.offer.mac and protocol.is_decline(request)
        return Replies(() if reply is None else (reply,), declined=declined, dhcp_reply=reply is not None)

    def _reply_to_icmp6(self, packet: Icmp6) -> Replies:
        if packet.source_mac != self.offer.mac:
            return NO_REPLIES
        # RFC 4861 section 6.1.1: below 255, the packet comes from another link.
        if packet.message_type == neighbours.ROUTER_SOLICITATION and packet.hop_limit == 255:
            return Replies(to_guest=self.router_advertisements())
        alias = neighbours.solicited_address(packet) if self._routers else None
        router = self._routers.get(alias) if alias else None
        if alias is None or router is None or packet.source == _UNSPECIFIED:
            # An unspecified source means duplicate address detection (RFC 4862): no reply says the address is unused.
            return NO_REPLIES
        self._solicitations[router] = (packet.source_mac, packet.source, alias)
        return Replies(to_network=build_frame(neighbours.neighbour_solicitation(self.offer.server_mac, router)))
