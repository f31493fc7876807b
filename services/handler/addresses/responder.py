"""The conversation of one address server: what is said to the guest, and to the network, upon a frame. Pure but for one
memory, who asked last for the MAC of a router.

Next: :mod:`services.handler.addresses.server`, which hears and speaks.
"""

from ipaddress import IPv6Address

import msgspec

from services.handler.addresses import dhcp4_replies, dhcp6_replies, neighbours
from services.handler.addresses.frames import Datagram, Icmp6, build, read
from services.handler.addresses.offer import Offer

_UNKNOWN = IPv6Address(0)


class Said(msgspec.Struct, frozen=True):
    """What a frame leads to.

    :ivar guest: frames for the guest. :ivar network: one for the network behind the bridge.
    :ivar declined: the guest says that somebody else uses its address.
    :ivar given: whether the guest may have new addresses by that.
    """

    guest: tuple[bytes, ...] = ()
    network: bytes | None = None
    declined: bool = False
    given: bool = False


NOTHING = Said()


class Talk:
    """The server's side of a conversation."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        hops = [hop.address for hop in offer.ipv6.hops] if offer.ipv6 else []
        self._routers = {neighbours.alias_of(hop): hop for hop in hops if not hop.is_link_local}
        self._asking: dict[IPv6Address, tuple[bytes, IPv6Address, IPv6Address]] = {}

    @property
    def needs_network(self) -> bool:
        """Whether a router's MAC has to be asked for, because its link-local address is not known."""
        return bool(self._routers)

    def unasked(self) -> tuple[bytes, ...]:
        """What the guest is told from time to time."""
        ipv6 = self.offer.ipv6
        return tuple(map(build, neighbours.advertisements(self.offer, ipv6))) if ipv6 else ()

    def from_guest(self, frame: bytes) -> Said:
        """What is said upon a frame of the guest's.

        :raises Malformed: it cannot be read.
        """
        heard = read(frame)
        if isinstance(heard, Icmp6):
            return self._neighbour(heard)
        return self._client(heard)

    def from_network(self, frame: bytes) -> Said:
        """What is said upon a frame of the network's: the router has told its MAC.

        :raises Malformed: it cannot be read.
        """
        heard = read(frame)
        if not isinstance(heard, Icmp6):
            return NOTHING
        target, target_mac = neighbours.told_neighbour(heard)
        if target not in self._asking:
            return NOTHING
        mac, asker, alias = self._asking.pop(target)
        return Said(guest=(build(neighbours.tell_neighbour(self.offer.server_mac, mac, asker, alias, target_mac)),))

    def _client(self, heard: Datagram) -> Said:
        answerer = dhcp4_replies if heard.source.version == 4 else dhcp6_replies
        said = answerer.answer(self.offer, heard)
        declined = heard.source_mac == self.offer.mac and answerer.declined(heard)
        return Said(() if said is None else (said,), declined=declined, given=said is not None)

    def _neighbour(self, heard: Icmp6) -> Said:
        if heard.source_mac != self.offer.mac:
            return NOTHING
        if heard.kind == neighbours.ROUTER_SOLICITATION and heard.hops == 255:
            return Said(guest=self.unasked())
        alias = neighbours.asked_neighbour(heard) if self._routers else None
        router = self._routers.get(alias) if alias else None
        if alias is None or router is None or heard.source == _UNKNOWN:
            # Nobody asks from nowhere but who wants an address for itself, and nobody's answer says that it may.
            return NOTHING
        self._asking[router] = (heard.source_mac, heard.source, alias)
        return Said(network=build(neighbours.ask_neighbour(self.offer.server_mac, router)))
