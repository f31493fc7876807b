"""Ethernet frames with UDP or ICMPv6 in them, read and built. Pure.

Checksums are built and not checked: between a guest and its tap nothing is lost on a wire, and a guest that leaves
them to its (virtual) card sends them half done. Fragments and extension headers are nobody's who asks for an address.
Next: :mod:`services.handler.addresses.dhcp4`, :mod:`services.handler.addresses.dhcp6` and
:mod:`services.handler.addresses.neighbours`, what they hold.
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import msgspec

MAX_FRAME = 2048
"""Bytes that are read of a frame; an Ethernet frame of 1500 and its header fit."""
BROADCAST = b"\xff" * 6

_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_ICMP = struct.Struct("!BBH")
_TYPE_IPV4, _TYPE_IPV6 = 0x0800, 0x86DD
_PROTOCOL_UDP, _PROTOCOL_ICMPV6 = 17, 58
_FRAGMENT = 0x3FFF  # more fragments, or an offset
_HOPS = 64

Address = IPv4Address | IPv6Address


class Malformed(ValueError):
    """These bytes are not what they should be."""


class Datagram(msgspec.Struct, frozen=True):
    """A UDP datagram in its frame. ``source_mac`` and ``mac`` (the destination's) are six bytes."""

    source_mac: bytes
    mac: bytes
    source: Address
    destination: Address
    source_port: int
    port: int
    payload: bytes


class Icmp6(msgspec.Struct, frozen=True):
    """An ICMPv6 message in its frame.

    :ivar hops: 255 where no router has passed it on. :ivar body: what follows type, code and checksum.
    """

    source_mac: bytes
    mac: bytes
    source: IPv6Address
    destination: IPv6Address
    kind: int
    body: bytes
    code: int = 0
    hops: int = 255


def read(frame: bytes) -> Datagram | Icmp6:
    """Read a frame.

    :raises Malformed: it holds neither a whole UDP datagram nor a whole ICMPv6 message.
    """
    mac, source_mac, kind = _unpack(_ETHERNET, frame)
    packet = frame[_ETHERNET.size :]
    if kind == _TYPE_IPV4:
        source, destination, body = _ipv4(packet)
    elif kind == _TYPE_IPV6:
        source, destination, protocol, hops, body = _ipv6(packet)
        if protocol == _PROTOCOL_ICMPV6:
            type_, code, _ = _unpack(_ICMP, body)
            return Icmp6(source_mac, mac, source, destination, type_, body[_ICMP.size :], code, hops)
    else:
        raise Malformed(f"an Ethernet frame of type {kind:#06x}")
    source_port, port, length, _ = _unpack(_UDP, body)
    if not _UDP.size <= length <= len(body):
        raise Malformed("the UDP datagram is cut off")
    return Datagram(source_mac, mac, source, destination, source_port, port, body[_UDP.size : length])


def build(packet: Datagram | Icmp6) -> bytes:
    """The frame of a packet, whose two addresses are of one family."""
    source, destination = packet.source.packed, packet.destination.packed
    hops = _HOPS
    if isinstance(packet, Icmp6):
        protocol, hops = _PROTOCOL_ICMPV6, packet.hops
        head, tail = _ICMP.pack(packet.kind, packet.code, 0), packet.body
    else:
        protocol, length = _PROTOCOL_UDP, _UDP.size + len(packet.payload)
        head, tail = _UDP.pack(packet.source_port, packet.port, length, 0), packet.payload
    pseudo = source + destination + struct.pack("!II", len(head + tail), protocol)
    right = checksum(pseudo + head + tail) or 0xFFFF
    at = 2 if protocol == _PROTOCOL_ICMPV6 else 6
    body = head[:at] + right.to_bytes(2) + head[at + 2 :] + tail
    if packet.source.version == 4:
        kind, header = _TYPE_IPV4, _ipv4_header(source, destination, len(body))
    else:
        kind, header = _TYPE_IPV6, _IPV6.pack(6 << 28, len(body), protocol, hops, source, destination)
    return _ETHERNET.pack(packet.mac, packet.source_mac, kind) + header + body


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ipv4(packet: bytes) -> tuple[Address, Address, bytes]:
    first, _, length, _, fragment, _, protocol, _, source, destination = _unpack(_IPV4, packet)
    header = (first & 0xF) * 4
    if first >> 4 != 4 or not _IPV4.size <= header <= length <= len(packet):
        raise Malformed("the IPv4 packet is cut off")
    if protocol != _PROTOCOL_UDP or fragment & _FRAGMENT:
        raise Malformed("the IPv4 packet is a fragment, or holds no UDP")
    return IPv4Address(source), IPv4Address(destination), packet[header:length]


def _ipv6(packet: bytes) -> tuple[IPv6Address, IPv6Address, int, int, bytes]:
    first, length, protocol, hops, source, destination = _unpack(_IPV6, packet)
    if first >> 28 != 6 or _IPV6.size + length > len(packet):
        raise Malformed("the IPv6 packet is cut off")
    if protocol not in (_PROTOCOL_UDP, _PROTOCOL_ICMPV6):
        raise Malformed("the IPv6 packet holds neither UDP nor ICMPv6")
    body = packet[_IPV6.size : _IPV6.size + length]
    return IPv6Address(source), IPv6Address(destination), protocol, hops, body


def _ipv4_header(source: bytes, destination: bytes, length: int) -> bytes:
    fields = (0x45, 0, _IPV4.size + length, 0, 0, _HOPS, _PROTOCOL_UDP)
    return _IPV4.pack(*fields, checksum(_IPV4.pack(*fields, 0, source, destination)), source, destination)


def _unpack(layout: struct.Struct, data: bytes) -> tuple[Any, ...]:
    try:
        return layout.unpack_from(data)
    except struct.error as error:
        raise Malformed(str(error)) from error
