"""The wiring's steps, taken by a model of the kernel's links: from any half-way state they reach the wish, once."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.operations import PodNic
from services.common.netlink.links import Address, Link
from services.handler.netlink_operations import (
    AddLink,
    ChangeLink,
    DeleteLink,
    Seen,
    Step,
)
from services.handler.pod_network import (
    ARP_IGNORE,
    PodNetworkConflict,
    Wiring,
    bridge_address,
    bridge_binding,
    bridge_mac,
    cannot_be_bridged,
    link_names,
    pod_nic_link,
    steps,
)
from tests.support.kernel_links import Kernel

POD, NIC_MAC = "22222222-2222-4222-8222-222222222222", "3e:89:92:5a:b5:a7"
NAMES = link_names("pod7e0055a6880")
NIC_INDEX = 2


def fresh(mtu: int = 1500, ips: tuple[str, ...] = ("10.0.0.2/24", "fd00::2/64")) -> Seen:
    """A pod as the CNI plugins leave it: loopback and the pod NIC."""
    loopback = Link(index=1, name="lo", mtu=65536, up=True)
    nic = Link(index=NIC_INDEX, name=NAMES.nic, kind="veth", mac=NIC_MAC, mtu=mtu, up=True, link=7)
    own = Address(NIC_INDEX, "fe80::3c89:92ff:fe5a:b5a7/64", link_local=True)
    return Seen((loopback, nic), (own, *(Address(NIC_INDEX, ip) for ip in ips)))


def record(mtu: int = 1500, ips: tuple[str, ...] = ("10.0.0.2/24", "fd00::2/64")) -> PodNic:
    return PodNic(pod_uid=POD, sandbox_id="s", interface=NAMES.nic, mac=NIC_MAC.upper(), mtu=mtu, ips=ips)


def wish(seen: Seen, nic: PodNic, queues: int = 1) -> Wiring:
    link = pod_nic_link(seen, NAMES)
    assert link is not None
    return bridge_binding(nic, NAMES, link, position=1, owner=107, queues=queues)


def run(kernel: Kernel, nic: PodNic, queues: int = 1, stop_after: int | None = None) -> list[Step]:
    todo = steps(kernel.seen(), wish(kernel.seen(), nic, queues))
    for step in todo[:stop_after]:
        kernel.take(step)
    return todo


def expect_wired(kernel: Kernel, mtu: int, ips: tuple[str, ...]) -> None:
    bridge, nic, tap, keeper = (kernel.at(name) for name in (NAMES.bridge, NAMES.bridged, NAMES.tap, NAMES.nic))
    mac = bridge_mac(POD, NAMES.nic)
    assert (bridge.kind, bridge.up, bridge.mac) == ("bridge", True, mac)
    assert (nic.index, nic.up, nic.mac, nic.mtu) == (NIC_INDEX, True, mac, mtu)
    assert (nic.master, nic.learning) == (bridge.index, False)
    assert (tap.kind, tap.up, tap.mtu, tap.master) == ("tun", True, mtu, bridge.index)
    assert (keeper.kind, keeper.up, keeper.mac, keeper.mtu) == ("dummy", False, NIC_MAC, mtu)
    seen = kernel.seen()
    ipv4 = any(":" not in ip for ip in ips)
    assert seen.addresses_of(bridge.index) == ([bridge_address(1)] if ipv4 else [])
    assert seen.addresses_of(nic.index) == []
    assert sorted(seen.addresses_of(keeper.index)) == sorted(ips)
    assert kernel.sysctls == ({ARP_IGNORE: "1"} if ipv4 else {})


ADDRESSES = st.lists(st.sampled_from(["10.0.0.2/24", "192.168.7.9/16", "fd00::2/64"]), unique=True).map(tuple)


@given(mtu=st.sampled_from([1280, 1450, 1500, 9000]), ips=ADDRESSES, stops=st.lists(st.integers(0, 14), max_size=5))
def test_the_wish_is_reached_from_wherever_an_attempt_broke_off(
    mtu: int, ips: tuple[str, ...], stops: list[int]
) -> None:
    kernel = Kernel(fresh(mtu, ips))
    nic = record(mtu, ips)
    for stop in stops:
        run(kernel, nic, stop_after=stop)
    run(kernel, nic)
    expect_wired(kernel, mtu, ips)
    assert run(kernel, nic) == []


@given(
    stop=st.integers(0, 14), damage=st.lists(st.sampled_from(["bridge", "tap", "keeper", "down", "free"]), max_size=4)
)
def test_damage_done_by_others_is_repaired(stop: int, damage: list[str]) -> None:
    kernel = Kernel(fresh())
    run(kernel, record(), stop_after=stop)
    run(kernel, record())
    for kind in damage:
        name = {"bridge": NAMES.bridge, "tap": NAMES.tap, "keeper": NAMES.nic}.get(kind)
        if name is not None and (link := kernel.named(name)) is not None:
            kernel.take(DeleteLink(link.index, link.name))
            for index, port in list(kernel.links.items()):
                if port.master == link.index:
                    kernel.links[index] = msgspec.structs.replace(port, master=None, learning=None)
        elif kind == "down":
            kernel.links[NIC_INDEX] = msgspec.structs.replace(kernel.links[NIC_INDEX], up=False)
        elif kind == "free":
            nic = kernel.links[NIC_INDEX]
            kernel.links[NIC_INDEX] = msgspec.structs.replace(nic, master=None, learning=None)
    run(kernel, record())
    expect_wired(kernel, 1500, record().ips)
    assert run(kernel, record()) == []


def test_the_order_is_upstreams() -> None:
    todo = run(Kernel(fresh(ips=("10.0.0.2/24",))), record(ips=("10.0.0.2/24",)))
    mac = bridge_mac(POD, NAMES.nic)
    assert [type(step).__name__ for step in todo] == [
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
    assert todo[3] == ChangeLink(NIC_INDEX, up=False)
    assert todo[4] == ChangeLink(NIC_INDEX, name=NAMES.bridged, up=True, mac=mac, master=NAMES.bridge)
    assert todo[7] == ChangeLink(NAMES.tap, up=True, mtu=1500, master=NAMES.bridge)


def test_a_tap_with_the_wrong_number_of_queues_is_made_anew() -> None:
    kernel = Kernel(fresh())
    run(kernel, record())
    old = kernel.at(NAMES.tap)
    todo = run(kernel, record(), queues=4)
    assert todo[0] == DeleteLink(old.index, NAMES.tap)
    assert kernel.at(NAMES.tap).multi_queue is True
    assert run(kernel, record(), queues=4) == []


def test_a_bridge_without_ports_does_as_a_dummy() -> None:
    kernel = Kernel(fresh())
    run(kernel, record())
    keeper = kernel.at(NAMES.nic)
    kernel.links[keeper.index] = msgspec.structs.replace(keeper, kind="bridge")
    assert run(kernel, record()) == []


def test_a_stranger_under_one_of_the_names_is_a_conflict() -> None:
    seen = fresh()
    stranger = Link(index=9, name=NAMES.bridge, kind="veth")
    with pytest.raises(PodNetworkConflict, match="should be a bridge"):
        steps(Seen((*seen.links, stranger)), wish(seen, record()))


def test_a_nic_left_over_from_an_earlier_attachment_is_not_taken_for_the_new_one() -> None:
    seen = fresh()
    left = Link(index=9, name=NAMES.bridged, kind="veth")
    with pytest.raises(PodNetworkConflict, match="left over"):
        pod_nic_link(Seen((*seen.links, left)), NAMES)


def test_a_pod_nic_that_vanished_is_a_conflict() -> None:
    seen = fresh()
    with pytest.raises(PodNetworkConflict, match="gone"):
        steps(Seen(seen.links[:1]), wish(seen, record()))


@pytest.mark.parametrize(
    ("pod_interface", "names"),
    [
        ("pod7e0055a6880", ("7e0055a6880-nic", "k6t-7e0055a6880", "tap7e0055a6880")),
        ("net1", ("net1-nic", "k6t-net1", "tap1")),
    ],
)
def test_names_follow_the_pods_scheme(pod_interface: str, names: tuple[str, str, str]) -> None:
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
def test_links_behind_which_a_second_mac_gets_no_traffic(kind: str | None, mode: str | None, refused: bool) -> None:
    assert cannot_be_bridged(Link(index=1, name="x", kind=kind, mode=mode)) is refused


def test_the_bridges_mac_is_its_own_and_local() -> None:
    mac = bridge_mac(POD, NAMES.nic)
    assert mac == bridge_mac(POD, NAMES.nic)
    assert mac != bridge_mac("other", NAMES.nic)
    assert int(mac[:2], 16) & 3 == 2


def test_the_label_goes_with_the_tap_and_no_other_link() -> None:
    seen, label = fresh(), "system_u:system_r:container_t:s0"
    nic = seen.named(NAMES.nic)
    assert nic is not None
    wiring = bridge_binding(record(), NAMES, nic, position=1, owner=107, label=label)
    made = {step.wish.name: step.wish.label for step in steps(seen, wiring) if isinstance(step, AddLink)}
    assert made == {NAMES.bridge: None, NAMES.tap: label, NAMES.nic: None}
