"""Run the address servers of one guest, one per interface. Each reconcile run makes them match the desired servers.

Nothing is stored: after a restart of the handler the first reconcile run starts the servers again, and all their
replies follow from the pod NIC records. An open packet socket keeps the pod's network namespace alive, so a server is
closed before the pod network is torn down, and when the guest is no longer handled here.
Next: :mod:`services.handler.addresses.server`.
"""

from collections.abc import Callable
from functools import partial

from services.common.netlink.netns import Netns
from services.common.telemetry.logs import Log
from services.handler.addresses.packets.filter import guest_filter, network_filter
from services.handler.addresses.responder import Replies, Responder
from services.handler.addresses.served import ServedAddresses
from services.handler.addresses.server import AddressServer

NetnsIdentity = tuple[int, int]
"""Device and inode of a network namespace."""


class AddressServers:
    """The address servers of one guest.

    :param requeue: requeues the guest.
    :param on_dhcp_reply: called after each DHCP reply, when the guest may get new addresses.
    :ivar declined: interfaces whose guest declined the address; the caller removes an entry after reporting it.
    """

    def __init__(self, requeue: Callable[[], None], on_dhcp_reply: Callable[[], None], log: Log) -> None:
        self._requeue = requeue
        self._on_dhcp_reply = on_dhcp_reply
        self._log = log
        self.declined: set[str] = set()
        self._servers: dict[str, tuple[ServedAddresses, NetnsIdentity, AddressServer]] = {}

    def serving(self, netns: NetnsIdentity | None) -> dict[str, ServedAddresses | None]:
        """Return what each server serves in a network namespace, by interface.

        :param netns: ``None`` when it is not known.
        :returns: ``None`` for a server that is closed, or runs in another network namespace.
        """
        return {
            interface: served if identity == netns and not server.closed else None
            for interface, (served, identity, server) in self._servers.items()
        }

    async def serve(self, served: ServedAddresses, netns: Netns) -> None:
        """Start the server of a NIC in place of its previous one.

        :raises NetlinkFailure: A packet socket on the tap or the bridge cannot be opened.
        """
        responder = Responder(served.offer)
        accepted = guest_filter(ipv4=served.offer.ipv4 is not None, ipv6=served.offer.ipv6 is not None)
        network = await netns.open_packet_socket(served.bridge, network_filter()) if responder.needs_network else None
        try:
            tap = await netns.open_packet_socket(served.tap, accepted)
        except BaseException:
            if network is not None:
                network.close()
            raise
        log = self._log.bind(interface=served.interface)
        on_replies = partial(self._on_replies, served.interface)
        try:
            server = AddressServer(responder, tap, network, log, on_replies, self._requeue)
        except BaseException:
            tap.close()
            if network is not None:
                network.close()
            raise
        # Only now: when the start fails, the previous server continues.
        self._close(served.interface)
        self._servers[served.interface] = (served, netns.identity, server)

    def _on_replies(self, interface: str, replies: Replies) -> None:
        if replies.dhcp_reply:
            self._on_dhcp_reply()
        if replies.declined and interface not in self.declined:
            self.declined.add(interface)
            self._requeue()

    def stop(self, interface: str) -> None:
        """Stop the server of a NIC if there is one: the NIC is not served any more."""
        self.declined.discard(interface)
        self._close(interface)

    def _close(self, interface: str) -> None:
        _, _, server = self._servers.pop(interface, (None, None, None))
        if server is not None:
            server.close()

    def close(self) -> None:
        """Stop all servers."""
        for interface in list(self._servers):
            self.stop(interface)
