"""The operations of the teardown, on a model of the kernel: they restore the pod interface from every state."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.operations import PodNic, RecordedRoute
from services.common.domain.nic import link_names
from services.common.netlink.links import Address, Link
from services.common.netlink.links import Route as ObservedRoute
from services.handler.pod_network.operations import (
    AddAddress,
    AddRoute,
    ChangeLink,
    DeleteLink,
    DeleteLinks,
    NetlinkOperation,
    ObservedLinks,
    SetSysctl,
)
from services.handler.pod_network.setup import (
    ARP_IGNORE,
    PodNetworkConflict,
    bridge_binding,
    pod_nic_link,
    setup_operations,
)
from services.handler.pod_network.teardown import is_set_up, teardown_operations
from tests.support.node.kernel_links import Kernel

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


def pod(ips: tuple[str, ...] = IPS, routes: tuple[RecordedRoute, ...] = ROUTES, mtu: int = 1400) -> ObservedLinks:
    """Return a pod's links as the CNI plugins leave them."""
    nic = Link(index=NIC, name=NAMES.pod_interface, kind="veth", mac=MAC, mtu=mtu, up=True, link=7)
    return ObservedLinks(
        (Link(index=1, name="lo", mtu=65536, up=True), nic),
        tuple(Address(NIC, ip) for ip in ips),
        tuple(ObservedRoute(NIC, route.dst, route.gw, route.priority) for route in routes),
    )


def record(ips: tuple[str, ...] = IPS, routes: tuple[RecordedRoute, ...] = ROUTES, mtu: int = 1400) -> PodNic:
    return PodNic(
        pod_uid=POD, sandbox_id="s", interface=NAMES.pod_interface, mac=MAC.upper(), mtu=mtu, ips=ips, routes=routes
    )


def set_up(kernel: Kernel, nic: PodNic, stop_after: int | None = None) -> None:
    link = pod_nic_link(kernel.observe(), NAMES)
    assert link is not None
    for operation in setup_operations(kernel.observe(), bridge_binding(nic, NAMES, link, position=1, owner=107))[
        :stop_after
    ]:
        kernel.apply(operation)


def tear_down(kernel: Kernel, nic: PodNic | None, stop_after: int | None = None) -> list[NetlinkOperation]:
    operations = teardown_operations(kernel.observe(), NAMES, nic)
    for operation in operations[:stop_after]:
        kernel.apply(operation)
    return operations


def expect_plain(kernel: Kernel, nic: PodNic) -> None:
    assert [link.name for link in kernel.links.values()] == ["lo", NAMES.pod_interface]
    link = kernel.at(NAMES.pod_interface)
    assert (link.index, link.mac, link.mtu, link.up, link.master) == (NIC, MAC, nic.mtu, True, None)
    assert sorted(a.cidr for a in kernel.addresses) == sorted(nic.ips)
    assert {(r.dst, r.gw) for r in kernel.routes} == {(r.dst, r.gw) for r in nic.routes}
    assert kernel.sysctls.get(ARP_IGNORE, "0") == "0"
    assert not is_set_up(kernel.observe(), NAMES)
    assert tear_down(kernel, nic) == []


ADDRESSES = st.lists(st.sampled_from(IPS), unique=True).map(tuple)


@given(
    ips=ADDRESSES,
    mtu=st.sampled_from([1280, 1500, 9000]),
    turns=st.lists(st.tuples(st.sampled_from([set_up, tear_down]), st.integers(0, 16)), max_size=6),
)
def test_the_plain_pod_interface_is_restored_from_every_intermediate_state(
    ips: tuple[str, ...], mtu: int, turns: list[tuple[object, int]]
) -> None:
    """The handler may crash after any operation of set-ups and teardowns, any number of times."""
    routes = ROUTES if "10.0.0.2/24" in ips else ()
    kernel, nic = Kernel(pod(ips, routes, mtu)), record(ips, routes, mtu)
    for turn, stop in turns:
        (set_up if turn is set_up else tear_down)(kernel, nic, stop)
    tear_down(kernel, nic)
    expect_plain(kernel, nic)


@pytest.mark.parametrize("stop", range(16))
def test_a_crash_after_each_operation_is_recovered(stop: int) -> None:
    kernel = Kernel(pod())
    set_up(kernel, record())
    tear_down(kernel, record(), stop)
    tear_down(kernel, record())
    expect_plain(kernel, record())


def test_the_operations_are_in_order() -> None:
    kernel = Kernel(pod())
    set_up(kernel, record())
    operations = tear_down(kernel, record())
    assert [type(operation) for operation in operations] == [
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
    assert isinstance(operations[1], DeleteLinks)
    assert operations[1].names == (NAMES.tap, NAMES.bridge, NAMES.pod_interface)
    assert operations[2:4] == [ChangeLink(NIC, up=False), ChangeLink(NIC, NAMES.pod_interface, True, MAC)]
    # A route that others depend on comes first.
    assert [operation.gw for operation in operations if isinstance(operation, AddRoute)] == [
        None,
        "10.0.0.1",
        "10.9.0.1",
    ]


def test_a_plain_pod_interface_is_not_changed() -> None:
    assert teardown_operations(pod(), NAMES, record()) == []
    assert not is_set_up(pod(), NAMES)
    assert teardown_operations(ObservedLinks(pod().links[:1]), NAMES, None) == []


def test_arp_ignore_is_not_reset_while_another_nic_needs_it() -> None:
    kernel = Kernel(pod())
    set_up(kernel, record())
    observed = kernel.observe()
    other = Link(index=90, name=OTHER.bridge, kind="bridge", up=True)
    with_ipv4 = msgspec.structs.replace(
        observed, links=(*observed.links, other), addresses=(*observed.addresses, Address(90, "169.254.75.12/32"))
    )
    without = msgspec.structs.replace(observed, links=(*observed.links, other))
    assert not any(isinstance(operation, SetSysctl) for operation in teardown_operations(with_ipv4, NAMES, record()))
    assert SetSysctl(ARP_IGNORE, "0") in teardown_operations(without, NAMES, record())


def test_without_a_record_the_name_and_the_known_mac_are_restored() -> None:
    kernel = Kernel(pod())
    set_up(kernel, record())
    for operation in teardown_operations(kernel.observe(), NAMES, None, "3E:89:92:5A:B5:A7"):
        kernel.apply(operation)
    link = kernel.at(NAMES.pod_interface)
    assert (link.index, link.mac, link.up) == (NIC, MAC, True)
    assert len(kernel.links) == 2


def test_the_pod_network_of_a_missing_pod_interface_is_torn_down() -> None:
    kernel = Kernel(pod())
    set_up(kernel, record())
    kernel.apply(DeleteLink(NIC, NAMES.bridged))
    tear_down(kernel, record())
    assert not is_set_up(kernel.observe(), NAMES)


def test_routes_are_compared_as_networks() -> None:
    observed = pod(routes=(RecordedRoute("10.9.0.0/16"),))
    assert (
        teardown_operations(
            observed, NAMES, record(routes=(RecordedRoute("10.9.3.4/16"), RecordedRoute("10.0.0.0/24")))
        )
        == []
    )


@pytest.mark.parametrize("name", [NAMES.tap, NAMES.bridge])
def test_a_foreign_link_with_one_of_the_names_is_not_deleted(name: str) -> None:
    observed = pod()
    with pytest.raises(PodNetworkConflict, match=name):
        teardown_operations(ObservedLinks((*observed.links, Link(index=9, name=name, kind="veth"))), NAMES, record())


def test_two_possible_pod_interfaces_are_a_conflict() -> None:
    observed = pod()
    with pytest.raises(PodNetworkConflict, match="left over"):
        teardown_operations(
            ObservedLinks((*observed.links, Link(index=9, name=NAMES.bridged, kind="veth"))), NAMES, record()
        )
