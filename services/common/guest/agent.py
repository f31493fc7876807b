"""A client of the QEMU guest agent (qemu-ga) on its unix socket: lists the NICs that the guest itself sees.

The QEMU Guest Agent protocol is lines of JSON after a delimited sync. Responses to an earlier client may still be in
the channel, so none is used before the sync's own id has come back. A guest without an agent never responds; that is no
failure. When to query is the caller's decision. Next: :mod:`services.common.guest.launcher`, for guests of libvirt.
"""

import asyncio
import itertools
import os
import re
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path, PurePath
from typing import Protocol

import msgspec

from schemas.inputs import MAX_TEXT, Edge, InputDecoder, RejectedInput, RejectReason, printable, reject
from services.common.guest.sockets import connect_below

MAX_RESPONSE_BYTES = 256 * 1024
"""Limit of one response, because the guest controls its size. 256 NICs with four addresses each take 140 KB."""
MAX_DISCARDED_BYTES = 1024 * 1024
"""Limit of the responses to earlier syncs together."""
MAX_FOREIGN_RESPONSES = 64
"""Responses to earlier syncs that are discarded. A guest that was paused answers every query of that time at once."""
MAX_NICS = 512
"""NICs of one response. A guest that runs containers has one for each of them."""
MAX_ADDRESSES = 32
"""Addresses of a NIC."""
MAX_ALL_ADDRESSES = 2048
"""Addresses of one response. Parsing one takes longer than anything else here, and the node's other guests wait."""
MAX_NAME_BYTES = 64
"""Linux allows 15 bytes, Windows more."""
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_SENTINEL = b"\xff"
"""Precedes the response to a delimited sync. Before a request, it makes the agent discard an incomplete earlier one."""
_ids = itertools.count(1)


class AgentUnavailable(Exception):
    """No agent responds: the guest is booting, has no agent, or the agent is busy."""


class AgentFloods(AgentUnavailable):
    """The guest writes more than an agent does, or what takes long to parse: a query soon after gains nothing."""


class GuestNic(msgspec.Struct, frozen=True):
    """A NIC as the guest sees it.

    :ivar name: the name of the link in the guest.
    :ivar mac: the MAC address, lower case.
    :ivar ips: addresses without prefix length, in the agent's order.
    """

    name: str
    mac: str
    ips: tuple[str, ...] = ()


class GuestAgent(Protocol):
    """A client of the agent inside one guest."""

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        """Return the guest's NICs that have a MAC.

        :param timeout: seconds for the whole query.
        :raises AgentUnavailable: there was no response, or not a valid one.
        """
        ...

    async def close(self) -> None:
        """Disconnect; may be called repeatedly."""
        ...


class _Address(msgspec.Struct, frozen=True, rename="kebab"):
    ip_address: str


class _Interface(msgspec.Struct, frozen=True, rename="kebab"):
    name: str
    hardware_address: str | None = None
    ip_addresses: list[_Address] = []


class _Response(msgspec.Struct, frozen=True):
    result: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="return")
    # Not decoded: the guest chooses how many values it has.
    error: msgspec.Raw = msgspec.Raw(b"")


_response = InputDecoder(Edge.AGENT, _Response, max_bytes=MAX_RESPONSE_BYTES)
_interfaces = InputDecoder(Edge.AGENT, list[_Interface], max_bytes=MAX_RESPONSE_BYTES)


class QemuGuestAgent:
    """A client of one guest's agent. It stays connected while the agent responds, and disconnects otherwise.

    :param trusted: the folder above the socket below which no symbolic link is followed; by default the socket's.
    """

    def __init__(self, socket_path: str, *, trusted: str | None = None) -> None:
        self._path = socket_path
        self._trusted = Path(trusted or os.path.dirname(socket_path))
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._lock = asyncio.Lock()

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        """Return the guest's NICs that have a MAC.

        :param timeout: seconds for the whole query.
        :raises AgentUnavailable: there was no response, or not a valid one.
        :raises AgentFloods: there was no end of responses, or of one response.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(timeout):
                    reader, writer = await self._synchronised()
                    raw = await _request(reader, writer, b'{"execute":"guest-network-get-interfaces"}\n')
                    return parse_interfaces(raw)
            except (TimeoutError, OSError, EOFError, ValueError, asyncio.LimitOverrunError) as exc:
                await self._disconnect()
                why = printable(str(exc)) or "no response"
                unavailable = AgentFloods if _is_flood(exc) else AgentUnavailable
                raise unavailable(f"guest agent at {self._path}: {why}") from exc
            except asyncio.CancelledError:
                # Half of a response may be in the stream: the next query needs a new sync.
                await self._disconnect()
                raise

    async def close(self) -> None:
        """Disconnect; may be called repeatedly."""
        async with self._lock:
            await self._disconnect()

    async def _synchronised(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None:
            return self._streams
        connection = connect_below(self._trusted, PurePath(self._path).relative_to(self._trusted))
        reader, writer = self._streams = await asyncio.open_unix_connection(sock=connection, limit=MAX_RESPONSE_BYTES)
        number = next(_ids)
        request = msgspec.json.encode({"execute": "guest-sync-delimited", "arguments": {"id": number}})
        writer.write(_SENTINEL + request + b"\n")
        discarded = 0
        for _ in range(MAX_FOREIGN_RESPONSES + 1):
            # Everything before the sentinel, and a sync with another id, was meant for an earlier client.
            discarded += len(await reader.readuntil(_SENTINEL))
            line = await reader.readuntil(b"\n")
            if bytes(_response.decode(line).result) == str(number).encode():
                return reader, writer
            discarded += len(line)
            if discarded > MAX_DISCARDED_BYTES:
                break
            # A read does not suspend while the stream has data, and the guest may write faster than it is read.
            await asyncio.sleep(0)
        raise reject(Edge.AGENT, RejectReason.TOO_MANY, "too many responses to other syncs")

    async def _disconnect(self) -> None:
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                return


def _is_flood(error: Exception) -> bool:
    excess = isinstance(error, RejectedInput) and error.reason in (RejectReason.TOO_MANY, RejectReason.TOO_LARGE)
    return excess or isinstance(error, asyncio.LimitOverrunError)


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    line = await reader.readuntil(b"\n")
    response = _response.decode(line)
    if not bytes(response.result):
        raise ValueError(f"error response {printable(bytes(response.error)[:MAX_TEXT].decode(errors='replace'))}")
    return bytes(response.result)


def parse_interfaces(raw: bytes) -> tuple[GuestNic, ...]:
    """Parse the response to ``guest-network-get-interfaces``; links without a MAC (loopback) are left out.

    :raises ValueError: it is not a valid response, or it has too many addresses.
    """
    return listed_nics(
        (nic.name, nic.hardware_address, [address.ip_address for address in nic.ip_addresses])
        for nic in _interfaces.decode(raw)
    )


def listed_nics(found: Iterable[tuple[str, str | None, Iterable[str]]]) -> tuple[GuestNic, ...]:
    """Return the NICs that an agent lists, in its order: what the guest wrote, parsed and cut.

    :param found: name, MAC and addresses; a link without a MAC (loopback) and what is malformed are left out.
    :raises RejectedInput: there are more addresses than any guest has.
    """
    nics: list[GuestNic] = []
    parsed = 0
    for name, address, ips in found:
        if not address or address == "00:00:00:00:00:00":
            continue
        if len(nics) == MAX_NICS:
            reject(Edge.AGENT, RejectReason.TOO_MANY, "interfaces")
            break
        mac = address.lower()
        if _MAC.fullmatch(mac):
            # One more, from which is seen that there are too many.
            first = list(itertools.islice(ips, MAX_ADDRESSES + 1))
            parsed += len(first)
            if parsed > MAX_ALL_ADDRESSES:
                raise reject(Edge.AGENT, RejectReason.TOO_MANY, "addresses")
            nics.append(GuestNic(_shown_name(name), mac, tuple(_addresses(first))))
        else:
            reject(Edge.AGENT, RejectReason.INVALID, "MAC address")
    return tuple(nics)


def _addresses(ips: Iterable[str]) -> Iterable[str]:
    for number, ip in enumerate(ips):
        if number == MAX_ADDRESSES:
            reject(Edge.AGENT, RejectReason.TOO_MANY, "addresses")
            return
        try:
            # A scope id may hold any text.
            if "%" in ip or len(ip) > 45:
                raise ValueError("no address without a scope")
            yield str(ip_address(ip))
        except ValueError:
            reject(Edge.AGENT, RejectReason.INVALID, "IP address")


def _shown_name(name: str) -> str:
    cut = name.encode(errors="replace")[:MAX_NAME_BYTES].decode(errors="ignore")
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "?" for c in cut)
