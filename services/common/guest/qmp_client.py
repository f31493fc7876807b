"""A client of one QMP socket: connect, execute commands, receive events. The only module that imports ``qemu.qmp``.

QEMU serves one QMP client at a time on each socket. A second client waits in the socket's backlog and gets no greeting.
Next: :mod:`services.common.guest.qmp`, the driver of a guest, which knows the commands.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePath
from typing import Any, TypeVar

import msgspec
from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from schemas.inputs import (
    Edge,
    InputDecoder,
    RejectedInput,
    RejectReason,
    check_count,
    count_values,
    printable,
    reject,
    rejecting,
)
from services.common.flowcontrol.allowance import Allowance
from services.common.guest.pending_events import PendingEvents
from services.common.guest.port import DeviceMissing, GuestFloods, GuestNotReachable, GuestRefused
from services.common.guest.sockets import connect_below

DEADLINE = 5.0
"""Seconds for one command; connecting takes at most as long."""

MAX_MESSAGE_BYTES = 2 * 1024 * 1024
"""Limit of one message. QEMU lists up to 4096 VLANs (24 kB) for each NIC."""
MAX_ANSWERS_BYTES = 4 * 1024 * 1024
"""Limit of all answers of a list together. Apart from the VLANs, QEMU sends less than 1 kB for each device."""
MAX_VALUES = 4096
"""Values of a greeting, an event or an error. The values of an answer are the limit of who decodes it."""
MAX_GREETING_BYTES = 16 * 1024
"""The library keeps the greeting as long as the connection."""
MAX_UNREQUESTED, UNREQUESTED_PER_SECOND = 8192, 256
"""Kibibytes that a domain may send without a request at once, and in the long run. A message counts as at least one.
QEMU sends some events for each device."""
FLOOD_PAUSE = 30.0
"""Seconds until the next connection after a domain has sent more."""
MAX_ERROR_TEXT = 1024
"""Characters of an error message, which quotes the domain."""

_MISSING = "DeviceNotFound"
_NONE = msgspec.Raw(b"")
_Event = TypeVar("_Event")


class QmpClient:
    """A client of one QMP socket. It connects at the first call, and again after the connection broke."""

    def __init__(
        self,
        socket_path: str,
        *,
        trusted: str | None = None,
        deadline: float = DEADLINE,
        on_connect: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the client; it does not connect yet.

        :param socket_path: QEMU's QMP socket.
        :param trusted: the folder above the socket below which no symbolic link is followed; by default the socket's.
        :param deadline: seconds for one command, and for connecting.
        :param on_connect: called after each connection was opened. Another QEMU may serve the socket by then.
        """
        self._path = socket_path
        self._trusted = Path(trusted or os.path.dirname(socket_path))
        self._deadline = deadline
        self._on_connect = on_connect
        self._client: QMPClient | None = None
        self._connecting = asyncio.Lock()
        # Over all connections: the domain may end one, too.
        self._unrequested = Allowance(1 / UNREQUESTED_PER_SECOND)
        self._flooded_until = 0.0
        self._answered = 0

    async def connect(self) -> None:
        """Connect, unless the client is connected.

        :raises GuestNotReachable: there is no QEMU, or it did not send its greeting in time.
        """
        await self._connected()

    def expect_answers(self) -> None:
        """Start a list: from now on, all answers together may have :data:`MAX_ANSWERS_BYTES`."""
        self._answered = 0

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> msgspec.Raw:
        """Execute a command and return its result, undecoded. Several commands may be executed at the same time.

        :raises GuestNotReachable: there was no response in time. Whether the command took effect is unknown.
        :raises DeviceMissing: the command names a device that does not exist.
        :raises GuestRefused: QEMU refused the command.
        """
        client = await self._connected()
        try:
            async with asyncio.timeout(self._deadline):
                result = await client.execute(command, arguments)
                assert isinstance(result, msgspec.Raw), "what QmpMessage makes of each answer"
                return result
        except ExecuteError as exc:
            refused = DeviceMissing if exc.error_class == _MISSING else GuestRefused
            raise refused(f"{command}: {_text(exc)}") from exc
        except TimeoutError as exc:
            # The next connection forgets what this one has found: the command may have taken effect.
            await self.close()
            raise GuestNotReachable(f"QMP at {self._path}: {command} not answered within {self._deadline:g} s") from exc
        except (QMPError, OSError) as exc:
            await self.close()
            self._check_flooded()
            raise GuestNotReachable(f"QMP at {self._path}: {command}: {_text(exc)}") from exc

    async def events(self, parse: Callable[[Any], _Event]) -> AsyncIterator[_Event]:
        """Yield QEMU's events from now on, until the connection ends.

        :param parse: returns what is yielded for a QMP message.
        :raises GuestNotReachable: as :meth:`connect`.
        """
        client = await self._connected()
        pending: PendingEvents[_Event] = PendingEvents()

        def take(message: Any) -> bool:
            # Before it waits for its reader: of a message, which may be large, the event is a small part.
            with contextlib.suppress(RejectedInput), rejecting(Edge.DOMAIN):
                pending.put(parse(message))
            return False

        with client.listener(event_filter=take):
            ended = asyncio.ensure_future(_ended(client))
            ended.add_done_callback(lambda _: pending.end())
            try:
                async for event in pending.read():
                    yield event
            finally:
                ended.cancel()

    async def give_up(self) -> None:
        """Disconnect for :data:`FLOOD_PAUSE`: the domain has answered more than is decoded."""
        self._pause()
        await self.close()

    async def close(self) -> None:
        """Disconnect; may be called repeatedly."""
        client, self._client = self._client, None
        if client is not None:
            await _disconnect(client)

    async def _connected(self) -> QMPClient:
        async with self._connecting:
            if self._client is not None and self._client.runstate == Runstate.RUNNING:
                return self._client
            # Before the new connection: QEMU serves one client at a time.
            await self.close()
            self._check_flooded()
            client = _Client(self._count_unrequested, self._count_answer)
            # The library's own listener would keep every event of QEMU for ever, and so does each listener's history.
            client.events.event_filter = _discard
            try:
                connection = connect_below(self._trusted, PurePath(self._path).relative_to(self._trusted))
                async with asyncio.timeout(self._deadline):
                    await client.connect(connection)
            except TimeoutError as exc:
                raise GuestNotReachable(
                    f"QMP at {self._path}: no greeting within {self._deadline:g} s (is another client connected?)"
                ) from exc
            except (QMPError, OSError, ValueError) as exc:
                raise GuestNotReachable(f"QMP at {self._path}: {_text(exc)}") from exc
            self._client = client
            self._on_connect()
            return client

    def _count_unrequested(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        if self._unrequested.use(now, max(1.0, size / 1024)) > MAX_UNREQUESTED:
            self._pause()
            raise reject(Edge.DOMAIN, RejectReason.TOO_MANY, "too many messages without a request")

    def _count_answer(self, size: int) -> None:
        self._answered += size
        if self._answered > MAX_ANSWERS_BYTES:
            self._pause()
            raise reject(Edge.DOMAIN, RejectReason.TOO_LARGE, "the answers of a list")

    def _pause(self) -> None:
        self._flooded_until = asyncio.get_running_loop().time() + FLOOD_PAUSE

    def _check_flooded(self) -> None:
        if asyncio.get_running_loop().time() < self._flooded_until:
            raise GuestFloods(
                f"QMP at {self._path}: not connected for {FLOOD_PAUSE:g} s,"
                " because it has sent too many messages, or too large ones"
            )


class _Members(msgspec.Struct, frozen=True):
    """The members of a message that are used; the others are not decoded."""

    id: str | None = None
    event: str | None = None
    result: msgspec.Raw = msgspec.field(default=_NONE, name="return")
    error: msgspec.Raw = _NONE
    data: msgspec.Raw = msgspec.Raw(b"{}")
    greeting: msgspec.Raw = msgspec.field(default=_NONE, name="QMP")


_members = InputDecoder(Edge.DOMAIN, _Members, max_bytes=MAX_MESSAGE_BYTES)
_anything = InputDecoder(Edge.DOMAIN, Any)


class QmpMessage(Message):
    """A message of QEMU, of which the result is not decoded: it has any number of values.

    :ivar size: bytes.
    :raises RejectedInput: it is no message, or too large.
    """

    def __init__(self, line: bytes) -> None:
        found = _members.decode(line)
        members: dict[str, object] = {}
        if bytes(found.greeting):
            if len(bytes(found.greeting)) > MAX_GREETING_BYTES:
                raise reject(Edge.DOMAIN, RejectReason.TOO_LARGE, "the greeting")
            members["QMP"] = _decode_small(found.greeting)
        elif found.event is not None:
            members |= {"event": found.event, "data": _decode_small(found.data)}
        else:
            members |= {"id": found.id} if found.id is not None else {}
            if bytes(found.error):
                members["error"] = _decode_small(found.error)
            elif bytes(found.result):
                members["return"] = found.result
        super().__init__(members, eager=False)
        self.size = len(line)

    def __str__(self) -> str:
        # The library's own encodes it, for errors and logs.
        return f"a message of {self.size} bytes"


def _decode_small(member: msgspec.Raw) -> object:
    check_count(Edge.DOMAIN, count_values(bytes(member)), MAX_VALUES, "too many values")
    return _anything.decode(member)


class _Client(QMPClient):
    """The library's client, for a server that may send messages without end, and of any kind.

    :param count_unrequested: called with the size of each message that answers no command; what it raises ends the
        connection.
    :param count_answer: called with the size of any other one, in the same way.
    """

    def __init__(self, count_unrequested: Callable[[int], None], count_answer: Callable[[int], None]) -> None:
        super().__init__("hotnic", MAX_MESSAGE_BYTES)
        self._count_unrequested = count_unrequested
        self._count_answer = count_answer

    async def _do_recv(self) -> Message:
        # The library's own decodes all of a message: two bytes may become sixty.
        return QmpMessage(await self._readline())

    def _cb_inbound(self, msg: Message) -> Message:
        # The library's own formats each message for a log that nobody reads.
        return msg

    async def _on_message(self, msg: Message) -> None:
        assert isinstance(msg, QmpMessage), "what _do_recv returns"
        if "event" in msg or msg.get("id") not in self._pending:
            self._count_unrequested(msg.size)
        else:
            self._count_answer(msg.size)
        await super()._on_message(msg)
        # The library's reader does not suspend while the stream has data.
        await asyncio.sleep(0)


def _text(error: Exception) -> str:
    return printable(str(error), MAX_ERROR_TEXT)


def _discard(_message: Any) -> bool:
    return False


async def _ended(client: QMPClient) -> None:
    while client.runstate == Runstate.RUNNING:
        await client.runstate_changed()


async def _disconnect(client: QMPClient) -> None:
    if client.runstate == Runstate.IDLE:
        return
    try:
        async with asyncio.timeout(1.0):
            await client.disconnect()
    except Exception:
        # disconnect() raises the error that broke the connection, such as the recursion of a parser; the command that
        # failed has reported it.
        return
