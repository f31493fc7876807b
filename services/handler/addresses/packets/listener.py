"""Receive frames from a packet socket at a bounded rate. This module decides nothing about their content.

A guest that sends faster than the rate is served more slowly: the kernel drops the frames that do not fit into the
socket's buffer. So a guest can exhaust neither memory nor CPU time of the handler.
Next: :mod:`services.handler.addresses.server`, which uses one listener for the guest and one for the network.
"""

import asyncio
import errno
import socket
from collections.abc import Callable

from services.handler.addresses.packets.frames import MAX_FRAME

BURST = 32
"""Frames that are received without a pause."""
FRAMES_PER_SECOND = 100.0
"""Frames that are received per second in the long run."""
_PAUSE = 0.1
"""Seconds without reading when the bucket is empty. Ten more tokens arrive meanwhile."""
_LINK_GONE = {errno.ENETDOWN, errno.ENXIO, errno.ENODEV}


class PacketListener:
    """A packet socket with a token bucket; it receives from its creation until it is closed.

    :param sock: non-blocking; the listener owns it and closes it.
    :param on_frame: called with each frame.
    :param on_link_gone: called after the link was removed or set down; the listener is closed by then.
    :param burst: size of the token bucket, in frames.
    :param rate: refill of the token bucket, in frames per second.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[bytes], None],
        on_link_gone: Callable[[OSError], None],
        *,
        burst: float = BURST,
        rate: float = FRAMES_PER_SECOND,
    ) -> None:
        self._sock = sock
        self._on_frame = on_frame
        self._on_link_gone = on_link_gone
        self._loop = asyncio.get_running_loop()
        self._burst = burst
        self._rate = rate
        self._tokens = burst
        self._refilled = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._read_frames)

    @property
    def closed(self) -> bool:
        """Whether the listener is closed."""
        return self._sock.fileno() < 0

    def send(self, frame: bytes) -> None:
        """Send a frame; one that the kernel does not take now is dropped, because clients repeat their requests."""
        try:
            self._sock.send(frame)
        except OSError as error:
            if error.errno in _LINK_GONE:
                self._fail(error)

    def close(self) -> None:
        """Close the socket; closing twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.closed:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _read_frames(self) -> None:
        now = self._loop.time()
        self._tokens = min(self._burst, self._tokens + (now - self._refilled) * self._rate)
        self._refilled = now
        while self._tokens >= 1 and not self.closed:
            self._tokens -= 1
            try:
                frame = self._sock.recv(MAX_FRAME)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(error)
                return
            self._on_frame(frame)
        # The socket stays readable, so without removing the reader the event loop would spin.
        if not self.closed:
            self._loop.remove_reader(self._sock)
            self._timer = self._loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._sock, self._read_frames)

    def _fail(self, error: OSError) -> None:
        if not self.closed:
            self.close()
            self._on_link_gone(error)
