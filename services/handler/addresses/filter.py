"""What an address server gets to hear, as filters for the kernel. Pure.

From the guest: what goes to a DHCP server's port and is no fragment, and what asks for a router or for a neighbour.
From the network: neighbours' answers. Nothing that goes out, and nothing of a VLAN that the guest has made for itself.
A filter is a list of shapes that a frame may have; a shape is a list of tests, all to be passed.
Next: :mod:`services.handler.addresses.server`, which listens through it.
"""

from collections.abc import Sequence

import msgspec

from services.common.netlink.packets import Instruction
from services.handler.addresses import dhcp4, dhcp6
from services.handler.addresses.frames import MAX_FRAME
from services.handler.addresses.neighbours import (
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    ROUTER_SOLICITATION,
)

# linux/bpf_common.h
_LOAD_HALF, _LOAD_BYTE = 0x28, 0x30
_LOAD_HALF_INDEXED = 0x48
_INDEX_BY_IPV4_HEADER = 0xB1
_IF_EQUAL, _IF_ANY_BIT = 0x15, 0x45
_RETURN = 0x06
# linux/filter.h: what is known of a frame and not in it
_PACKET_TYPE, _VLAN_PRESENT = 0xFFFFF000 + 4, 0xFFFFF000 + 48
_OUTGOING = 4
_ETHERNET = 14
_IPV6 = _ETHERNET + 40


class _Test(msgspec.Struct, frozen=True):
    """Load something, compare it. :ivar wanted: whether the comparison has to hold."""

    load: tuple[Instruction, ...]
    jump: int
    value: int
    wanted: bool = True


_Shape = tuple[_Test, ...]


def _byte(offset: int, value: int) -> _Test:
    return _Test((Instruction(_LOAD_BYTE, offset),), _IF_EQUAL, value)


def _half(offset: int, value: int) -> _Test:
    return _Test((Instruction(_LOAD_HALF, offset),), _IF_EQUAL, value)


_COMES_IN = (
    _Test((Instruction(_LOAD_BYTE, _PACKET_TYPE),), _IF_EQUAL, _OUTGOING, wanted=False),
    _Test((Instruction(_LOAD_BYTE, _VLAN_PRESENT),), _IF_EQUAL, 0),
)
_DHCPV4: _Shape = (
    *_COMES_IN,
    _half(12, 0x0800),
    _byte(_ETHERNET + 9, 17),
    _Test((Instruction(_LOAD_HALF, _ETHERNET + 6),), _IF_ANY_BIT, 0x3FFF, wanted=False),
    _Test(
        (Instruction(_INDEX_BY_IPV4_HEADER, _ETHERNET), Instruction(_LOAD_HALF_INDEXED, _ETHERNET + 2)),
        _IF_EQUAL,
        dhcp4.SERVER_PORT,
    ),
)
_DHCPV6: _Shape = (*_COMES_IN, _half(12, 0x86DD), _byte(_ETHERNET + 6, 17), _half(_IPV6 + 2, dhcp6.SERVER_PORT))


def _icmp6(kind: int) -> _Shape:
    return (*_COMES_IN, _half(12, 0x86DD), _byte(_ETHERNET + 6, 58), _byte(_IPV6, kind))


def of_guest(*, ipv4: bool, ipv6: bool) -> list[Instruction]:
    """What of a guest is heard, where it has addresses of these kinds."""
    shapes = [_DHCPV4] if ipv4 else []
    if ipv6:
        shapes += [_DHCPV6, _icmp6(ROUTER_SOLICITATION), _icmp6(NEIGHBOUR_SOLICITATION)]
    return _program(shapes)


def of_network() -> list[Instruction]:
    """What of the network behind the bridge is heard."""
    return _program([_icmp6(NEIGHBOUR_ADVERTISEMENT)])


def _program(shapes: Sequence[_Shape]) -> list[Instruction]:
    return [instruction for shape in shapes for instruction in _instructions(shape)] + [Instruction(_RETURN, 0)]


def _instructions(shape: _Shape) -> list[Instruction]:
    """A test that is not passed goes on behind the shape."""
    result = [Instruction(_RETURN, MAX_FRAME)]
    for test in reversed(shape):
        behind = len(result)
        yes, no = (0, behind) if test.wanted else (behind, 0)
        result = [*test.load, Instruction(test.jump, test.value, yes, no), *result]
    return result
