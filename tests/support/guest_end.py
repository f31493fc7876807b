"""The guest's end of a tap: frames as a guest's card would send and hear them, on a tap that the guest's double holds.

The double opens its taps and reads nothing; here its descriptor is borrowed (``pidfd_getfd``), whichever namespaces it
runs in. A DHCP client over it that knows what it asked, and no more.
"""

import asyncio
import ctypes
import os
import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from services.handler.addresses.dhcp4 import Kind, Message, Option, decode, encode
from services.handler.addresses.frames import BROADCAST, MAX_FRAME, Datagram, Malformed, build, read

_PIDFD_GETFD = 438
_NOWHERE, _EVERYWHERE = IPv4Address("0.0.0.0"), IPv4Address("255.255.255.255")
_libc = ctypes.CDLL(None, use_errno=True)


def guest_process(uid: str) -> int:
    """The process of the double of a VMI."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"services.lab.guest.double" in command and uid.encode() in command and b"nsenter" not in command:
                return int(folder.name)
    raise LookupError(f"no double of {uid} runs")


def borrowed_taps(pid: int) -> Iterator[tuple[str, int]]:
    """The taps that a process holds, by name, each with a descriptor that is the caller's from now on."""
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            info = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
            if (found := re.search(r"^iff:\s*(\S+)", info, re.MULTILINE)) is not None:
                fd = _libc.syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0)
                if fd < 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
                yield found[1], fd
    finally:
        os.close(pidfd)


class DhcpClient:
    """A client on one tap. ``fd`` is its own. :param mac: of the card, as text."""

    def __init__(self, fd: int, mac: str) -> None:
        self._fd = fd
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._xid = int.from_bytes(self._mac[2:])
        os.set_blocking(fd, False)

    async def lease(self) -> Message:
        """Discover, request; the acknowledgement."""
        offer = await self._ask({Option.KIND: bytes([Kind.DISCOVER])})
        assert offer.kind == Kind.OFFER
        wanted = {Option.REQUESTED: offer.yiaddr.packed, Option.SERVER: offer.options[Option.SERVER]}
        return await self._ask({Option.KIND: bytes([Kind.REQUEST])} | wanted)

    async def renew(self, lease: Message) -> Message:
        """Ask for the same once more, as a client does whose lease is half over; the acknowledgement."""
        server = IPv4Address(lease.options[Option.SERVER])
        return await self._ask({Option.KIND: bytes([Kind.REQUEST])}, source=lease.yiaddr, to=server)

    def close(self) -> None:
        """Give the tap back."""
        os.close(self._fd)

    async def _ask(
        self, options: dict[Option, bytes], *, source: IPv4Address = _NOWHERE, to: IPv4Address = _EVERYWHERE
    ) -> Message:
        self._xid += 1
        asked = Message(1, self._xid & 0xFFFFFFFF, self._mac, ciaddr=source, options=dict(options))
        frame = build(Datagram(self._mac, BROADCAST, source, to, 68, 67, encode(asked)))
        while True:
            # A server that has not come yet hears nothing: a client repeats itself.
            os.write(self._fd, frame)
            try:
                async with asyncio.timeout(1):
                    return await self._hear(asked.xid)
            except TimeoutError:
                continue

    async def _hear(self, xid: int) -> Message:
        loop = asyncio.get_running_loop()
        while True:
            try:
                datagram = read(os.read(self._fd, MAX_FRAME))
            except BlockingIOError:
                ready = loop.create_future()
                loop.add_reader(self._fd, lambda ready=ready: ready.done() or ready.set_result(None))  # type: ignore[misc]
                try:
                    await ready
                finally:
                    loop.remove_reader(self._fd)
                continue
            except Malformed:
                continue
            if isinstance(datagram, Datagram) and datagram.port == 68:
                message = decode(datagram.payload)
                if message.xid == xid:
                    return message
