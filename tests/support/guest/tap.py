"""A guest's end of a tap without a guest: it sends and receives frames, and has a minimal DHCP client.

Messages are encoded by the product's own codecs; ``tests/e2e/test_addresses.py`` verifies these with real clients.
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

from services.handler.addresses.dhcp import dhcp4, dhcp6
from services.handler.addresses.neighbours import ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION, link_local
from services.handler.addresses.packets.frames import (
    BROADCAST,
    Datagram,
    Icmp6,
    MalformedPacket,
    build_frame,
    parse_frame,
)
from tests.support.node.netns import run_in_netns

_TUNSETIFF = 0x400454CA
_TAP, _NO_PI, _VNET_HEADER = 0x0002, 0x1000, 0x4000
_HEADER = bytes(10)  # struct virtio_net_hdr without offloads
_TRIES, _TRY_TIMEOUT = 90, 0.5
UNSPECIFIED, LIMITED_BROADCAST = IPv4Address(0), IPv4Address(0xFFFFFFFF)


class TapGuest:
    """Opens a tap as QEMU does.

    :param mac: of the guest NIC.
    """

    def __init__(self, netns: Path, tap: str, mac: str) -> None:
        self.mac = bytes.fromhex(mac.replace(":", ""))
        self.address = link_local(self.mac)
        self._fd = run_in_netns(netns, lambda: _open(tap))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        os.write(self._fd, _HEADER + frame)

    def receive(self, matches: Callable[[Datagram | Icmp6], bool], timeout: float = 3.0) -> Datagram | Icmp6 | None:
        """Return the first packet that matches; ``None`` after the timeout. Other packets are dropped.

        :param timeout: in seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            try:
                packet = parse_frame(os.read(self._fd, 65536)[len(_HEADER) :])
            except MalformedPacket:
                continue
            if matches(packet):
                return packet

    def request(self, packet: Datagram | Icmp6, matches: Callable[[Datagram | Icmp6], bool]) -> Datagram | Icmp6:
        """Send a packet and return the matching reply.

        The packet is repeated, as clients do, because a tap drops frames for a moment after it was opened.
        """
        for _ in range(_TRIES):
            self.send(build_frame(packet))
            if (found := self.receive(matches, _TRY_TIMEOUT)) is not None:
                return found
        raise AssertionError(f"no reply to {packet}")

    # -- DHCPv4 -------------------------------------------------------------------------------------------------

    def send4(self, message: dhcp4.Dhcp4Message, *, mac: bytes | None = None) -> None:
        """Send a message to all servers."""
        source = mac or self.mac
        self.send(
            build_frame(Datagram(source, BROADCAST, UNSPECIFIED, LIMITED_BROADCAST, 68, 67, dhcp4.encode(message)))
        )

    def message4(
        self, message_type: dhcp4.Dhcp4MessageType, xid: int, *, chaddr: bytes | None = None, **options: bytes
    ) -> dhcp4.Dhcp4Message:
        """Return a message with options by name."""
        named = {int(dhcp4.Dhcp4Option[name.upper()]): value for name, value in options.items()}
        return dhcp4.Dhcp4Message(
            1, xid, chaddr or self.mac, options={int(dhcp4.Dhcp4Option.MESSAGE_TYPE): bytes([message_type])} | named
        )

    def receive4(self, xid: int, timeout: float = 3.0) -> dhcp4.Dhcp4Message | None:
        """Return the reply to a message; ``None`` after the timeout."""
        found = self.receive(lambda packet: _is_reply(packet, xid), timeout)
        return dhcp4.decode(found.payload) if isinstance(found, Datagram) else None

    def request4(self, message: dhcp4.Dhcp4Message) -> dhcp4.Dhcp4Message:
        """Send a message to all servers and return the reply."""
        packet = Datagram(self.mac, BROADCAST, UNSPECIFIED, LIMITED_BROADCAST, 68, 67, dhcp4.encode(message))
        found = self.request(packet, lambda reply: _is_reply(reply, message.xid))
        assert isinstance(found, Datagram)
        return dhcp4.decode(found.payload)

    def lease4(self) -> dhcp4.Dhcp4Message:
        """Get a lease by discover and request; return the acknowledgement."""
        offer = self.request4(self.message4(dhcp4.Dhcp4MessageType.DISCOVER, 1))
        assert offer.message_type is dhcp4.Dhcp4MessageType.OFFER
        server = offer.options[dhcp4.Dhcp4Option.SERVER_ID]
        ack = self.request4(
            self.message4(dhcp4.Dhcp4MessageType.REQUEST, 2, requested_address=offer.yiaddr.packed, server_id=server)
        )
        assert ack.message_type is dhcp4.Dhcp4MessageType.ACK
        return ack

    # -- IPv6 ---------------------------------------------------------------------------------------------------

    def solicit_router(self) -> Icmp6:
        """Solicit routers and return the router advertisement."""
        routers = IPv6Address("ff02::2")
        packet = Icmp6(self.mac, b"\x33\x33\0\0\0\2", self.address, routers, ROUTER_SOLICITATION, bytes(4))
        found = self.request(
            packet, lambda reply: isinstance(reply, Icmp6) and reply.message_type == ROUTER_ADVERTISEMENT
        )
        assert isinstance(found, Icmp6)
        return found

    def lease6(self) -> tuple[IPv6Address, ...]:
        """Get a lease by a solicit with rapid commit; return the addresses."""
        servers = IPv6Address("ff02::1:2")
        options = (
            (dhcp6.Dhcp6Option.CLIENT_ID, b"\0\3\0\1" + self.mac),
            (dhcp6.Dhcp6Option.RAPID_COMMIT, b""),
            (dhcp6.Dhcp6Option.IA_NA, dhcp6.encode_association(b"\0\0\0\1", 0, 0, ())),
        )
        payload = dhcp6.encode(dhcp6.Dhcp6Message(dhcp6.Dhcp6MessageType.SOLICIT, b"abc", options))
        packet = Datagram(self.mac, b"\x33\x33\0\1\0\2", self.address, servers, 546, 547, payload)
        found = self.request(packet, lambda reply: isinstance(reply, Datagram) and reply.destination_port == 546)
        assert isinstance(found, Datagram)
        value = dhcp6.decode(found.payload).first(dhcp6.Dhcp6Option.IA_NA)
        assert value is not None
        return dhcp6.decode_association(value).addresses


def _is_reply(packet: Datagram | Icmp6, xid: int) -> bool:
    return isinstance(packet, Datagram) and packet.destination_port == 68 and dhcp4.decode(packet.payload).xid == xid


def _open(tap: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", tap.encode(), _TAP | _NO_PI | _VNET_HEADER))
    return fd
