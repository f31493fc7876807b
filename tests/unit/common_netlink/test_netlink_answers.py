"""Parsing netlink responses: bytes laid out as in the kernel's headers, and arbitrary bytes."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.netlink.links import Address, Link, Route
from services.common.netlink.rtnetlink.replies import parse_address, parse_attributes, parse_link, parse_routes

HEADER = bytes(16)


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    raw = struct.pack("=HH", 4 + len(value), kind) + value
    return raw + bytes(-len(raw) % 4)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def link_message(*found: bytes, index: int = 7, flags: int = 1) -> bytes:
    return HEADER + struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"".join(found)


def test_a_bridge_port_is_read() -> None:
    port = attribute(4, b"bridge\0") + attribute(5 | 0x8000, attribute(1, b"\3") + attribute(8, b"\0"))
    message = link_message(
        attribute(1, bytes.fromhex("3e89925ab5a7")),
        attribute(3, b"7e0055a6880-nic\0"),
        attribute(4, u32(1400)),
        attribute(5, u32(9)),
        attribute(10, u32(3)),
        attribute(18, attribute(1, b"veth\0") + port),
    )
    assert parse_link(message) == Link(
        index=7,
        name="7e0055a6880-nic",
        kind="veth",
        mac="3e:89:92:5a:b5:a7",
        mtu=1400,
        up=True,
        master=3,
        link=9,
        learning=False,
    )


@pytest.mark.parametrize(
    ("kind", "data", "multi_queue", "mode"),
    [
        (b"tun\0", attribute(7, b"\1"), True, None),
        (b"tun\0", attribute(7, b"\0"), False, None),
        (b"macvlan\0", attribute(1, u32(8)), None, "passthru"),
        (b"macvlan\0", attribute(1, u32(4)), None, "bridge"),
        (b"ipvlan\0", attribute(1, b"\0\0"), None, None),
    ],
)
def test_the_properties_of_a_kind_are_read(
    kind: bytes, data: bytes, multi_queue: bool | None, mode: str | None
) -> None:
    link = parse_link(link_message(attribute(18, attribute(1, kind) + attribute(2, data))))
    assert (link.kind, link.multi_queue, link.mode) == (kind[:-1].decode(), multi_queue, mode)


def test_loopback_has_no_kind() -> None:
    assert parse_link(link_message(attribute(3, b"lo\0"), index=1, flags=0)) == Link(index=1, name="lo")


@pytest.mark.parametrize(
    ("family", "raw", "scope", "expected"),
    [
        (socket.AF_INET, "10.0.0.2", 0, Address(4, "10.0.0.2/24")),
        (socket.AF_INET6, "fd00::2", 0, Address(4, "fd00::2/24")),
        (socket.AF_INET6, "fe80::2", 253, Address(4, "fe80::2/24", link_local=True)),
    ],
)
def test_an_address_is_read(family: socket.AddressFamily, raw: str, scope: int, expected: Address) -> None:
    body = struct.pack("=BBBBI", family, 24, 0, scope, 4)
    assert parse_address(HEADER + body + attribute(1, socket.inet_pton(family, raw))) == expected


def test_the_local_address_of_a_point_to_point_link_is_read() -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 4)
    ends = attribute(1, socket.inet_aton("10.0.0.1")) + attribute(2, socket.inet_aton("10.0.0.2"))
    assert parse_address(HEADER + body + ends).cidr == "10.0.0.2/32"


def route_message(length: int, *found: bytes, table: int = 254, kind: int = 1, family: int = socket.AF_INET) -> bytes:
    return HEADER + struct.pack("=BBBBBBBBI", family, length, 0, 0, table, 3, 0, kind, 0) + b"".join(found)


def test_routes_are_read() -> None:
    default = route_message(0, attribute(4, u32(2)), attribute(5, socket.inet_aton("10.0.0.1")), attribute(6, u32(9)))
    assert parse_routes(default) == [Route(2, "0.0.0.0/0", "10.0.0.1", 9)]
    on_link = route_message(16, attribute(1, socket.inet_aton("10.7.0.0")), attribute(4, u32(2)))
    assert parse_routes(on_link) == [Route(2, "10.7.0.0/16")]
    assert parse_routes(route_message(0, attribute(4, u32(2)), family=socket.AF_INET6)) == [Route(2, "::/0")]


@pytest.mark.parametrize(
    "message",
    [
        route_message(0, attribute(4, u32(2)), table=255),
        route_message(0, attribute(4, u32(2)), attribute(15, u32(255))),
        route_message(0, attribute(4, u32(2)), kind=2),
        route_message(0),
    ],
)
def test_other_routes_are_left_out(message: bytes) -> None:
    assert parse_routes(message) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_a_response_or_a_value_error(raw: bytes) -> None:
    assert all(isinstance(key, int) for key in parse_attributes(raw))
    for read in (parse_link, parse_address, parse_routes):
        try:
            read(raw)
        except ValueError:
            continue
