"""The guest's end of a tap: sends and receives frames on a tap that the lab's double of a guest has open.

The double opens its taps and reads nothing from them. Its descriptor is copied (``pidfd_getfd``), whichever namespaces
it runs in. The DHCP client on top of it implements only what the tests need.
"""

import asyncio
import ctypes
import os
import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from services.handler.addresses.dhcp.dhcp4 import Dhcp4Message, Dhcp4MessageType, Dhcp4Option, decode, encode
from services.handler.addresses.packets.frames import (
    BROADCAST,
    MAX_FRAME,
    Datagram,
    MalformedPacket,
    build_frame,
    parse_frame,
)

_PIDFD_GETFD = 438
_NOWHERE, _EVERYWHERE = IPv4Address("0.0.0.0"), IPv4Address("255.255.255.255")
_libc = ctypes.CDLL(None, use_errno=True)


def guest_process(uid: str) -> int:
    """Return the process id of the double of a VMI.

    :raises LookupError: there is none.
    """
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"lab.guest.double" in command and uid.encode() in command and b"nsenter" not in command:
                return int(folder.name)
    raise LookupError(f"no process of the double of {uid}")


def borrowed_taps(pid: int) -> Iterator[tuple[str, int]]:
    """Yield the taps that a process has open, by name, each with a descriptor that the caller owns."""
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
    """A DHCP client on one tap."""

    def __init__(self, fd: int, mac: str) -> None:
        """Create the client.

        :param fd: a descriptor of the tap, which the client owns.
        :param mac: the MAC of the guest NIC, as text.
        """
        self._fd = fd
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._xid = int.from_bytes(self._mac[2:])
        os.set_blocking(fd, False)

    async def lease(self) -> Dhcp4Message:
        """Send DISCOVER and REQUEST; return the acknowledgement."""
        offer = await self._request({Dhcp4Option.MESSAGE_TYPE: bytes([Dhcp4MessageType.DISCOVER])})
        assert offer.message_type == Dhcp4MessageType.OFFER
        wanted = {
            Dhcp4Option.REQUESTED_ADDRESS: offer.yiaddr.packed,
            Dhcp4Option.SERVER_ID: offer.options[Dhcp4Option.SERVER_ID],
        }
        return await self._request({Dhcp4Option.MESSAGE_TYPE: bytes([Dhcp4MessageType.REQUEST])} | wanted)

    async def renew(self, lease: Dhcp4Message) -> Dhcp4Message:
        """Renew a lease as a client does at half of its time; return the acknowledgement."""
        server = IPv4Address(lease.options[Dhcp4Option.SERVER_ID])
        return await self._request(
            {Dhcp4Option.MESSAGE_TYPE: bytes([Dhcp4MessageType.REQUEST])}, source=lease.yiaddr, to=server
        )

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    async def _request(
        self, options: dict[Dhcp4Option, bytes], *, source: IPv4Address = _NOWHERE, to: IPv4Address = _EVERYWHERE
    ) -> Dhcp4Message:
        self._xid += 1
        request = Dhcp4Message(1, self._xid & 0xFFFFFFFF, self._mac, ciaddr=source, options=dict(options))
        frame = build_frame(Datagram(self._mac, BROADCAST, source, to, 68, 67, encode(request)))
        while True:
            # Repeated, because the server may not be listening yet.
            os.write(self._fd, frame)
            try:
                async with asyncio.timeout(1):
                    return await self._receive(request.xid)
            except TimeoutError:
                continue

    async def _receive(self, xid: int) -> Dhcp4Message:
        loop = asyncio.get_running_loop()
        while True:
            try:
                datagram = parse_frame(os.read(self._fd, MAX_FRAME))
            except BlockingIOError:
                ready = loop.create_future()
                loop.add_reader(self._fd, lambda ready=ready: ready.done() or ready.set_result(None))  # type: ignore[misc]
                try:
                    await ready
                finally:
                    loop.remove_reader(self._fd)
                continue
            except MalformedPacket:
                continue
            if isinstance(datagram, Datagram) and datagram.destination_port == 68:
                message = decode(datagram.payload)
                if message.xid == xid:
                    return message
