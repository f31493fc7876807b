"""A pod NIC record that a user has written: an offer is made of what messages can carry, and nothing is left open."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest
import structlog

from schemas.kubernetes.operations import PodNic, RecordedRoute
from services.common.netlink.netns import Netns
from services.handler.addresses.offer import MAX_DOMAIN, MAX_ENTRIES, MAX_ROUTES, Offer, build_offer
from services.handler.addresses.packets.frames import Datagram, build_frame
from services.handler.addresses.responder import Responder
from services.handler.addresses.served import ServedAddresses
from services.handler.addresses.service import AddressServers

MAC, SERVER_MAC = "3e:89:92:5a:b5:a7", "02:11:22:33:44:55"
RECORD = PodNic("p", "s", "podx", MAC, 1500, ("10.0.0.2/24", "2001:db8::2/64"))


def offer(record: PodNic, mac: str = MAC) -> Offer | None:
    return build_offer(record, mac=mac, server="169.254.75.11/32", server_mac=SERVER_MAC, hostname="vm1")


HOSTILE: list[dict[str, Any]] = [
    {"mtu": 2**32},
    {"mtu": -1},
    {"mtu": 10**300},
    {"nameservers": ("10.0.0.1", "2001:db8::1") * 500},
    {"nameservers": ("fe80::1%;K8S_POD_NAME=x", "\x00", "1" * 100_000)},
    {"search": tuple(f"a{n}.{'b' * 60}.{'c' * 60}.{'d' * 60}.example" for n in range(500))},
    {"search": ("x" * 100_000, "a\x1b[31m", "é" * 200, "", "...")},
    {"domain": "x" * 100_000},
    {"domain": "a\nb"},
    {"ips": ("10.0.0.2/24", *(f"2001:db8::{n:x}/64" for n in range(1, 3000)))},
    {"ips": ("10.0.0.2/24", "2001:db8::2%;x/64", "/", "10.0.0.2/99", "1" * 5000)},
    {"routes": tuple(RecordedRoute(f"10.{n // 256}.{n % 256}.0/24", "10.0.0.1") for n in range(3000))},
    {"routes": tuple(RecordedRoute(f"2001:db8:{n:x}::/48", f"2001:db8::{n:x}") for n in range(3000))},
]


@pytest.mark.parametrize("changed", HOSTILE, ids=lambda changed: "-".join(changed))
def test_every_message_of_the_offer_can_be_built(changed: dict[str, Any]) -> None:
    found = offer(msgspec.structs.replace(RECORD, **changed))
    assert found is not None
    assert found.ipv4 is not None
    assert found.ipv6 is None or len(found.ipv6.addresses) <= MAX_ENTRIES
    assert len(found.search) <= MAX_ENTRIES
    assert all(len(domain) <= MAX_DOMAIN and domain.isprintable() for domain in (found.domain, *found.search))
    assert len(found.ipv4.nameservers) <= MAX_ENTRIES
    assert len(found.ipv4.routes) <= 2 * MAX_ROUTES + 1
    responder = Responder(found)
    assert all(len(frame) < 1500 for frame in responder.router_advertisements())
    discover = b"\x01\x01\x06\x00xid_" + bytes(20) + bytes.fromhex(MAC.replace(":", "")) + bytes(202)
    request = discover + bytes.fromhex("63825363350101ff")
    mac, everybody = bytes.fromhex(MAC.replace(":", "")), b"\xff" * 6
    zero, broadcast = (
        found.ipv4.server - int(found.ipv4.server),
        found.ipv4.server + (2**32 - 1 - int(found.ipv4.server)),
    )
    frame = build_frame(Datagram(mac, everybody, zero, broadcast, 68, 67, request))
    assert responder.reply_to_guest(frame).dhcp_reply


@pytest.mark.parametrize("mac", ["", "zz:zz:zz:zz:zz:zz", MAC + ":00", MAC + "\n", "3e"])
def test_a_device_without_a_proper_mac_gets_no_offer(mac: str) -> None:
    assert offer(RECORD, mac) is None


class _Sockets:
    """Opens sockets in place of a network namespace's packet sockets, and keeps them."""

    identity = (1, 2)

    def __init__(self, *links: str) -> None:
        self._links = links
        self.opened: list[socket.socket] = []
        self.descriptors: set[int] = set()

    async def open_packet_socket(self, link: str, program: Sequence[object]) -> socket.socket:
        if link not in self._links:
            raise OSError(f"{link} is gone")
        self.opened.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.descriptors.add(self.opened[-1].fileno())
        return self.opened[-1]


async def test_a_server_that_cannot_be_started_leaves_no_socket_open() -> None:
    """Whatever the reason: here, an MTU that no offer of a record has."""
    good = offer(msgspec.structs.replace(RECORD, routes=(RecordedRoute("::/0", "2001:db8::1"),)))
    assert good is not None
    sockets = _Sockets("tap", "bridge")
    servers = AddressServers(lambda: None, lambda: None, structlog.get_logger())
    for _ in range(3):
        with pytest.raises(Exception, match="format"):
            await servers.serve(
                ServedAddresses("blue", "tap", "bridge", msgspec.structs.replace(good, mtu=2**32)),
                cast("Netns", sockets),
            )
    assert len(sockets.opened) == 6
    assert all(opened.fileno() < 0 for opened in sockets.opened)
    # Nor does the loop wait for one.
    assert not any(asyncio.get_running_loop().remove_reader(descriptor) for descriptor in sockets.descriptors)
    assert servers.serving(_Sockets.identity) == {}


async def test_a_tap_that_is_gone_leaves_no_socket_open() -> None:
    found = offer(msgspec.structs.replace(RECORD, routes=(RecordedRoute("::/0", "2001:db8::1"),)))
    assert found is not None
    sockets, servers = _Sockets("bridge"), AddressServers(lambda: None, lambda: None, structlog.get_logger())
    with pytest.raises(OSError, match="tap is gone"):
        await servers.serve(ServedAddresses("blue", "tap", "bridge", found), cast("Netns", sockets))
    assert [opened.fileno() for opened in sockets.opened] == [-1]
