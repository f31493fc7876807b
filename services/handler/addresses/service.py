"""The address servers of one guest, by interface: made to match what is wished, at every look.

Nothing is kept anywhere else: after a restart of the handler the first look starts them again, and what a server would
say follows from the pod NIC's record. A server is open on a tap and keeps the pod's namespace alive, so it is closed
before the wiring is released, and when the guest is let go.
Next: :mod:`services.handler.addresses.server`.
"""

from collections.abc import Callable, Iterable
from functools import partial

from services.common.logs import Log
from services.common.netlink.netns import Netns
from services.handler.addresses.filter import of_guest, of_network
from services.handler.addresses.responder import Said, Talk
from services.handler.addresses.served import Wish
from services.handler.addresses.server import Server

Identity = tuple[int, int]


class Addresses:
    """The servers of one guest.

    :param look: has the guest looked at again. :param given: called when it may have got addresses.
    :ivar declined: the interfaces whose guest says that somebody else uses the address, until that is told.
    """

    def __init__(self, look: Callable[[], None], given: Callable[[], None], log: Log) -> None:
        self._look = look
        self._given = given
        self._log = log
        self.declined: set[str] = set()
        self._served: dict[str, tuple[Wish, Identity, Server]] = {}

    def keep(self, wishes: Iterable[Wish]) -> None:
        """End every server but those of these wishes."""
        wanted = {wish.interface: wish for wish in wishes}
        for interface, (wish, _, _) in list(self._served.items()):
            if wanted.get(interface) != wish:
                self.stop(interface)

    def serves(self, wish: Wish, netns: Identity) -> bool:
        """Whether this very wish is fulfilled in the namespace with this identity."""
        known, where, server = self._served.get(wish.interface, (None, None, None))
        return known == wish and where == netns and server is not None and not server.closed

    async def serve(self, wish: Wish, netns: Netns) -> None:
        """Serve a NIC, in place of whatever server it has.

        :raises NetlinkFailure: its tap cannot be listened to.
        """
        talk = Talk(wish.offer)
        heard = of_guest(ipv4=wish.offer.ipv4 is not None, ipv6=wish.offer.ipv6 is not None)
        network = await netns.packets(wish.bridge, of_network()) if talk.needs_network else None
        try:
            tap = await netns.packets(wish.tap, heard)
        except BaseException:
            if network is not None:
                network.close()
            raise
        self.stop(wish.interface)
        log = self._log.bind(interface=wish.interface)
        server = Server(talk, tap, network, log, partial(self._said, wish.interface), self._look)
        self._served[wish.interface] = (wish, netns.identity, server)

    def _said(self, interface: str, said: Said) -> None:
        if said.given:
            self._given()
        if said.declined and interface not in self.declined:
            self.declined.add(interface)
            self._look()

    def stop(self, interface: str) -> None:
        """End the server of a NIC; none is no failure."""
        _, _, server = self._served.pop(interface, (None, None, None))
        if server is not None:
            server.close()

    def close(self) -> None:
        """End all."""
        for interface in list(self._served):
            self.stop(interface)
