"""The whole plan of one VMI: the order of its actions, what is planned after an effect, and the address servers."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import PodNic, encode_annotation, pod_nic_key
from schemas.names import device_alias, pod_interface
from services.common.domain.nic import link_names, parse_nics
from services.common.guest.port import GuestView, NetDevice
from services.common.netlink.links import Address, Link
from services.handler.addresses.served import ServedAddresses, served_addresses
from services.handler.plan import plan
from services.handler.plan.actions import (
    Action,
    ExpectMacs,
    Observed,
    PublishFailure,
    RecordDeclined,
    ReportStatus,
    RequestUnplug,
    RequeueAfter,
    RetryLater,
    ServeAddresses,
    SetLinkState,
    SetUpAndAttach,
    StopAddresses,
    TearDown,
    Unobserved,
)
from services.handler.plan.addresses import plan_addresses
from services.handler.pod_network.operations import ObservedLinks
from services.handler.unplug import Unplug, UnplugState
from tests.support.observed.handler import observed_state
from tests.support.observed.objects import POD_UID, nic, pod, vmi

SANDBOX, MAC, IP = "sandbox-1", "3e:89:92:5a:b5:a7", "10.0.0.2/24"


def launcher(*attached: str, recorded: tuple[str, ...] = ()) -> Pod:
    entries = [NetworkStatus(name="default/net1", interface=pod_interface(name), mac=MAC) for name in attached]
    records = {
        pod_nic_key(name): encode_annotation(
            PodNic(pod_uid=POD_UID, sandbox_id=SANDBOX, interface=pod_interface(name), mac=MAC, mtu=1500, ips=(IP,))
        )
        for name in recorded
    }
    return pod({NETWORK_STATUS: encode_network_status(entries), **records})


def guest(*names: str, free: tuple[str, ...] = ("rp1",), up: bool = True) -> GuestView:
    return GuestView({device_alias(n): NetDevice(device_alias(n), MAC, up=up) for n in names}, free)


def links(*names: str) -> ObservedLinks:
    found = [Link(index=i, name=pod_interface(n), kind="veth", mac=MAC, mtu=1500) for i, n in enumerate(names, 2)]
    return ObservedLinks((Link(index=1, name="lo"), *found), tuple(Address(link.index, IP) for link in found))


def kinds(actions: list[Action]) -> list[type]:
    return [type(action) for action in actions]


def test_the_actions_are_in_the_order_in_which_they_are_applied() -> None:
    """Two interfaces leave, one is attached, one cannot be, and one has lost its pod interface."""
    machine = vmi(
        nic("a", state="absent"), nic("b", state="absent"), nic("c"), nic("d", model="e1000"), nic("e"), nic("f")
    )
    state = observed_state(
        machine,
        launcher("a", "b", "c", "d", "e", "f"),
        guest=guest("default", "a", "f", free=("rp1", "rp2", "rp3"), up=False),
        pod_links=links("b", "c", "d"),
        sandbox_id=SANDBOX,
    )
    actions = plan(state)
    assert kinds(actions) == [
        RequestUnplug,
        TearDown,
        PublishFailure,
        ReportStatus,
        SetUpAndAttach,
        SetLinkState,
        SetLinkState,
        ExpectMacs,
        PublishFailure,
        RequeueAfter,
    ]
    reasons = [action.reason for action in actions if isinstance(action, PublishFailure)]
    assert reasons == ["UnsupportedModel", "PodLinkMissing"]
    (report,) = [action for action in actions if isinstance(action, ReportStatus)]
    assert (report.outcome.failed, report.outcome.released) == ({"d": "UnsupportedModel"}, frozenset())


def test_an_attached_device_is_reported_by_the_next_plan() -> None:
    state = observed_state(vmi(nic("a")), launcher("a"), guest=guest("default", "a"), unconfirmed=frozenset({"a"}))
    report, *rest = plan(state)
    assert isinstance(report, ReportStatus)
    assert [found.name for found, _ in report.confirmed] == ["a"]
    assert rest == [ExpectMacs(frozenset({MAC})), RequeueAfter(None)]


def test_a_torn_down_nic_is_released_by_the_next_plan_before_anything_is_plugged() -> None:
    machine = vmi(nic("a", state="absent"), nic("b"))
    state = observed_state(
        machine,
        launcher("a", "b"),
        guest=guest("default"),
        pod_links=links("b"),
        sandbox_id=SANDBOX,
        unplugs={"a": Unplug(UnplugState.TORN_DOWN, None)},
    )
    report, attach, *_ = plan(state)
    assert isinstance(report, ReportStatus)
    assert [(found.name, found.operation.released) for found in report.released] == [("a", POD_UID)]
    assert isinstance(attach, SetUpAndAttach)


def test_without_an_observation_every_waiting_nic_fails_and_the_run_is_retried() -> None:
    shown = [{"name": "b", "infoSource": "domain"}]
    machine = vmi(nic("a"), nic("b"), nic("c", state="absent"), nic("d"), status=shown)
    nics = parse_nics(machine, launcher("a", "b", "c"))
    assert plan(Unobserved(nics, "GuestNotReachable", "no answer")) == [
        *(PublishFailure(nics.nics[name], "GuestNotReachable", "no answer", final=False) for name in "ac"),
        RetryLater("GuestNotReachable", "no answer"),
    ]


# -- the address servers --------------------------------------------------------------------------------------------


def served(state: Observed, name: str = "a") -> ServedAddresses:
    (found,) = served_addresses(state.vmi, state.pod, [state.nics.nics[name]], state.guest, SANDBOX)
    return found[1]


def serving_state(**fields: Any) -> Observed:
    machine, attached = vmi(nic("a"), nic("b")), launcher("a", "b", recorded=("a",))
    return observed_state(machine, attached, **({"guest": guest("a", "b"), "sandbox_id": SANDBOX} | fields))


def test_only_a_nic_with_addresses_is_served() -> None:
    state = serving_state()
    assert plan_addresses(state) == [ServeAddresses(state.nics.nics["a"], served(state))]
    assert plan_addresses(serving_state(guest=guest("b"))) == []
    assert plan_addresses(serving_state(sandbox_id="another")) == []


def test_a_server_is_replaced_only_when_it_must_be() -> None:
    state = serving_state()
    desired = served(state)
    assert plan_addresses(msgspec.structs.replace(state, serving={"a": desired})) == []
    start = ServeAddresses(state.nics.nics["a"], desired)
    other = msgspec.structs.replace(desired, tap="tap9")
    for known in (other, None):
        found = plan_addresses(msgspec.structs.replace(state, serving={"a": known}))
        assert found == [StopAddresses("a"), start]


def test_the_server_of_a_nic_without_a_device_is_stopped() -> None:
    state = serving_state()
    gone = serving_state(guest=guest("b"), serving={"a": served(state)})
    assert plan_addresses(gone) == [StopAddresses("a")]


def test_a_pending_unplug_is_served_until_the_device_is_gone() -> None:
    state = observed_state(
        vmi(nic("a", state="absent")), launcher("a", recorded=("a",)), guest=guest("a"), sandbox_id=SANDBOX
    )
    assert plan_addresses(state) == [ServeAddresses(state.nics.nics["a"], served(state))]


@pytest.mark.parametrize("gone", [True, False])
def test_a_namespace_that_cannot_be_used_is_a_failure_of_each_nic_with_addresses(gone: bool) -> None:
    """A server in a namespace that is gone is stopped: its sockets would keep it alive."""
    state = serving_state()
    failing = serving_state(sandbox_error="no sandbox", sandbox_gone=gone, serving={"a": served(state)})
    failure = PublishFailure(state.nics.nics["a"], "AddressesNotServed", "no sandbox", final=False)
    assert plan_addresses(failing) == ([StopAddresses("a"), failure] if gone else [failure])


def test_a_declined_address_is_recorded() -> None:
    state = serving_state()
    declined = serving_state(serving={"a": served(state)}, declined=frozenset({"a", "b"}))
    assert plan_addresses(declined) == [RecordDeclined(state.nics.nics["a"])]


# -- every state ----------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")
UNPLUG_STATES = (UnplugState.DEVICE_GONE, UnplugState.TORN_DOWN)


@st.composite
def states(draw: st.DrawFn) -> Observed:
    flags = st.fixed_dictionaries(dict.fromkeys(NAMES, st.booleans()))
    absent, attached, in_domain, linked = draw(flags), draw(flags), draw(flags), draw(flags)
    machine = vmi(*(nic(name, **({"state": "absent"} if absent[name] else {})) for name in NAMES))
    devices = [name for name in NAMES if in_domain[name]]
    state = observed_state(
        machine,
        launcher(*(name for name in NAMES if attached[name]), recorded=NAMES[: draw(st.integers(0, len(NAMES)))]),
        guest=guest("default", *devices, free=tuple(f"rp{i}" for i in range(draw(st.integers(0, 4))))),
        pod_links=links(*(name for name in NAMES if linked[name])),
        sandbox_id=SANDBOX,
    )
    gone = {name: Unplug(draw(st.sampled_from(UNPLUG_STATES)), None) for name in state.unplugs if not in_domain[name]}
    return msgspec.structs.replace(state, unplugs=state.unplugs | gone)


@given(states())
def test_no_plan_touches_what_a_guest_uses(state: Observed) -> None:
    actions = plan(state)
    assert actions == plan(state)
    slots = [action.slot for action in actions if isinstance(action, SetUpAndAttach)]
    assert len(set(slots)) == len(slots)
    assert set(slots) <= set(state.guest.free_slots)
    by_nic: dict[str, list[type]] = {}
    for action in actions:
        if isinstance(action, RequestUnplug | TearDown | SetUpAndAttach | PublishFailure):
            by_nic.setdefault(action.nic.name, []).append(type(action))
        if isinstance(action, RequestUnplug):
            assert device_alias(action.nic.name) in state.guest.devices
        if isinstance(action, TearDown | SetUpAndAttach):
            assert device_alias(action.nic.name) not in state.guest.devices
        if isinstance(action, ReportStatus):
            for released in action.released:
                assert device_alias(released.name) not in state.guest.devices
                assert state.unplugs[released.name].state is UnplugState.TORN_DOWN
    assert all(len(found) == 1 for found in by_nic.values()), by_nic


@given(states())
def test_a_nic_that_cannot_be_plugged_does_not_change_what_happens_to_the_others(state: Observed) -> None:
    names = link_names(pod_interface("a"))
    left = Link(index=90, name=names.bridged, kind="veth", mac="02:00:00:00:00:90")
    assert state.pod_links is not None
    tap = Link(index=91, name=names.tap, kind="veth")
    broken = msgspec.structs.replace(state.pod_links, links=(*state.pod_links.links, left, tap))

    def others(found: list[Action]) -> list[Any]:
        wanted = RequestUnplug | TearDown | SetUpAndAttach
        mine = [action for action in found if isinstance(action, wanted) and action.nic.name != "a"]
        # A slot that the failing NIC does not take is another one's.
        return [(type(action), action.nic.name) for action in mine]

    free = tuple(f"rp{i}" for i in range(len(NAMES)))
    state = msgspec.structs.replace(state, guest=msgspec.structs.replace(state.guest, free_slots=free))
    assert others(plan(msgspec.structs.replace(state, pod_links=broken))) == others(plan(state))
