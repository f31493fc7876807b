"""The way back, taken by a model of the kernel's links: from any half-way state the plain pod NIC is there again."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.operations import PodNic, RecordedRoute
from services.common.netlink.links import Address, Link
from services.common.netlink.links import Route as SeenRoute
from services.handler.netlink_operations import (
    AddAddress,
    AddRoute,
    ChangeLink,
    DeleteLink,
    DeleteLinks,
    Seen,
    SetSysctl,
    Step,
)
from services.handler.pod_network import ARP_IGNORE, PodNetworkConflict, bridge_binding, link_names, pod_nic_link, steps
from services.handler.teardown import is_wired, release_steps
from tests.support.kernel_links import Kernel

POD, MAC = "22222222-2222-4222-8222-222222222222", "3e:89:92:5a:b5:a7"
NAMES = link_names("pod7e0055a6880")
OTHER = link_names("pod0123456789a")
NIC = 2

IPS = ("10.0.0.2/24", "fd00::2/64")
ROUTES = (
    RecordedRoute("0.0.0.0/0", "10.0.0.1"),
    RecordedRoute("10.9.0.0/16"),
    RecordedRoute("10.8.0.0/16", "10.9.0.1", 50),
)


def pod(ips: tuple[str, ...] = IPS, routes: tuple[RecordedRoute, ...] = ROUTES, mtu: int = 1400) -> Seen:
    """A pod as the CNI plugins leave it."""
    nic = Link(index=NIC, name=NAMES.nic, kind="veth", mac=MAC, mtu=mtu, up=True, link=7)
    return Seen(
        (Link(index=1, name="lo", mtu=65536, up=True), nic),
        tuple(Address(NIC, ip) for ip in ips),
        tuple(SeenRoute(NIC, route.dst, route.gw, route.priority) for route in routes),
    )


def record(ips: tuple[str, ...] = IPS, routes: tuple[RecordedRoute, ...] = ROUTES, mtu: int = 1400) -> PodNic:
    return PodNic(pod_uid=POD, sandbox_id="s", interface=NAMES.nic, mac=MAC.upper(), mtu=mtu, ips=ips, routes=routes)


def wire(kernel: Kernel, nic: PodNic, stop_after: int | None = None) -> None:
    link = pod_nic_link(kernel.seen(), NAMES)
    assert link is not None
    for step in steps(kernel.seen(), bridge_binding(nic, NAMES, link, position=1, owner=107))[:stop_after]:
        kernel.take(step)


def release(kernel: Kernel, nic: PodNic | None, stop_after: int | None = None) -> list[Step]:
    todo = release_steps(kernel.seen(), NAMES, nic)
    for step in todo[:stop_after]:
        kernel.take(step)
    return todo


def expect_plain(kernel: Kernel, nic: PodNic) -> None:
    assert [link.name for link in kernel.links.values()] == ["lo", NAMES.nic]
    link = kernel.at(NAMES.nic)
    assert (link.index, link.mac, link.mtu, link.up, link.master) == (NIC, MAC, nic.mtu, True, None)
    assert sorted(a.cidr for a in kernel.addresses) == sorted(nic.ips)
    assert {(r.dst, r.gw) for r in kernel.routes} == {(r.dst, r.gw) for r in nic.routes}
    assert kernel.sysctls.get(ARP_IGNORE, "0") == "0"
    assert not is_wired(kernel.seen(), NAMES)
    assert release(kernel, nic) == []


ADDRESSES = st.lists(st.sampled_from(IPS), unique=True).map(tuple)


@given(
    ips=ADDRESSES,
    mtu=st.sampled_from([1280, 1500, 9000]),
    way=st.lists(st.tuples(st.sampled_from([wire, release]), st.integers(0, 16)), max_size=6),
)
def test_from_any_half_way_state_the_plain_nic_is_back(
    ips: tuple[str, ...], mtu: int, way: list[tuple[object, int]]
) -> None:
    """A crash after any step, of the wiring or of the way back, any number of times."""
    routes = ROUTES if "10.0.0.2/24" in ips else ()
    kernel, nic = Kernel(pod(ips, routes, mtu)), record(ips, routes, mtu)
    for turn, stop in way:
        (wire if turn is wire else release)(kernel, nic, stop)
    release(kernel, nic)
    expect_plain(kernel, nic)


@pytest.mark.parametrize("stop", range(16))
def test_a_crash_after_each_step_back_costs_nothing(stop: int) -> None:
    kernel = Kernel(pod())
    wire(kernel, record())
    release(kernel, record(), stop)
    release(kernel, record())
    expect_plain(kernel, record())


def test_the_way_back_has_its_order() -> None:
    kernel = Kernel(pod())
    wire(kernel, record())
    todo = release(kernel, record())
    assert [type(step) for step in todo] == [
        SetSysctl,
        DeleteLinks,
        ChangeLink,
        ChangeLink,
        AddAddress,
        AddAddress,
        AddRoute,
        AddRoute,
        AddRoute,
    ]
    assert isinstance(todo[1], DeleteLinks)
    assert todo[1].names == (NAMES.tap, NAMES.bridge, NAMES.nic)
    assert todo[2:4] == [ChangeLink(NIC, up=False), ChangeLink(NIC, NAMES.nic, True, MAC)]
    # One that others lead over comes first.
    assert [step.gw for step in todo if isinstance(step, AddRoute)] == [None, "10.0.0.1", "10.9.0.1"]


def test_a_nic_that_was_never_wired_is_left_as_it_is() -> None:
    assert release_steps(pod(), NAMES, record()) == []
    assert not is_wired(pod(), NAMES)
    assert release_steps(Seen(pod().links[:1]), NAMES, None) == []


def test_other_nics_keep_the_pod_from_answering_for_their_guests() -> None:
    kernel = Kernel(pod())
    wire(kernel, record())
    seen = kernel.seen()
    other = Link(index=90, name=OTHER.bridge, kind="bridge", up=True)
    with_ipv4 = msgspec.structs.replace(
        seen, links=(*seen.links, other), addresses=(*seen.addresses, Address(90, "169.254.75.12/32"))
    )
    without = msgspec.structs.replace(seen, links=(*seen.links, other))
    assert not any(isinstance(step, SetSysctl) for step in release_steps(with_ipv4, NAMES, record()))
    assert SetSysctl(ARP_IGNORE, "0") in release_steps(without, NAMES, record())


def test_without_a_record_the_nic_gets_its_name_back_and_the_mac_that_is_known() -> None:
    kernel = Kernel(pod())
    wire(kernel, record())
    for step in release_steps(kernel.seen(), NAMES, None, "3E:89:92:5A:B5:A7"):
        kernel.take(step)
    link = kernel.at(NAMES.nic)
    assert (link.index, link.mac, link.up) == (NIC, MAC, True)
    assert len(kernel.links) == 2


def test_a_nic_that_vanished_leaves_nothing_of_its_wiring() -> None:
    kernel = Kernel(pod())
    wire(kernel, record())
    kernel.take(DeleteLink(NIC, NAMES.bridged))
    release(kernel, record())
    assert not is_wired(kernel.seen(), NAMES)


def test_routes_in_the_records_own_words_are_known_again() -> None:
    seen = pod(routes=(RecordedRoute("10.9.0.0/16"),))
    assert release_steps(seen, NAMES, record(routes=(RecordedRoute("10.9.3.4/16"), RecordedRoute("10.0.0.0/24")))) == []


@pytest.mark.parametrize("name", [NAMES.tap, NAMES.bridge])
def test_a_stranger_under_one_of_the_names_is_not_removed(name: str) -> None:
    seen = pod()
    with pytest.raises(PodNetworkConflict, match=name):
        release_steps(Seen((*seen.links, Link(index=9, name=name, kind="veth"))), NAMES, record())


def test_two_nics_that_could_be_meant_are_a_conflict() -> None:
    seen = pod()
    with pytest.raises(PodNetworkConflict, match="left over"):
        release_steps(Seen((*seen.links, Link(index=9, name=NAMES.bridged, kind="veth"))), NAMES, record())
