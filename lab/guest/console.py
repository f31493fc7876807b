"""Read a guest's serial console: its readiness, its links and its addresses.

The parser is pure and accepts the output in pieces of any size. The follower feeds it from the log file that QEMU
writes, woken by inotify; it never connects to QEMU or the guest agent. `init.sh` and `udhcpc-lease.sh` print the
lines inside the guest. `lab.guest.qemu` creates a follower for each guest.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_LINE: Final = re.compile(r"\[ *(\d+\.\d+)\] hotnic-guest: (.*)")
_LINK: Final = re.compile(
    r"link (?P<action>add|remove|change|move|online|offline|bind|unbind) (?P<name>\S+) "
    r"mac (?P<mac>\S+) mtu (?P<mtu>\d+|-) state (?P<state>up|down|-) carrier (?P<carrier>on|off|-)$"
)
_ADDRESS: Final = re.compile(
    r"address (?P<action>bound|renew|nak) (?P<name>\S+)(?: (?P<cidr>\S+) router (?P<router>\S+)"
    r" server (?P<server>\S+) lease (?P<lease>\d+|-))?"
)
_LONGEST_LINE: Final = 4096
# <sys/inotify.h>
_IN_MODIFY: Final = 0x2
_IN_NONBLOCK: Final = os.O_NONBLOCK
_IN_CLOEXEC: Final = os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """A guest's report about one link.

    `mac`, `mtu`, `up` and `carrier` are None for a link that was removed.

    :ivar action: `add`, `change` or `remove`, or another action of the kernel.
    :ivar mac: in lower case.
    :ivar carrier: whether the link has a carrier, which the kernel reports only for a link that is up.
    :ivar guest_time: seconds since the guest booted.
    :ivar arrived_at: the host's clock when the line was read, in seconds since the epoch.
    """

    action: str
    name: str
    mac: str | None
    mtu: int | None
    up: bool | None
    carrier: bool | None
    guest_time: float
    arrived_at: float


@dataclass(frozen=True, slots=True)
class AddressEvent:
    """A report of the guest's DHCP client; times as in LinkEvent.

    :ivar action: `bound`, `renew` or `nak`.
    :ivar address: in CIDR form, or None when not reported; so are `router` and `server`.
    :ivar lease: seconds, or None when not reported.
    """

    action: str
    name: str
    address: str | None
    router: str | None
    server: str | None
    lease: int | None
    guest_time: float
    arrived_at: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The guest has booted; times as in LinkEvent."""

    guest_time: float
    arrived_at: float


GuestEvent = LinkEvent | AddressEvent | Ready


def parse_line(line: str, arrived_at: float) -> GuestEvent | None:
    """Return the event that a console line reports, or None for any other line."""
    found = _LINE.search(line)
    if found is None:
        return None
    guest_time, text = float(found[1]), found[2].rstrip()
    if text == "ready":
        return Ready(guest_time, arrived_at)
    address = _ADDRESS.match(text)
    if address is not None:
        fields = {key: None if value == "-" else value for key, value in address.groupdict().items()}
        return AddressEvent(
            action=address["action"],
            name=address["name"],
            address=fields["cidr"],
            router=fields["router"],
            server=fields["server"],
            lease=int(fields["lease"]) if fields["lease"] else None,
            guest_time=guest_time,
            arrived_at=arrived_at,
        )
    link = _LINK.match(text)
    if link is None:
        return None
    return LinkEvent(
        action=link["action"],
        name=link["name"],
        mac=None if link["mac"] == "-" else link["mac"].lower(),
        mtu=None if link["mtu"] == "-" else int(link["mtu"]),
        up=None if link["state"] == "-" else link["state"] == "up",
        carrier=None if link["carrier"] == "-" else link["carrier"] == "on",
        guest_time=guest_time,
        arrived_at=arrived_at,
    )


class ConsoleParser:
    """Splits console output, which may be cut anywhere, into events; a line is complete with its newline."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, arrived_at: float) -> list[GuestEvent]:
        """Add the next piece of output and return the events that it completes."""
        *lines, rest = (self._rest + data).split(b"\n")
        # A console that never prints a newline must not fill the memory.
        self._rest = rest[-_LONGEST_LINE:]
        events = (parse_line(line.decode(errors="replace"), arrived_at) for line in lines)
        return [event for event in events if event is not None]


class _Inotify:
    """Calls back when a file was written to; the standard library has no inotify."""

    def __init__(self, path: Path, on_write: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._wake = on_write
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if libc.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_MODIFY) < 0:
            error = ctypes.get_errno()
            os.close(self._descriptor)
            raise OSError(error, "inotify_add_watch", str(path))
        self._loop.add_reader(self._descriptor, self._readable)

    def _readable(self) -> None:
        try:
            os.read(self._descriptor, 65536)
        except BlockingIOError:
            return
        self._wake()

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)


class ConsoleFollower:
    """Follows one console log from its beginning; use it as an async context manager.

    The file is created when it does not exist.

    :ivar events: all events so far.
    """

    def __init__(self, log: Path) -> None:
        self.events: list[GuestEvent] = []
        self._log = log
        self._parser = ConsoleParser()
        self._waiting: set[asyncio.Future[None]] = set()
        self._ended: str | None = None
        self._descriptor: int | None = None
        self._inotify: _Inotify | None = None

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Start to follow the log; needs a running event loop.

        :raises OSError: the log cannot be opened or watched.
        """
        # QEMU creates the log; the file must exist before inotify can watch it.
        self._descriptor = os.open(self._log, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._inotify = _Inotify(self._log, self._read)
        except OSError:
            os.close(self._descriptor)
            self._descriptor = None
            raise
        self._read()

    def close(self) -> None:
        """Stop following; pending and later waits raise ConnectionError. Closing twice is harmless."""
        if self._descriptor is None:
            return
        self.end("the console is no longer followed")
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._descriptor)
        self._descriptor = None

    def end(self, reason: str) -> None:
        """Make pending and later waits fail with `reason`, because no more lines will be written."""
        self._ended = self._ended or reason
        self._notify()

    def _read(self) -> None:
        if self._descriptor is None:
            return
        data = b""
        while piece := os.read(self._descriptor, 65536):
            data += piece
        found = self._parser.feed(data, time.time())
        if found:
            self.events += found
            self._notify()

    def _notify(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def wait_for(self, wanted: Callable[[GuestEvent], bool], timeout: float, since: int = 0) -> GuestEvent:
        """Return the first event that `wanted` accepts, including events that were read before the call.

        :param timeout: seconds to wait.
        :param since: index in `events` at which to start.
        :raises TimeoutError: there was no such event in time.
        :raises ConnectionError: the console has ended.
        """
        seen = since
        async with asyncio.timeout(timeout):
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = max(since, len(self.events))
                if self._ended is not None:
                    raise ConnectionError(self._ended)
                waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.add(waiting)
                try:
                    await waiting
                finally:
                    self._waiting.discard(waiting)

    async def wait_ready(self, timeout: float) -> Ready:
        """Return once the guest has booted; raises as `wait_for`."""
        event = await self.wait_for(lambda event: isinstance(event, Ready), timeout)
        assert isinstance(event, Ready)
        return event

    async def wait_for_link(self, mac: str, timeout: float, action: str = "add", since: int = 0) -> LinkEvent:
        """Return the guest's report of `action` on the link with this MAC; raises as `wait_for`."""
        event = await self.wait_for(
            lambda event: isinstance(event, LinkEvent) and event.action == action and event.mac == mac.lower(),
            timeout,
            since,
        )
        assert isinstance(event, LinkEvent)
        return event

    def links_seen(self) -> dict[str, LinkEvent]:
        """Return the guest's current links by name, as it last reported them."""
        links: dict[str, LinkEvent] = {}
        for event in self.events:
            if isinstance(event, LinkEvent):
                if event.action == "remove":
                    links.pop(event.name, None)
                else:
                    links[event.name] = event
        return links
