"""One domain of one libvirtd: the connection, blocking calls with a deadline, events. The only user of the binding.

libvirt's calls block. Each runs in a thread of its own, at most one for a domain, plus one for its guest agent. So a
libvirtd that hangs delays no other guest, and its thread ends when libvirt's keep-alive closes the connection. One
thread serves the events and the keep-alive of all connections.
Next: :mod:`services.common.guest.libvirt`, which makes the calls.
"""

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import libvirt

from schemas.inputs import Edge, RejectReason, printable, reject
from services.common.guest.pending_events import EventGate, PendingEvents
from services.common.guest.port import (
    MAX_NAME,
    DeviceMissing,
    GuestChange,
    GuestEvent,
    GuestFloods,
    GuestNotReachable,
    GuestRefused,
)

KEEPALIVE = (2, 3)
"""Seconds between two keep-alive requests to an idle libvirtd, and how many may stay unanswered."""

FLOOD_PAUSE = 30.0
"""Seconds without a call after a libvirtd has sent more than any domain has."""

LIVE, PERSISTENT = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE
BY_AGENT = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT

INTERFACE_STATS = libvirt.VIR_DOMAIN_STATS_INTERFACE
NO_WAIT = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
"""Leaves out statistics that libvirt could report only after another call on the domain has ended."""

_Result = TypeVar("_Result")
_Socket = Callable[[], Awaitable[AbstractContextManager[str]]]
_CONNECTED = libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED


class _Connection:
    """An open connection and its domain. Created and used in the domain's thread only."""

    def __init__(self, uri: str, name: str, gate: EventGate[GuestEvent], on_end: Callable[[], None]) -> None:
        self.connection = libvirt.open(uri)
        self.callbacks: list[int] = []
        try:
            self.connection.setKeepAlive(*KEEPALIVE)
            self.connection.registerCloseCallback(lambda *_: on_end(), None)
            self.domain = self.connection.lookupByName(name)
            for event, parse in (
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, _device_event(GuestChange.DEVICE_DELETED)),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, _device_event(GuestChange.UNPLUG_REFUSED)),
                (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, _agent_event),
            ):
                callback = functools.partial(_forward, gate, parse)
                self.callbacks.append(self.connection.domainEventRegisterAny(self.domain, event, callback, None))
            stopped = functools.partial(_on_lifecycle, on_end)
            lifecycle = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
            self.callbacks.append(self.connection.domainEventRegisterAny(self.domain, lifecycle, stopped, None))
        except libvirt.libvirtError:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect; a broken connection is no error."""
        try:
            for callback in self.callbacks:
                self.connection.domainEventDeregisterAny(callback)
            self.connection.unregisterCloseCallback()
            self.connection.close()
        except libvirt.libvirtError:
            # The connection is broken already; there is nothing left to close.
            return


class LibvirtDomain:
    """A domain of a libvirtd, by name."""

    def __init__(self, name: str, socket: _Socket, *, deadline: float) -> None:
        """Create the client; it does not connect yet.

        :param name: the domain's name.
        :param socket: finds libvirtd's socket; the path is valid inside the context.
        :param deadline: seconds for one call, connecting included.
        """
        self._name = name
        self._socket = socket
        self._deadline = deadline
        self._call_lock = asyncio.Lock()
        self._running: asyncio.Future[Any] | None = None
        self._querying: asyncio.Future[Any] | None = None
        self._connection: _Connection | None = None
        self._closed = False
        self._flooded_until = 0.0
        self._subscribers: set[PendingEvents[GuestEvent]] = set()

    async def call(self, what: str, use: Callable[[Any], _Result]) -> _Result:
        """Run a function on the domain in a thread, and return its result.

        :param what: the name of the call, for error messages.
        :param use: called with the binding's ``virDomain``; may block.
        :raises GuestNotReachable: there was no response in time. Whether the call took effect is unknown.
        :raises DeviceMissing: the domain does not have the device.
        :raises GuestRefused: libvirt or the hypervisor refused the call.
        """
        if asyncio.get_running_loop().time() < self._flooded_until:
            raise GuestFloods(
                f"libvirt of {self._name}: not called for {FLOOD_PAUSE:g} s, because it has sent too much"
            )
        try:
            async with asyncio.timeout(self._deadline), self._call_lock:
                if self._running is not None:
                    # The thread of an earlier call that timed out. A domain has one thread, so wait for it.
                    await asyncio.wait({self._running})
                connection = self._connection
                if connection is None or not connection.connection.isAlive():
                    await self._connect()
                self._running = _run_in_thread(lambda: _run_on_domain(self._connection, use))
                # Shielded: the thread cannot be cancelled, and the next call waits for this future.
                return await asyncio.shield(self._running)
        except TimeoutError as error:
            raise GuestNotReachable(
                f"libvirt of {self._name}: {what} not answered within {self._deadline:g} s"
            ) from error
        except libvirt.libvirtError as error:
            raise GuestNotReachable(f"libvirt of {self._name}: {what}: {printable(str(error))}") from error
        except GuestRefused as error:
            raise type(error)(f"{what}: {error}") from error.__cause__

    async def query(self, use: Callable[[Any], _Result], *, timeout: float) -> _Result:
        """Run a function on the domain in parallel to :meth:`call`: for the guest agent, which may be slow.

        It needs an open connection and does not open one.

        :param use: called with the binding's ``virDomain``; may block.
        :param timeout: seconds.
        :raises GuestNotReachable: there is no connection, an earlier query is pending, or there was no response in
            time.
        :raises GuestRefused: libvirt refused the call.
        """
        connection = self._connection
        if connection is None or (self._querying is not None and not self._querying.done()):
            raise GuestNotReachable(f"libvirt of {self._name} is not connected, or an earlier query is pending")
        self._querying = _run_in_thread(lambda: _run_on_domain(connection, use))
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._querying)
        except TimeoutError as error:
            raise GuestNotReachable(f"libvirt of {self._name}: not answered within {timeout:g} s") from error
        except libvirt.libvirtError as error:
            raise GuestNotReachable(f"libvirt of {self._name}: {printable(str(error))}") from error

    async def events(self) -> AsyncIterator[GuestEvent]:
        """Yield the domain's events from now on, until the connection or the domain ends."""
        await self.call("events", lambda _: None)
        pending: PendingEvents[GuestEvent] = PendingEvents()
        self._subscribers.add(pending)
        try:
            async for event in pending.read():
                yield event
        finally:
            self._subscribers.discard(pending)

    async def give_up(self) -> None:
        """Disconnect for :data:`FLOOD_PAUSE`: the libvirtd has sent more than is read."""
        self._flooded_until = asyncio.get_running_loop().time() + FLOOD_PAUSE
        await self.close()

    async def close(self) -> None:
        """Disconnect. A connection to a libvirtd that hangs is left to libvirt's keep-alive."""
        connection, self._connection, self._closed = self._connection, None, True
        self._end_events()
        if connection is not None and self._running is not None and not self._running.done():
            self._running.add_done_callback(lambda _: _run_in_thread(connection.close))
        elif connection is not None:
            await asyncio.wait({_run_in_thread(connection.close)}, timeout=1.0)

    async def _connect(self) -> None:
        _serve_events()
        loop = asyncio.get_running_loop()
        stale, self._connection, self._closed = self._connection, None, False
        self._end_events()
        socket = await self._socket()
        gate: EventGate[GuestEvent] = EventGate(
            lambda event: _call_soon(loop, self._publish, event), lambda: _call_soon(loop, self._on_flood)
        )

        def connect() -> _Connection:
            if stale is not None:
                stale.close()
            with socket as path:
                # A libvirtd that does not run as root serves only the session URI; root's serves both.
                return _Connection(
                    f"qemu+unix:///session?socket={path}",
                    self._name,
                    gate,
                    lambda: _call_soon(loop, self._end_events),
                )

        self._running = _run_in_thread(connect)
        # A callback, because the caller may have timed out by the time the connection is open.
        self._running.add_done_callback(self._connected)
        await asyncio.shield(self._running)

    def _connected(self, opened: "asyncio.Future[_Connection]") -> None:
        if opened.exception() is not None:
            return
        if self._closed:
            _run_in_thread(opened.result().close)
        else:
            self._connection = opened.result()

    def _publish(self, event: GuestEvent) -> None:
        for pending in self._subscribers:
            pending.put(event)

    def _on_flood(self) -> None:
        reject(Edge.DOMAIN, RejectReason.TOO_MANY, "events of libvirt")
        self._giving_up = asyncio.ensure_future(self.give_up())

    def _end_events(self) -> None:
        for pending in self._subscribers:
            pending.end()


async def read_description(name: str, socket: _Socket, *, deadline: float) -> str:
    """Return a running domain's description, over a read-only connection of its own: for ``hotnic doctor``.

    :param name: the domain's name.
    :param socket: finds libvirtd's socket; the path is valid inside the context.
    :param deadline: seconds for everything.
    :raises GuestNotReachable: there was no response in time.
    """
    _serve_events()

    def read(found: AbstractContextManager[str]) -> str:
        with found as path:
            connection = libvirt.openReadOnly(f"qemu+unix:///session?socket={path}")
        try:
            return str(connection.lookupByName(name).XMLDesc(0))
        finally:
            connection.close()

    try:
        async with asyncio.timeout(deadline):
            found = await socket()
            return await asyncio.shield(_run_in_thread(lambda: read(found)))
    except TimeoutError as error:
        raise GuestNotReachable(f"libvirt of {name}: not answered within {deadline:g} s") from error
    except libvirt.libvirtError as error:
        raise GuestNotReachable(f"libvirt of {name}: {printable(str(error))}") from error


def _run_on_domain(connection: _Connection | None, use: Callable[[Any], _Result]) -> _Result:
    """Run a function on the domain in the current thread.

    :raises DeviceMissing: the domain does not have the device.
    :raises GuestRefused: libvirt refused the call.
    :raises libvirt.libvirtError: there was no answer to the call.
    """
    assert connection is not None
    try:
        return use(connection.domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_DEVICE_MISSING:
            raise DeviceMissing(printable(str(error))) from error
        # An error of a domain that is gone, or locked by another call, is no answer to the request.
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT or not connection.domain.isActive():
            raise
        raise GuestRefused(printable(str(error))) from error


def _run_in_thread(work: Callable[[], _Result]) -> "asyncio.Future[_Result]":
    """Run a function in a daemon thread, which does not delay the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            _call_soon(loop, _fail, future, error)
        else:
            _call_soon(loop, _finish, future, result)

    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    return future


def _finish(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        # Marks the exception as retrieved: a caller that timed out has raised an error of its own already.
        future.exception()


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        # The event loop is closed: the process ends.
        return


def _forward(gate: EventGate[GuestEvent], parse: Callable[..., GuestEvent], *arguments: Any) -> None:
    # In this thread: the event loop could not keep up with it.
    gate.put(parse(*arguments), time.monotonic())


def _on_lifecycle(on_end: Callable[[], None], connection: Any, domain: Any, event: int, *_: Any) -> None:
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
        on_end()


def _device_event(change: GuestChange) -> Callable[..., GuestEvent]:
    return lambda connection, domain, alias, *_: GuestEvent(change, alias if len(alias) <= MAX_NAME else None)


def _agent_event(connection: Any, domain: Any, state: int, *_: Any) -> GuestEvent:
    return GuestEvent(GuestChange.AGENT_CONNECTED if state == _CONNECTED else GuestChange.OTHER)


@functools.cache
def _serve_events() -> None:
    """Start the thread that serves libvirt's events and keep-alive. It is cached, so that it starts one thread."""
    libvirt.virEventRegisterDefaultImpl()
    # By default the library prints every error on standard error.
    libvirt.registerErrorHandler(lambda *_: None, None)

    def serve() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=serve, name="libvirt-events", daemon=True).start()
