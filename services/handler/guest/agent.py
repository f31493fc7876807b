"""The guest agent (qemu-ga) on its unix socket: which NICs the guest itself sees.

JSON lines after a delimited sync, as the QEMU Guest Agent protocol has it: answers to requests of an earlier client may
still lie in the channel, so nothing is believed before the sync's own id came back. A guest without an agent never
answers; that is no failure. Next: :mod:`services.handler.guest.watch`, which decides when to ask.
"""

import asyncio
import itertools
from typing import Any, Protocol

import msgspec

MAX_ANSWER = 1024 * 1024
_SENTINEL = b"\xff"
_ids = itertools.count(1)


class AgentSilent(Exception):
    """No agent answers: the guest is booting, has none, or it is busy."""


class GuestNic(msgspec.Struct, frozen=True):
    """A NIC as the guest names it. ``mac`` lower case; ``ips`` without prefix length, in the agent's order."""

    name: str
    mac: str
    ips: tuple[str, ...] = ()


class GuestAgent(Protocol):
    """The agent inside a guest, whichever way it is reached."""

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        """The guest's NICs that have a MAC.

        :param timeout: seconds for the whole conversation.
        :raises AgentSilent: nobody answered, or not with that.
        """
        ...

    async def close(self) -> None:
        """Disconnect; harmless when repeated."""
        ...


class _Address(msgspec.Struct, frozen=True, rename="kebab"):
    ip_address: str


class _Interface(msgspec.Struct, frozen=True, rename="kebab"):
    name: str
    hardware_address: str | None = None
    ip_addresses: list[_Address] = []


class _Answer(msgspec.Struct, frozen=True):
    result: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="return")
    error: Any = None


_answer = msgspec.json.Decoder(_Answer)
_interfaces = msgspec.json.Decoder(list[_Interface])


class Agent:
    """One guest's agent. The connection is kept while it answers, and given up when it does not."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._lock = asyncio.Lock()

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        """The guest's NICs that have a MAC.

        :param timeout: seconds for the whole conversation.
        :raises AgentSilent: nobody answered, or not with that.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(timeout):
                    reader, writer = await self._synchronised()
                    raw = await _ask(reader, writer, b'{"execute":"guest-network-get-interfaces"}\n')
                    return nics_of(raw)
            except (TimeoutError, OSError, EOFError, ValueError, asyncio.LimitOverrunError) as exc:
                await self._leave()
                raise AgentSilent(f"guest agent at {self._path}: {str(exc) or 'no answer'}") from exc
            except asyncio.CancelledError:
                await self._leave()
                raise

    async def close(self) -> None:
        """Disconnect; harmless when repeated."""
        async with self._lock:
            await self._leave()

    async def _synchronised(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None:
            return self._streams
        reader, writer = self._streams = await asyncio.open_unix_connection(self._path, limit=MAX_ANSWER)
        number = next(_ids)
        request = msgspec.json.encode({"execute": "guest-sync-delimited", "arguments": {"id": number}})
        writer.write(_SENTINEL + request + b"\n")
        while True:
            # Everything up to the sentinel belongs to others; so does a sync with another id.
            await reader.readuntil(_SENTINEL)
            answer = _answer.decode(await reader.readuntil(b"\n"))
            if bytes(answer.result) == str(number).encode():
                return reader, writer

    async def _leave(self) -> None:
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                return


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    line = await reader.readuntil(b"\n")
    answer = _answer.decode(line)
    if not bytes(answer.result):
        raise ValueError(f"it answered {answer.error!r}")
    return bytes(answer.result)


def nics_of(raw: bytes) -> tuple[GuestNic, ...]:
    """Read the answer to ``guest-network-get-interfaces``; links without a MAC (loopback) are left out.

    :raises ValueError: it is not one.
    """
    return tuple(
        GuestNic(nic.name, nic.hardware_address.lower(), tuple(address.ip_address for address in nic.ip_addresses))
        for nic in _interfaces.decode(raw)
        if nic.hardware_address and nic.hardware_address != "00:00:00:00:00:00"
    )
