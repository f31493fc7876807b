"""Reads what the guest prints on its serial console: when it is ready, links that come or go, addresses.

The parser is pure and takes the console in pieces of any size; the follower feeds it from the log file that
QEMU writes, woken by inotify. It never talks to QEMU or to the guest agent. The lines are printed by `init.sh`
and `udhcpc-lease.sh`;
`services.lab.guest.qemu` puts a follower beside each guest.
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
_IN_MODIFY: Final = 0x2
_IN_NONBLOCK: Final = os.O_NONBLOCK
_IN_CLOEXEC: Final = os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """What the guest's kernel said about one network link.

    `guest_time` is in seconds since the guest booted, `arrived_at` is the host's clock (seconds since the epoch)
    when the line was read. `carrier` is whether a cable is plugged, which shows only on a link that is up. `mac` (lower
    case), `mtu`, `up` and `carrier` are None for a link that is gone.
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
    """What the guest's DHCP client said: `bound`, `renew` or `nak`; times as in LinkEvent.

    `address` is in CIDR form, `lease` in seconds; both, `router` and `server` are None where nothing was said of them.
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
    """Return what one console line says, or None for anything else that is printed there."""
    found = _LINE.search(line)
    if found is None:
        return None
    guest_time, text = float(found[1]), found[2].rstrip()
    if text == "ready":
        return Ready(guest_time, arrived_at)
    address = _ADDRESS.match(text)
    if address is not None:
        said = {key: None if value == "-" else value for key, value in address.groupdict().items()}
        return AddressEvent(
            action=address["action"],
            name=address["name"],
            address=said["cidr"],
            router=said["router"],
            server=said["server"],
            lease=int(said["lease"]) if said["lease"] else None,
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
    """Turns console output, cut anywhere, into events: a line counts once its newline has come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, arrived_at: float) -> list[GuestEvent]:
        """Take the next piece of output and return the events that it completes."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_LONGEST_LINE:]
        events = (parse_line(line.decode(errors="replace"), arrived_at) for line in lines)
        return [event for event in events if event is not None]


class _Inotify:
    """Wakes a callback when a file has been written to (the standard library has no inotify)."""

    def __init__(self, path: Path, wake: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._wake = wake
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

    `events` holds all that was said so far. The file is made when it is not there yet.
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
        """Begin to follow; raises OSError. Needs a running event loop."""
        self._descriptor = os.open(self._log, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._inotify = _Inotify(self._log, self._read)
        except OSError:
            os.close(self._descriptor)
            self._descriptor = None
            raise
        self._read()

    def close(self) -> None:
        """Stop following; who still waits gets ConnectionError. Closing twice is harmless."""
        if self._descriptor is None:
            return
        self.end("the console is no longer followed")
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._descriptor)
        self._descriptor = None

    def end(self, reason: str) -> None:
        """Let everyone who waits, now or later, fail with `reason`: no more lines will come."""
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
        """Return the first event from index `since` on that `wanted` accepts, also one already seen.

        Raises TimeoutError after `timeout` seconds, ConnectionError when the console has ended.
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
        """Return when the guest has booted; raises as `wait_for`."""
        event = await self.wait_for(lambda event: isinstance(event, Ready), timeout)
        assert isinstance(event, Ready)
        return event

    async def wait_for_link(self, mac: str, timeout: float, action: str = "add", since: int = 0) -> LinkEvent:
        """Return the guest's report of `action` on the link with that MAC; raises as `wait_for`."""
        event = await self.wait_for(
            lambda event: isinstance(event, LinkEvent) and event.action == action and event.mac == mac.lower(),
            timeout,
            since,
        )
        assert isinstance(event, LinkEvent)
        return event

    def links_seen(self) -> dict[str, LinkEvent]:
        """Return the links that the guest has now, by name, as it last reported them."""
        links: dict[str, LinkEvent] = {}
        for event in self.events:
            if isinstance(event, LinkEvent):
                if event.action == "remove":
                    links.pop(event.name, None)
                else:
                    links[event.name] = event
        return links
