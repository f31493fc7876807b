"""Build the kernel packet filters (classic BPF) of an address server. Pure.

From the guest the server receives unfragmented datagrams to a DHCP server's port, router solicitations and neighbour
solicitations. From the network it receives neighbour advertisements. It receives no outgoing frame and no frame of a
VLAN that the guest made. A filter is a list of shapes that a frame may have; a shape is a list of tests that must all
hold. Next: :mod:`services.handler.addresses.service`, which opens the sockets with these filters.
"""

from collections.abc import Sequence

import msgspec

from services.common.netlink.packets import Instruction
from services.handler.addresses.dhcp import dhcp4, dhcp6
from services.handler.addresses.neighbours import (
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    ROUTER_SOLICITATION,
)
from services.handler.addresses.packets.frames import MAX_FRAME

# Opcodes: linux/bpf_common.h
_LOAD_HALF, _LOAD_BYTE = 0x28, 0x30
_LOAD_HALF_INDEXED = 0x48
_INDEX_BY_IPV4_HEADER = 0xB1
_IF_EQUAL, _IF_ANY_BIT = 0x15, 0x45
_RETURN = 0x06
# Metadata of a frame, at negative offsets: linux/filter.h
_PACKET_TYPE, _VLAN_PRESENT = 0xFFFFF000 + 4, 0xFFFFF000 + 48
_OUTGOING = 4
_ETHERNET = 14
_IPV6 = _ETHERNET + 40


class _Test(msgspec.Struct, frozen=True):
    """A load and a comparison.

    :ivar expected: whether the comparison must hold or must fail.
    """

    load: tuple[Instruction, ...]
    jump: int
    value: int
    expected: bool = True


_Shape = tuple[_Test, ...]


def _byte(offset: int, value: int) -> _Test:
    return _Test((Instruction(_LOAD_BYTE, offset),), _IF_EQUAL, value)


def _half(offset: int, value: int) -> _Test:
    return _Test((Instruction(_LOAD_HALF, offset),), _IF_EQUAL, value)


# The kernel strips the VLAN tag from the frame, so the tag is visible only in the metadata.
_INCOMING = (
    _Test((Instruction(_LOAD_BYTE, _PACKET_TYPE),), _IF_EQUAL, _OUTGOING, expected=False),
    _Test((Instruction(_LOAD_BYTE, _VLAN_PRESENT),), _IF_EQUAL, 0),
)
_DHCPV4: _Shape = (
    *_INCOMING,
    _half(12, 0x0800),
    _byte(_ETHERNET + 9, 17),
    # No fragments: only the first one has the ports.
    _Test((Instruction(_LOAD_HALF, _ETHERNET + 6),), _IF_ANY_BIT, 0x3FFF, expected=False),
    # The length of an IPv4 header varies, so the offset of the port is computed from it.
    _Test(
        (Instruction(_INDEX_BY_IPV4_HEADER, _ETHERNET), Instruction(_LOAD_HALF_INDEXED, _ETHERNET + 2)),
        _IF_EQUAL,
        dhcp4.SERVER_PORT,
    ),
)
_DHCPV6: _Shape = (*_INCOMING, _half(12, 0x86DD), _byte(_ETHERNET + 6, 17), _half(_IPV6 + 2, dhcp6.SERVER_PORT))


def _icmp6(message_type: int) -> _Shape:
    return (*_INCOMING, _half(12, 0x86DD), _byte(_ETHERNET + 6, 58), _byte(_IPV6, message_type))


def guest_filter(*, ipv4: bool, ipv6: bool) -> list[Instruction]:
    """Return the filter for the guest's tap.

    :param ipv4: whether the NIC has an IPv4 address to serve.
    :param ipv6: whether it has IPv6 addresses to serve.
    """
    shapes = [_DHCPV4] if ipv4 else []
    if ipv6:
        shapes += [_DHCPV6, _icmp6(ROUTER_SOLICITATION), _icmp6(NEIGHBOUR_SOLICITATION)]
    return _program(shapes)


def network_filter() -> list[Instruction]:
    """Return the filter for the in-pod bridge, behind which the network is."""
    return _program([_icmp6(NEIGHBOUR_ADVERTISEMENT)])


def _program(shapes: Sequence[_Shape]) -> list[Instruction]:
    return [instruction for shape in shapes for instruction in _instructions(shape)] + [Instruction(_RETURN, 0)]


def _instructions(shape: _Shape) -> list[Instruction]:
    """Return the instructions of one shape: a failed test jumps behind the shape, to the next one."""
    result = [Instruction(_RETURN, MAX_FRAME)]
    # Built from the end, because a jump counts the instructions that follow it.
    for test in reversed(shape):
        behind = len(result)
        yes, no = (0, behind) if test.expected else (behind, 0)
        result = [*test.load, Instruction(test.jump, test.value, yes, no), *result]
    return result
