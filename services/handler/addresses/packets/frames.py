"""Parse and build Ethernet frames with UDP or ICMPv6 inside. Pure.

Checksums are built but not verified: nothing gets corrupted between a guest and its tap, and a guest with checksum
offload sends unfinished checksums. Fragments and extension headers are rejected; no DHCP client sends them.
Next: :mod:`services.handler.addresses.dhcp.dhcp4`, :mod:`services.handler.addresses.dhcp.dhcp6` and
:mod:`services.handler.addresses.neighbours`, which decode the payload.
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import msgspec

MAX_FRAME = 2048
"""Bytes that are read of a frame: enough for an MTU of 1500 and the Ethernet header."""
BROADCAST = b"\xff" * 6

_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_ICMP = struct.Struct("!BBH")
_TYPE_IPV4, _TYPE_IPV6 = 0x0800, 0x86DD
_PROTOCOL_UDP, _PROTOCOL_ICMPV6 = 17, 58
_FRAGMENT = 0x3FFF  # the "more fragments" flag, or a fragment offset
_HOP_LIMIT = 64

Address = IPv4Address | IPv6Address


class MalformedPacket(ValueError):
    """A frame or a message in it cannot be parsed."""


class Datagram(msgspec.Struct, frozen=True):
    """A UDP datagram with the addresses of its frame.

    :ivar source_mac: six bytes.
    :ivar destination_mac: six bytes.
    """

    source_mac: bytes
    destination_mac: bytes
    source: Address
    destination: Address
    source_port: int
    destination_port: int
    payload: bytes


class Icmp6(msgspec.Struct, frozen=True):
    """An ICMPv6 message with the addresses of its frame.

    :ivar source_mac: six bytes.
    :ivar destination_mac: six bytes.
    :ivar message_type: ICMPv6 type.
    :ivar body: what follows type, code and checksum.
    :ivar hop_limit: 255 if no router has forwarded the packet.
    """

    source_mac: bytes
    destination_mac: bytes
    source: IPv6Address
    destination: IPv6Address
    message_type: int
    body: bytes
    code: int = 0
    hop_limit: int = 255


def parse_frame(frame: bytes) -> Datagram | Icmp6:
    """Parse a frame.

    :raises MalformedPacket: The frame holds neither a whole UDP datagram nor a whole ICMPv6 message.
    """
    destination_mac, source_mac, ethertype = _unpack(_ETHERNET, frame)
    packet = frame[_ETHERNET.size :]
    if ethertype == _TYPE_IPV4:
        source, destination, body = _parse_ipv4(packet)
    elif ethertype == _TYPE_IPV6:
        source, destination, protocol, hop_limit, body = _parse_ipv6(packet)
        if protocol == _PROTOCOL_ICMPV6:
            message_type, code, _ = _unpack(_ICMP, body)
            rest = body[_ICMP.size :]
            return Icmp6(source_mac, destination_mac, source, destination, message_type, rest, code, hop_limit)
    else:
        raise MalformedPacket(f"unsupported Ethernet type {ethertype:#06x}")
    source_port, destination_port, length, _ = _unpack(_UDP, body)
    if not _UDP.size <= length <= len(body):
        raise MalformedPacket("the UDP datagram is cut off")
    payload = body[_UDP.size : length]
    return Datagram(source_mac, destination_mac, source, destination, source_port, destination_port, payload)


def build_frame(packet: Datagram | Icmp6) -> bytes:
    """Build the frame of a packet.

    :param packet: its source and destination are of one address family.
    """
    source, destination = packet.source.packed, packet.destination.packed
    hop_limit = _HOP_LIMIT
    if isinstance(packet, Icmp6):
        protocol, hop_limit = _PROTOCOL_ICMPV6, packet.hop_limit
        head, tail = _ICMP.pack(packet.message_type, packet.code, 0), packet.body
    else:
        protocol, length = _PROTOCOL_UDP, _UDP.size + len(packet.payload)
        head, tail = _UDP.pack(packet.source_port, packet.destination_port, length, 0), packet.payload
    pseudo_header = source + destination + struct.pack("!II", len(head + tail), protocol)
    # RFC 768: a computed checksum of 0 is sent as all ones, because 0 means "no checksum".
    value = checksum(pseudo_header + head + tail) or 0xFFFF
    at = 2 if protocol == _PROTOCOL_ICMPV6 else 6
    body = head[:at] + value.to_bytes(2) + head[at + 2 :] + tail
    if packet.source.version == 4:
        ethertype, header = _TYPE_IPV4, _ipv4_header(source, destination, len(body))
    else:
        ethertype, header = _TYPE_IPV6, _IPV6.pack(6 << 28, len(body), protocol, hop_limit, source, destination)
    return _ETHERNET.pack(packet.destination_mac, packet.source_mac, ethertype) + header + body


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _parse_ipv4(packet: bytes) -> tuple[Address, Address, bytes]:
    first, _, length, _, fragment, _, protocol, _, source, destination = _unpack(_IPV4, packet)
    header = (first & 0xF) * 4
    if first >> 4 != 4 or not _IPV4.size <= header <= length <= len(packet):
        raise MalformedPacket("the IPv4 packet is cut off")
    if protocol != _PROTOCOL_UDP or fragment & _FRAGMENT:
        raise MalformedPacket("the IPv4 packet is a fragment or holds no UDP datagram")
    # Short frames are padded to 60 bytes, so the packet ends where its header says.
    return IPv4Address(source), IPv4Address(destination), packet[header:length]


def _parse_ipv6(packet: bytes) -> tuple[IPv6Address, IPv6Address, int, int, bytes]:
    first, length, protocol, hop_limit, source, destination = _unpack(_IPV6, packet)
    if first >> 28 != 6 or _IPV6.size + length > len(packet):
        raise MalformedPacket("the IPv6 packet is cut off")
    if protocol not in (_PROTOCOL_UDP, _PROTOCOL_ICMPV6):
        raise MalformedPacket("the IPv6 packet holds neither UDP nor ICMPv6")
    body = packet[_IPV6.size : _IPV6.size + length]
    return IPv6Address(source), IPv6Address(destination), protocol, hop_limit, body


def _ipv4_header(source: bytes, destination: bytes, length: int) -> bytes:
    fields = (0x45, 0, _IPV4.size + length, 0, 0, _HOP_LIMIT, _PROTOCOL_UDP)
    return _IPV4.pack(*fields, checksum(_IPV4.pack(*fields, 0, source, destination)), source, destination)


def _unpack(layout: struct.Struct, data: bytes) -> tuple[Any, ...]:
    try:
        return layout.unpack_from(data)
    except struct.error as error:
        raise MalformedPacket(str(error)) from error
