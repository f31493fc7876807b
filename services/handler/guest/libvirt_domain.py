"""One domain of one libvirtd: the connection, its blocking calls with a deadline, its events. Knows the binding alone.

libvirt blocks. Every call runs in a thread of its own, at most one for a domain (and one more that asks its agent), so
that a libvirtd that hangs holds up no other guest; its thread ends when keep-alive gives the connection up. Events and
keep-alive are served by one thread for the process. Next: :mod:`services.handler.guest.libvirt`, what is called.
"""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import libvirt

from services.handler.guest.port import CardMissing, Change, GuestEvent, GuestNotReachable, GuestRefused

KEEPALIVE = (2, 3)
"""Seconds between two questions to a silent libvirtd, and how many may stay without an answer."""

LIVE, PERSISTENT = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE
BY_AGENT = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT

INTERFACE_STATS = libvirt.VIR_DOMAIN_STATS_INTERFACE
NO_WAIT = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT

_Result = TypeVar("_Result")
_Socket = Callable[[], Awaitable[AbstractContextManager[str]]]
_CONNECTED = libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED


class _Link:
    """An open connection with its domain. Made and used in the domain's thread only."""

    def __init__(self, uri: str, name: str, heard: Callable[[GuestEvent], None], ended: Callable[[], None]) -> None:
        self.connection = libvirt.open(uri)
        self.callbacks: list[int] = []
        try:
            self.connection.setKeepAlive(*KEEPALIVE)
            self.connection.registerCloseCallback(lambda *_: ended(), None)
            self.domain = self.connection.lookupByName(name)
            for event, told in (
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, _about_a_card(Change.CARD_GONE)),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, _about_a_card(Change.CARD_STAYS)),
                (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, _about_the_agent),
            ):
                callback = functools.partial(_hear, told, heard)
                self.callbacks.append(self.connection.domainEventRegisterAny(self.domain, event, callback, None))
            over = functools.partial(_over, ended)
            lifecycle = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
            self.callbacks.append(self.connection.domainEventRegisterAny(self.domain, lifecycle, over, None))
        except libvirt.libvirtError:
            self.close()
            raise

    def close(self) -> None:
        try:
            for callback in self.callbacks:
                self.connection.domainEventDeregisterAny(callback)
            self.connection.unregisterCloseCallback()
            self.connection.close()
        except libvirt.libvirtError:
            # It is gone already.
            return


class Domain:
    """A domain by its name.

    :param socket: finds libvirtd's socket; its path is good inside the context.
    :param deadline: seconds for one call; connecting is part of it.
    """

    def __init__(self, name: str, socket: _Socket, *, deadline: float) -> None:
        self._name = name
        self._socket = socket
        self._deadline = deadline
        self._lane = asyncio.Lock()
        self._running: asyncio.Future[Any] | None = None
        self._asking: asyncio.Future[Any] | None = None
        self._link: _Link | None = None
        self._closed = False
        self._listeners: set[asyncio.Queue[GuestEvent | None]] = set()

    async def call(self, what: str, use: Callable[[Any], _Result]) -> _Result:
        """Use the domain in a thread.

        :param use: gets the binding's ``virDomain``; may block.
        :raises GuestNotReachable: no answer in time, or none at all: what it did is unknown.
        :raises CardMissing: :raises GuestRefused: libvirt or the hypervisor said no.
        """
        try:
            async with asyncio.timeout(self._deadline), self._lane:
                if self._running is not None:
                    # The thread of a call that was given up: nothing can be asked before it is back.
                    await asyncio.wait({self._running})
                link = self._link
                if link is None or not link.connection.isAlive():
                    await self._connect()
                self._running = _thread(lambda: _used(self._link, use))
                return await asyncio.shield(self._running)
        except TimeoutError as error:
            raise GuestNotReachable(
                f"libvirt of {self._name}: {what} not answered within {self._deadline:g} s"
            ) from error
        except libvirt.libvirtError as error:
            raise GuestNotReachable(f"libvirt of {self._name}: {what}: {error}") from error
        except GuestRefused as error:
            raise type(error)(f"{what}: {error}") from error.__cause__

    async def ask(self, use: Callable[[Any], _Result], *, timeout: float) -> _Result:
        """Use the domain beside :meth:`call`, over a connection that stands: for the agent, which may take its time.

        :raises GuestNotReachable: no connection, an earlier question is still open, or no answer in time.
        :raises GuestRefused: libvirt said no.
        """
        link = self._link
        if link is None or (self._asking is not None and not self._asking.done()):
            raise GuestNotReachable(f"libvirt of {self._name} is not connected, or an earlier question is still open")
        self._asking = _thread(lambda: _used(link, use))
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._asking)
        except TimeoutError as error:
            raise GuestNotReachable(f"libvirt of {self._name}: not answered within {timeout:g} s") from error

    async def events(self) -> AsyncIterator[GuestEvent]:
        """What the domain says from now on; ends with the connection, or with the domain."""
        await self.call("events", lambda _: None)
        queue: asyncio.Queue[GuestEvent | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._listeners.discard(queue)

    async def close(self) -> None:
        """Disconnect; a libvirtd that hangs is left to keep-alive."""
        link, self._link, self._closed = self._link, None, True
        self._ended()
        if link is not None and (self._running is None or self._running.done()):
            await asyncio.wait({_thread(link.close)}, timeout=1.0)

    async def _connect(self) -> None:
        _serve_events()
        loop = asyncio.get_running_loop()
        stale, self._link, self._closed = self._link, None, False
        self._ended()
        socket = await self._socket()

        def connect() -> _Link:
            if stale is not None:
                stale.close()
            with socket as path:
                # A daemon that is not root's serves sessions only; root's serves both.
                return _Link(
                    f"qemu+unix:///session?socket={path}",
                    self._name,
                    lambda event: _tell(loop, self._heard, event),
                    lambda: _tell(loop, self._ended),
                )

        self._running = _thread(connect)
        # Also when nobody waits for it any more.
        self._running.add_done_callback(self._connected)
        await asyncio.shield(self._running)

    def _connected(self, opened: "asyncio.Future[_Link]") -> None:
        if opened.exception() is not None:
            return
        if self._closed:
            _thread(opened.result().close)
        else:
            self._link = opened.result()

    def _heard(self, event: GuestEvent) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)

    def _ended(self) -> None:
        for queue in self._listeners:
            queue.put_nowait(None)


async def description(name: str, socket: _Socket, *, deadline: float) -> str:
    """A running domain's description, over a connection of its own that may change nothing: for who only looks.

    :param deadline: seconds for all of it.
    :raises GuestNotReachable: no answer in time, or none at all.
    """
    _serve_events()

    def look(found: AbstractContextManager[str]) -> str:
        with found as path:
            connection = libvirt.openReadOnly(f"qemu+unix:///session?socket={path}")
        try:
            return str(connection.lookupByName(name).XMLDesc(0))
        finally:
            connection.close()

    try:
        async with asyncio.timeout(deadline):
            found = await socket()
            return await asyncio.shield(_thread(lambda: look(found)))
    except TimeoutError as error:
        raise GuestNotReachable(f"libvirt of {name}: not answered within {deadline:g} s") from error
    except libvirt.libvirtError as error:
        raise GuestNotReachable(f"libvirt of {name}: {error}") from error


def _used(link: _Link | None, use: Callable[[Any], _Result]) -> _Result:
    assert link is not None
    try:
        return use(link.domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_DEVICE_MISSING:
            raise CardMissing(str(error)) from error
        # A domain that is gone, or busy for longer than libvirt waits, says nothing about what was asked of it.
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT or not link.domain.isActive():
            raise
        raise GuestRefused(str(error)) from error


def _thread(work: Callable[[], _Result]) -> "asyncio.Future[_Result]":
    """Run it in a thread that nobody has to wait for, not even the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            _tell(loop, _fail, future, error)
        else:
            _tell(loop, _finish, future, result)

    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    return future


def _finish(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        # Whoever gave up waiting for it has told so already.
        future.exception()


def _tell(loop: asyncio.AbstractEventLoop, tell: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(tell, *arguments)
    except RuntimeError:
        # The loop is closed: nobody listens any more.
        return


def _hear(told: Callable[..., GuestEvent], heard: Callable[[GuestEvent], None], *arguments: Any) -> None:
    heard(told(*arguments))


def _over(ended: Callable[[], None], connection: Any, domain: Any, event: int, *_: Any) -> None:
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
        ended()


def _about_a_card(change: Change) -> Callable[..., GuestEvent]:
    return lambda connection, domain, alias, *_: GuestEvent(change, alias)


def _about_the_agent(connection: Any, domain: Any, state: int, *_: Any) -> GuestEvent:
    return GuestEvent(Change.AGENT_CAME if state == _CONNECTED else Change.OTHER)


@functools.cache
def _serve_events() -> None:
    """Start the one thread that libvirt's events and keep-alive need; it lasts as long as the process."""
    libvirt.virEventRegisterDefaultImpl()
    # By itself the library prints every error on standard error.
    libvirt.registerErrorHandler(lambda *_: None, None)

    def serve() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=serve, name="libvirt-events", daemon=True).start()
