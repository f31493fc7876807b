"""The offer for a guest follows from the pod NIC record: addresses, routes, name servers, host name."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest

from schemas.kubernetes.operations import PodNic, RecordedRoute
from services.handler.addresses.offer import MAX_HOPS, NO_RESOLVER, Ipv6Offer, NextHop, Offer, Resolver, build_offer

MAC, SERVER_MAC = "3e:89:92:5a:b5:a7", "02:11:22:33:44:55"


def record(*ips: str, routes: tuple[RecordedRoute, ...] = (), mtu: int = 1500, **more: object) -> PodNic:
    return PodNic(pod_uid="p", sandbox_id="s", interface="podx", mac=MAC, mtu=mtu, ips=ips, routes=routes, **more)  # type: ignore[arg-type]


def optional_offer(nic: PodNic, resolver: Resolver = NO_RESOLVER) -> Offer | None:
    return build_offer(
        nic, mac=MAC, server="169.254.75.11/32", server_mac=SERVER_MAC, hostname="vm1", resolver=resolver
    )


def offer(nic: PodNic, resolver: Resolver = NO_RESOLVER) -> Offer:
    found = optional_offer(nic, resolver)
    assert found is not None
    return found


def routes_of(*routes: RecordedRoute, ip: str = "10.0.0.2/24") -> tuple[str | None, list[str]]:
    ipv4 = offer(record(ip, routes=routes)).ipv4
    assert ipv4 is not None
    return (str(ipv4.router) if ipv4.router else None), [f"{network} {hop}" for network, hop in ipv4.routes]


@pytest.mark.parametrize("ips", [(), ("169.254.3.4/16",), ("fe80::1/64",), ("127.0.0.1/8", "::1/128"), ("nonsense",)])
def test_nic_without_ipam_address_gets_no_offer(ips: tuple[str, ...]) -> None:
    assert optional_offer(record(*ips)) is None


def test_offer_has_the_first_ipv4_address_and_every_ipv6_address() -> None:
    found = offer(record("169.254.3.4/16", "10.0.0.2/24", "fd00::2/64", "10.0.0.3/24", "fe80::5/64", "fd01::2/64"))
    assert (found.mac.hex(":"), found.server_mac.hex(":")) == (MAC, SERVER_MAC)
    assert found.ipv4 is not None
    assert (found.ipv4.address, found.ipv4.server) == (IPv4Interface("10.0.0.2/24"), IPv4Address("169.254.75.11"))
    assert found.ipv6 is not None
    assert found.ipv6.addresses == (IPv6Interface("fd00::2/64"), IPv6Interface("fd01::2/64"))


def test_default_route_alone_needs_only_the_router_option() -> None:
    assert routes_of(RecordedRoute("0.0.0.0/0", "10.0.0.1")) == ("10.0.0.1", [])


@pytest.mark.parametrize("routes", [(), (RecordedRoute("10.0.0.0/24"),)])
def test_route_to_the_own_subnet_is_left_out(routes: tuple[RecordedRoute, ...]) -> None:
    assert routes_of(*routes) == (None, [])


def test_static_routes_end_with_the_default_route() -> None:
    routes = (
        RecordedRoute("0.0.0.0/0", "10.0.0.1"),
        RecordedRoute("10.1.0.0/16", "10.0.0.9"),
        RecordedRoute("10.1.2.0/24", "10.0.0.8"),
    )
    assert routes_of(*routes) == (
        "10.0.0.1",
        ["10.1.2.0/24 10.0.0.8", "10.1.0.0/16 10.0.0.9", "0.0.0.0/0 10.0.0.1"],
    )


def test_next_hop_outside_the_subnet_gets_an_on_link_route_first() -> None:
    expected = ["169.254.1.1/32 0.0.0.0", "0.0.0.0/0 169.254.1.1"]
    default = RecordedRoute("0.0.0.0/0", "169.254.1.1")
    assert routes_of(default, ip="10.0.0.2/32") == ("169.254.1.1", expected)
    assert routes_of(default, RecordedRoute("169.254.1.1/32"), ip="10.0.0.2/32") == ("169.254.1.1", expected)


def test_default_route_without_next_hop_is_on_link() -> None:
    assert routes_of(RecordedRoute("0.0.0.0/0")) == (None, ["0.0.0.0/0 0.0.0.0"])


@pytest.mark.parametrize(
    "malformed",
    [RecordedRoute("nonsense", "10.0.0.1"), RecordedRoute("10.2.0.0/16", "fd00::1"), RecordedRoute("10.2.0.0/16", "?")],
)
def test_malformed_route_is_left_out(malformed: RecordedRoute) -> None:
    assert routes_of(malformed, RecordedRoute("0.0.0.0/0", "10.0.0.1")) == ("10.0.0.1", [])


def ipv6_of(*routes: RecordedRoute, ips: tuple[str, ...] = ("fd00::2/64",)) -> Ipv6Offer:
    found = offer(record(*ips, routes=routes)).ipv6
    assert found is not None
    return found


def test_ipv6_routes_are_grouped_by_next_hop() -> None:
    found = ipv6_of(
        RecordedRoute("0.0.0.0/0", "10.0.0.1"),
        RecordedRoute("fd05::/64", "fd00::9"),
        RecordedRoute("::/0", "fd00::1"),
        RecordedRoute("fd06::/48", "fd00::1"),
    )
    assert found.hops == (
        NextHop(IPv6Address("fd00::1"), default=True, routes=(IPv6Network("fd06::/48"),)),
        NextHop(IPv6Address("fd00::9"), routes=(IPv6Network("fd05::/64"),)),
    )


def test_on_link_networks_are_those_of_addresses_and_of_routes_without_next_hop() -> None:
    found = ipv6_of(
        RecordedRoute("fd00::/64"),
        RecordedRoute("fd07::/64"),
        RecordedRoute("::/0"),
        ips=("fd00::2/64", "fd00::3/64", "fd02::2/128"),
    )
    assert found.on_link == (IPv6Network("fd00::/64"), IPv6Network("fd07::/64"))
    assert found.hops == ()


def test_limit_of_next_hops_preserves_the_default_one() -> None:
    routes = [RecordedRoute(f"fd05:{number}::/64", f"fd00::{number}") for number in range(1, 30)]
    found = ipv6_of(*routes, RecordedRoute("::/0", "fd00::99"))
    assert len(found.hops) == MAX_HOPS
    assert found.hops[0] == NextHop(IPv6Address("fd00::99"), default=True)


def test_name_servers_of_the_network_replace_those_of_the_pod() -> None:
    pod_resolver = Resolver(("10.96.0.10", "fd96::a"), ("default.svc.cluster.local", "cluster.local"))
    found = offer(record("10.0.0.2/24", "fd00::2/64"), pod_resolver)
    assert found.ipv4 is not None
    assert found.ipv6 is not None
    assert (found.ipv4.nameservers, found.ipv6.nameservers) == ((IPv4Address("10.96.0.10"),), (IPv6Address("fd96::a"),))
    assert (found.domain, found.search) == ("default.svc.cluster.local", pod_resolver.search)
    own = record("10.0.0.2/24", nameservers=("10.0.0.53", "what?"), search=("corp",), domain="corp.example")
    found = offer(own, pod_resolver)
    assert found.ipv4 is not None
    assert (found.ipv4.nameservers, found.domain, found.search) == (
        (IPv4Address("10.0.0.53"),),
        "corp.example",
        ("corp",),
    )


def test_single_address_network_has_a_full_netmask() -> None:
    found = offer(record("10.0.0.2/32"))
    assert found.ipv4 is not None
    assert found.ipv4.address.network == IPv4Network("10.0.0.2/32")
