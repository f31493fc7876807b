"""The operations of the set-up, on a model of the kernel: they reach the desired state from every other state."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.operations import PodNic
from services.common.domain.nic import link_names
from services.common.netlink.links import Address, Link
from services.handler.pod_network.operations import (
    AddLink,
    ChangeLink,
    DeleteLink,
    NetlinkOperation,
    ObservedLinks,
)
from services.handler.pod_network.setup import (
    ARP_IGNORE,
    PodNetwork,
    PodNetworkConflict,
    bridge_address,
    bridge_binding,
    bridge_mac,
    cannot_be_bridged,
    pod_nic_link,
    setup_operations,
)
from tests.support.node.kernel_links import Kernel

POD, NIC_MAC = "22222222-2222-4222-8222-222222222222", "3e:89:92:5a:b5:a7"
NAMES = link_names("pod7e0055a6880")
NIC_INDEX = 2


def new_pod(mtu: int = 1500, ips: tuple[str, ...] = ("10.0.0.2/24", "fd00::2/64")) -> ObservedLinks:
    """Return a pod's links as the CNI plugins leave them: loopback and the pod interface."""
    loopback = Link(index=1, name="lo", mtu=65536, up=True)
    nic = Link(index=NIC_INDEX, name=NAMES.pod_interface, kind="veth", mac=NIC_MAC, mtu=mtu, up=True, link=7)
    own = Address(NIC_INDEX, "fe80::3c89:92ff:fe5a:b5a7/64", link_local=True)
    return ObservedLinks((loopback, nic), (own, *(Address(NIC_INDEX, ip) for ip in ips)))


def record(mtu: int = 1500, ips: tuple[str, ...] = ("10.0.0.2/24", "fd00::2/64")) -> PodNic:
    return PodNic(pod_uid=POD, sandbox_id="s", interface=NAMES.pod_interface, mac=NIC_MAC.upper(), mtu=mtu, ips=ips)


def desired_network(observed: ObservedLinks, nic: PodNic, queues: int = 1) -> PodNetwork:
    link = pod_nic_link(observed, NAMES)
    assert link is not None
    return bridge_binding(nic, NAMES, link, position=1, owner=107, queues=queues)


def set_up(kernel: Kernel, nic: PodNic, queues: int = 1, stop_after: int | None = None) -> list[NetlinkOperation]:
    operations = setup_operations(kernel.observe(), desired_network(kernel.observe(), nic, queues))
    for operation in operations[:stop_after]:
        kernel.apply(operation)
    return operations


def expect_set_up(kernel: Kernel, mtu: int, ips: tuple[str, ...]) -> None:
    bridge, nic, tap, dummy = (
        kernel.at(name) for name in (NAMES.bridge, NAMES.bridged, NAMES.tap, NAMES.pod_interface)
    )
    mac = bridge_mac(POD, NAMES.pod_interface)
    assert (bridge.kind, bridge.up, bridge.mac) == ("bridge", True, mac)
    assert (nic.index, nic.up, nic.mac, nic.mtu) == (NIC_INDEX, True, mac, mtu)
    assert (nic.master, nic.learning) == (bridge.index, False)
    assert (tap.kind, tap.up, tap.mtu, tap.master) == ("tun", True, mtu, bridge.index)
    assert (dummy.kind, dummy.up, dummy.mac, dummy.mtu) == ("dummy", False, NIC_MAC, mtu)
    observed = kernel.observe()
    ipv4 = any(":" not in ip for ip in ips)
    assert observed.addresses_of(bridge.index) == ([bridge_address(1)] if ipv4 else [])
    assert observed.addresses_of(nic.index) == []
    assert sorted(observed.addresses_of(dummy.index)) == sorted(ips)
    assert kernel.sysctls == ({ARP_IGNORE: "1"} if ipv4 else {})


ADDRESSES = st.lists(st.sampled_from(["10.0.0.2/24", "192.168.7.9/16", "fd00::2/64"]), unique=True).map(tuple)


@given(mtu=st.sampled_from([1280, 1450, 1500, 9000]), ips=ADDRESSES, stops=st.lists(st.integers(0, 14), max_size=5))
def test_the_desired_state_is_reached_after_interrupted_attempts(
    mtu: int, ips: tuple[str, ...], stops: list[int]
) -> None:
    kernel = Kernel(new_pod(mtu, ips))
    nic = record(mtu, ips)
    for stop in stops:
        set_up(kernel, nic, stop_after=stop)
    set_up(kernel, nic)
    expect_set_up(kernel, mtu, ips)
    assert set_up(kernel, nic) == []


@given(
    stop=st.integers(0, 14), damage=st.lists(st.sampled_from(["bridge", "tap", "dummy", "down", "free"]), max_size=4)
)
def test_changes_by_others_are_repaired(stop: int, damage: list[str]) -> None:
    kernel = Kernel(new_pod())
    set_up(kernel, record(), stop_after=stop)
    set_up(kernel, record())
    for kind in damage:
        name = {"bridge": NAMES.bridge, "tap": NAMES.tap, "dummy": NAMES.pod_interface}.get(kind)
        if name is not None and (link := kernel.named(name)) is not None:
            kernel.apply(DeleteLink(link.index, link.name))
            for index, port in list(kernel.links.items()):
                if port.master == link.index:
                    kernel.links[index] = msgspec.structs.replace(port, master=None, learning=None)
        elif kind == "down":
            kernel.links[NIC_INDEX] = msgspec.structs.replace(kernel.links[NIC_INDEX], up=False)
        elif kind == "free":
            nic = kernel.links[NIC_INDEX]
            kernel.links[NIC_INDEX] = msgspec.structs.replace(nic, master=None, learning=None)
    set_up(kernel, record())
    expect_set_up(kernel, 1500, record().ips)
    assert set_up(kernel, record()) == []


def test_the_operations_are_in_kubevirts_order() -> None:
    operations = set_up(Kernel(new_pod(ips=("10.0.0.2/24",))), record(ips=("10.0.0.2/24",)))
    mac = bridge_mac(POD, NAMES.pod_interface)
    assert [type(operation).__name__ for operation in operations] == [
        "AddLink",
        "AddAddress",
        "DeleteAddress",
        "ChangeLink",
        "ChangeLink",
        "SetLearning",
        "AddLink",
        "ChangeLink",
        "AddLink",
        "AddAddress",
        "SetSysctl",
    ]
    assert operations[3] == ChangeLink(NIC_INDEX, up=False)
    assert operations[4] == ChangeLink(NIC_INDEX, name=NAMES.bridged, up=True, mac=mac, master=NAMES.bridge)
    assert operations[7] == ChangeLink(NAMES.tap, up=True, mtu=1500, master=NAMES.bridge)


def test_a_tap_with_the_wrong_number_of_queues_is_created_again() -> None:
    kernel = Kernel(new_pod())
    set_up(kernel, record())
    old = kernel.at(NAMES.tap)
    operations = set_up(kernel, record(), queues=4)
    assert operations[0] == DeleteLink(old.index, NAMES.tap)
    assert kernel.at(NAMES.tap).multi_queue is True
    assert set_up(kernel, record(), queues=4) == []


def test_a_bridge_without_ports_is_accepted_as_the_dummy() -> None:
    kernel = Kernel(new_pod())
    set_up(kernel, record())
    dummy = kernel.at(NAMES.pod_interface)
    kernel.links[dummy.index] = msgspec.structs.replace(dummy, kind="bridge")
    assert set_up(kernel, record()) == []


def test_a_foreign_link_with_one_of_the_names_is_a_conflict() -> None:
    observed = new_pod()
    foreign = Link(index=9, name=NAMES.bridge, kind="veth")
    with pytest.raises(PodNetworkConflict, match="should be a bridge"):
        setup_operations(ObservedLinks((*observed.links, foreign)), desired_network(observed, record()))


def test_a_leftover_pod_interface_is_a_conflict() -> None:
    observed = new_pod()
    left = Link(index=9, name=NAMES.bridged, kind="veth")
    with pytest.raises(PodNetworkConflict, match="left over"):
        pod_nic_link(ObservedLinks((*observed.links, left)), NAMES)


def test_a_missing_pod_interface_is_a_conflict() -> None:
    observed = new_pod()
    with pytest.raises(PodNetworkConflict, match="gone"):
        setup_operations(ObservedLinks(observed.links[:1]), desired_network(observed, record()))


@pytest.mark.parametrize(
    ("pod_interface", "names"),
    [
        ("pod7e0055a6880", ("7e0055a6880-nic", "k6t-7e0055a6880", "tap7e0055a6880")),
        ("net1", ("net1-nic", "k6t-net1", "tap1")),
    ],
)
def test_link_names_follow_the_pod_interface(pod_interface: str, names: tuple[str, str, str]) -> None:
    found = link_names(pod_interface)
    assert (found.bridged, found.bridge, found.tap) == names
    assert all(len(name) <= 15 for name in names)


@pytest.mark.parametrize(
    ("kind", "mode", "refused"),
    [
        ("veth", None, False),
        ("macvlan", "bridge", True),
        ("macvlan", None, True),
        ("macvlan", "passthru", False),
        ("ipvlan", None, True),
        (None, None, False),
    ],
)
def test_links_behind_which_a_second_mac_gets_no_traffic_cannot_be_bridged(
    kind: str | None, mode: str | None, refused: bool
) -> None:
    assert cannot_be_bridged(Link(index=1, name="x", kind=kind, mode=mode)) is refused


def test_the_bridge_mac_is_reproducible_and_locally_administered() -> None:
    mac = bridge_mac(POD, NAMES.pod_interface)
    assert mac == bridge_mac(POD, NAMES.pod_interface)
    assert mac != bridge_mac("other", NAMES.pod_interface)
    assert int(mac[:2], 16) & 3 == 2


def test_only_the_tap_has_the_label() -> None:
    observed, label = new_pod(), "system_u:system_r:container_t:s0"
    nic = observed.named(NAMES.pod_interface)
    assert nic is not None
    network = bridge_binding(record(), NAMES, nic, position=1, owner=107, label=label)
    made = {
        operation.desired.name: operation.desired.label
        for operation in setup_operations(observed, network)
        if isinstance(operation, AddLink)
    }
    assert made == {NAMES.bridge: None, NAMES.tap: label, NAMES.pod_interface: None}
