"""One NIC's address server: hears the guest on its tap, answers it there. Nothing is decided here.

It costs a file descriptor and a timer, and no task. It ends by itself when the tap goes.
Next: :mod:`services.handler.addresses.service`, which starts and stops them.
"""

import asyncio
import socket
from collections.abc import Callable

from services.common.logs import Log
from services.handler.addresses.frames import Malformed
from services.handler.addresses.listener import AT_ONCE, PER_SECOND, Ear
from services.handler.addresses.responder import Said, Talk

ADVERTISE_EVERY = 600.0
"""Seconds between two router advertisements that nobody asked for."""
_RETURN = 1.0


class Server:
    """Serves one NIC from now on until closed.

    :param tap: a packet socket on the guest's tap, :param network: one on the bridge where the conversation needs it;
        the server's own from now on.
    :param said: called after each answer to the guest. :param ended: called a second after the tap has gone.
    """

    def __init__(
        self,
        talk: Talk,
        tap: socket.socket,
        network: socket.socket | None,
        log: Log,
        said: Callable[[Said], None],
        ended: Callable[[], None],
        *,
        at_once: float = AT_ONCE,
        per_second: float = PER_SECOND,
    ) -> None:
        self._talk = talk
        self._log = log
        self._said = said
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._guest = Ear(tap, self._from_guest, self._gone, at_once=at_once, per_second=per_second)
        self._network = Ear(network, self._from_network, self._gone) if network is not None else None
        self._advertise()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._guest.closed

    def close(self) -> None:
        """End; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
        self._guest.close()
        if self._network is not None:
            self._network.close()

    def _advertise(self) -> None:
        frames = self._talk.unasked()
        if frames:
            self._timer = self._loop.call_later(ADVERTISE_EVERY, self._advertise)
        for frame in frames:
            self._guest.say(frame)

    def _from_guest(self, frame: bytes) -> None:
        self._heard(self._talk.from_guest, frame)

    def _from_network(self, frame: bytes) -> None:
        self._heard(self._talk.from_network, frame)

    def _heard(self, understand: Callable[[bytes], Said], frame: bytes) -> None:
        try:
            said = understand(frame)
        except Malformed as error:
            self._log.debug("nothing that can be answered", why=str(error))
            return
        if said.network is not None and self._network is not None:
            self._network.say(said.network)
        for answer in said.guest:
            self._guest.say(answer)
        self._said(said)

    def _gone(self, error: OSError) -> None:
        self._log.debug("the link has gone", why=str(error))
        self.close()
        # Not at once: where the link is only down, listening again ends the same way.
        self._timer = self._loop.call_later(_RETURN, self._ended)
