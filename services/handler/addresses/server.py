"""Run the address server of one NIC on the guest's tap. This module decides nothing about the replies.

A server costs one file descriptor and one timer, and no task. It ends by itself when the tap is removed.
Next: :mod:`services.handler.addresses.service`, which starts and stops the servers.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence

from schemas.inputs import Edge, RejectedInput, rejecting
from services.common.telemetry.logs import Log
from services.handler.addresses.packets.listener import BURST, FRAMES_PER_SECOND, PacketListener
from services.handler.addresses.responder import Replies, Responder

ADVERTISE_INTERVAL = 600.0
"""Seconds between two unsolicited router advertisements: the default of RFC 4861 section 6.2.1 (MaxRtrAdvInterval)."""
_RESTART_DELAY = 1.0


class AddressServer:
    """A server for one NIC; it serves from its creation until it is closed.

    :param tap: a packet socket on the guest's tap; the server owns it.
    :param network: a packet socket on the in-pod bridge if the responder needs it; the server owns it.
    :param on_replies: called after the replies to a frame were sent.
    :param on_link_gone: called one second after the tap was removed or set down.
    :param burst: frames of the guest that are handled without a pause.
    :param rate: frames of the guest that are handled per second in the long run.
    """

    def __init__(
        self,
        responder: Responder,
        tap: socket.socket,
        network: socket.socket | None,
        log: Log,
        on_replies: Callable[[Replies], None],
        on_link_gone: Callable[[], None],
        *,
        burst: float = BURST,
        rate: float = FRAMES_PER_SECOND,
    ) -> None:
        # Before the sockets are registered: what fails here leaves nothing behind.
        first = responder.router_advertisements()
        self._responder = responder
        self._log = log
        self._on_replies = on_replies
        self._on_link_gone = on_link_gone
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._guest = PacketListener(tap, self._on_guest_frame, self._on_socket_failed, burst=burst, rate=rate)
        self._network = (
            PacketListener(network, self._on_network_frame, self._on_socket_failed) if network is not None else None
        )
        self._send_advertisements(first)

    @property
    def closed(self) -> bool:
        """Whether the server is closed."""
        return self._guest.closed

    def close(self) -> None:
        """Close the sockets; closing twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
        self._guest.close()
        if self._network is not None:
            self._network.close()

    def _advertise(self) -> None:
        self._send_advertisements(self._responder.router_advertisements())

    def _send_advertisements(self, frames: Sequence[bytes]) -> None:
        if frames:
            self._timer = self._loop.call_later(ADVERTISE_INTERVAL, self._advertise)
        for frame in frames:
            self._guest.send(frame)

    def _on_guest_frame(self, frame: bytes) -> None:
        self._reply(self._responder.reply_to_guest, frame)

    def _on_network_frame(self, frame: bytes) -> None:
        self._reply(self._responder.reply_to_network, frame)

    def _reply(self, replies_to: Callable[[bytes], Replies], frame: bytes) -> None:
        try:
            with rejecting(Edge.PACKET):
                replies = replies_to(frame)
        except RejectedInput as error:
            # Debug only: a guest could fill the log with such frames.
            self._log.debug("malformed frame ignored", reason=str(error))
            return
        if replies.to_network is not None and self._network is not None:
            self._network.send(replies.to_network)
        for reply in replies.to_guest:
            self._guest.send(reply)
        self._on_replies(replies)

    def _on_socket_failed(self, error: OSError) -> None:
        self._log.debug("link of the address server gone", reason=str(error))
        self.close()
        # Delayed: if the link is only down, a new server ends at once in the same way.
        self._timer = self._loop.call_later(_RESTART_DELAY, self._on_link_gone)
