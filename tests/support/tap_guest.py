"""What a guest does on its tap, without a guest: frames in and out, and a DHCP client of a few lines.

Messages are put together with the product's own codecs; that those are right is shown by real clients
(``tests/e2e/test_addresses.py``).
"""

import fcntl
import os
import select
import struct
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Self

from services.handler.addresses import dhcp4, dhcp6
from services.handler.addresses.frames import BROADCAST, Datagram, Icmp6, Malformed, build, read
from services.handler.addresses.neighbours import ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION, link_local
from tests.support.netns import inside

_TUNSETIFF = 0x400454CA
_TAP, _NO_PI, _VNET_HEADER = 0x0002, 0x1000, 0x4000
_HEADER = bytes(10)  # struct virtio_net_hdr: nothing offloaded
_TRIES, _PATIENCE = 10, 0.5
NOWHERE, EVERYWHERE = IPv4Address(0), IPv4Address(0xFFFFFFFF)


class TapGuest:
    """Holds a tap as QEMU does.

    :param mac: of the card.
    """

    def __init__(self, netns: Path, tap: str, mac: str) -> None:
        self.mac = bytes.fromhex(mac.replace(":", ""))
        self.address = link_local(self.mac)
        self._fd = inside(netns, lambda: _open(tap))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        os.write(self._fd, _HEADER + frame)

    def receive(self, wanted: Callable[[Datagram | Icmp6], bool], timeout: float = 3.0) -> Datagram | Icmp6 | None:
        """The first packet that is wanted; ``None`` when none has come in that time. Others are thrown away."""
        deadline = time.monotonic() + timeout
        while True:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            try:
                packet = read(os.read(self._fd, 65536)[len(_HEADER) :])
            except Malformed:
                continue
            if wanted(packet):
                return packet

    def ask(self, packet: Datagram | Icmp6, wanted: Callable[[Datagram | Icmp6], bool]) -> Datagram | Icmp6:
        """The wanted answer to a packet, which is repeated as clients do: a tap just opened takes nothing yet."""
        for _ in range(_TRIES):
            self.send(build(packet))
            if (found := self.receive(wanted, _PATIENCE)) is not None:
                return found
        raise AssertionError(f"no answer to {packet}")

    # -- DHCPv4 -------------------------------------------------------------------------------------------------

    def say4(self, message: dhcp4.Message, *, mac: bytes | None = None) -> None:
        """Send a message to any server."""
        source = mac or self.mac
        self.send(build(Datagram(source, BROADCAST, NOWHERE, EVERYWHERE, 68, 67, dhcp4.encode(message))))

    def message4(self, kind: dhcp4.Kind, xid: int, *, chaddr: bytes | None = None, **options: bytes) -> dhcp4.Message:
        """A message with options by name."""
        named = {int(dhcp4.Option[name.upper()]): value for name, value in options.items()}
        return dhcp4.Message(1, xid, chaddr or self.mac, options={int(dhcp4.Option.KIND): bytes([kind])} | named)

    def hear4(self, xid: int, timeout: float = 3.0) -> dhcp4.Message | None:
        """The answer to a message."""
        found = self.receive(lambda told: _is_answer(told, xid), timeout)
        return dhcp4.decode(found.payload) if isinstance(found, Datagram) else None

    def ask4(self, message: dhcp4.Message) -> dhcp4.Message:
        """The answer to a message to any server."""
        packet = Datagram(self.mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67, dhcp4.encode(message))
        found = self.ask(packet, lambda told: _is_answer(told, message.xid))
        assert isinstance(found, Datagram)
        return dhcp4.decode(found.payload)

    def lease4(self) -> dhcp4.Message:
        """What a client gets that asks for an address, offer and acknowledgement."""
        offer = self.ask4(self.message4(dhcp4.Kind.DISCOVER, 1))
        assert offer.kind is dhcp4.Kind.OFFER
        server = offer.options[dhcp4.Option.SERVER]
        given = self.ask4(self.message4(dhcp4.Kind.REQUEST, 2, requested=offer.yiaddr.packed, server=server))
        assert given.kind is dhcp4.Kind.ACK
        return given

    # -- IPv6 ---------------------------------------------------------------------------------------------------

    def look_for_router(self) -> Icmp6:
        """The router advertisement that answers a solicitation."""
        routers = IPv6Address("ff02::2")
        packet = Icmp6(self.mac, b"\x33\x33\0\0\0\2", self.address, routers, ROUTER_SOLICITATION, bytes(4))
        found = self.ask(packet, lambda told: isinstance(told, Icmp6) and told.kind == ROUTER_ADVERTISEMENT)
        assert isinstance(found, Icmp6)
        return found

    def lease6(self) -> tuple[IPv6Address, ...]:
        """The addresses that a client gets that asks for some with rapid commit."""
        servers = IPv6Address("ff02::1:2")
        options = (
            (dhcp6.Option.CLIENT_ID, b"\0\3\0\1" + self.mac),
            (dhcp6.Option.RAPID_COMMIT, b""),
            (dhcp6.Option.IA_NA, dhcp6.association(b"\0\0\0\1", 0, 0, ())),
        )
        payload = dhcp6.encode(dhcp6.Message(dhcp6.Kind.SOLICIT, b"abc", options))
        packet = Datagram(self.mac, b"\x33\x33\0\1\0\2", self.address, servers, 546, 547, payload)
        found = self.ask(packet, lambda told: isinstance(told, Datagram) and told.port == 546)
        assert isinstance(found, Datagram)
        value = dhcp6.decode(found.payload).first(dhcp6.Option.IA_NA)
        assert value is not None
        return dhcp6.decode_association(value).addresses


def _is_answer(packet: Datagram | Icmp6, xid: int) -> bool:
    return isinstance(packet, Datagram) and packet.port == 68 and dhcp4.decode(packet.payload).xid == xid


def _open(tap: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", tap.encode(), _TAP | _NO_PI | _VNET_HEADER))
    return fd
