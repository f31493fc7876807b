"""A client of one QMP socket: connect, execute commands, receive events. The only module that imports ``qemu.qmp``.

QEMU serves one QMP client at a time on each socket. A second client waits in the socket's backlog and gets no greeting.
Next: :mod:`services.common.guest.qmp`, the driver of a guest, which knows the commands.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePath
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from schemas.inputs import Edge, RejectedInput, rejecting
from services.common.guest.pending_events import PendingEvents
from services.common.guest.port import DeviceMissing, GuestNotReachable, GuestRefused
from services.common.guest.sockets import connect_below

DEADLINE = 5.0
"""Seconds for one command; connecting takes at most as long."""

_MISSING = "DeviceNotFound"
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

    async def connect(self) -> None:
        """Connect, unless the client is connected.

        :raises GuestNotReachable: there is no QEMU, or it did not send its greeting in time.
        """
        await self._connected()

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Execute a command and return its result. Several commands may be executed at the same time.

        :raises GuestNotReachable: there was no response in time. Whether the command took effect is unknown.
        :raises DeviceMissing: the command names a device that does not exist.
        :raises GuestRefused: QEMU refused the command.
        """
        client = await self._connected()
        try:
            async with asyncio.timeout(self._deadline):
                return await client.execute(command, arguments)
        except ExecuteError as exc:
            refused = DeviceMissing if exc.error_class == _MISSING else GuestRefused
            raise refused(f"{command}: {exc}") from exc
        except TimeoutError as exc:
            # The next connection forgets what this one has found: the command may have taken effect.
            await self.close()
            raise GuestNotReachable(f"QMP at {self._path}: {command} not answered within {self._deadline:g} s") from exc
        except (QMPError, OSError) as exc:
            await self.close()
            raise GuestNotReachable(f"QMP at {self._path}: {command}: {exc}") from exc

    async def events(self, parse: Callable[[Any], _Event]) -> AsyncIterator[_Event]:
        """Yield QEMU's events from now on, until the connection ends.

        :param parse: returns what is yielded for a QMP message.
        :raises GuestNotReachable: as :meth:`connect`.
        """
        client = await self._connected()
        pending: PendingEvents[Any] = PendingEvents()

        def take(message: Any) -> bool:
            pending.put(message)
            return False

        with client.listener(event_filter=take):
            ended = asyncio.ensure_future(_ended(client))
            ended.add_done_callback(lambda _: pending.end())
            try:
                async for message in pending.read():
                    try:
                        with rejecting(Edge.DOMAIN):
                            event = parse(message)
                    except RejectedInput:
                        continue
                    yield event
            finally:
                ended.cancel()

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
            client = QMPClient("hotnic")
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
                raise GuestNotReachable(f"QMP at {self._path}: {exc}") from exc
            self._client = client
            self._on_connect()
            return client


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
