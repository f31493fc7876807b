"""Hears frames on a packet socket, and no more of them than is good. Nothing is decided here.

Who talks too much is heard more slowly than it talks: the kernel drops the rest, so neither memory nor time is a
guest's to spend. Next: :mod:`services.handler.addresses.server`, which has one for the guest.
"""

import asyncio
import errno
import socket
from collections.abc import Callable

from services.handler.addresses.frames import MAX_FRAME

AT_ONCE = 32
"""Frames that are heard without a pause."""
PER_SECOND = 100.0
"""Frames that are heard in the long run."""
_PAUSE = 0.1
_GONE = {errno.ENETDOWN, errno.ENXIO, errno.ENODEV}


class Ear:
    """Listens from now on until closed.

    :param sock: non-blocking; the ear's own from now on. :param heard: called with each frame.
    :param gone: called when the link has gone, or gone down; the ear is closed then.
    """

    def __init__(
        self,
        sock: socket.socket,
        heard: Callable[[bytes], None],
        gone: Callable[[OSError], None],
        *,
        at_once: float = AT_ONCE,
        per_second: float = PER_SECOND,
    ) -> None:
        self._sock = sock
        self._heard = heard
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._at_once = at_once
        self._per_second = per_second
        self._credit = at_once
        self._counted = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._readable)

    @property
    def closed(self) -> bool:
        """Whether nothing is heard any more."""
        return self._sock.fileno() < 0

    def say(self, frame: bytes) -> None:
        """Send a frame. One that is not taken now is not missed: who asks asks again."""
        try:
            self._sock.send(frame)
        except OSError as error:
            if error.errno in _GONE:
                self._fail(error)

    def close(self) -> None:
        """End; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.closed:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _readable(self) -> None:
        now = self._loop.time()
        self._credit = min(self._at_once, self._credit + (now - self._counted) * self._per_second)
        self._counted = now
        while self._credit >= 1 and not self.closed:
            self._credit -= 1
            try:
                frame = self._sock.recv(MAX_FRAME)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(error)
                return
            self._heard(frame)
        if not self.closed:
            self._loop.remove_reader(self._sock)
            self._timer = self._loop.call_later(_PAUSE, self._listen_again)

    def _listen_again(self) -> None:
        self._loop.add_reader(self._sock, self._readable)

    def _fail(self, error: OSError) -> None:
        if not self.closed:
            self.close()
            self._gone(error)
