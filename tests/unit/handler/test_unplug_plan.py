"""The plan of unplugs, the requests to the guest, the report of released NICs, and plugs that fail for good."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, NetworkStatus, encode_network_status
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.kubernetes.operations import (
    NIC_SLOTS,
    NicSlots,
    Operation,
    PodNic,
    encode_annotation,
    operation_key,
    pod_nic_key,
    read_operation,
    read_pod_nic,
)
from schemas.names import device_alias, pod_interface
from schemas.stages import OperationKind
from services.common.domain.nic import link_names, parse_nics
from services.common.guest.port import GuestView, NetDevice
from services.common.netlink.links import Address, Link
from services.handler.plan.actions import (
    Observed,
    Outcome,
    PublishFailure,
    ReportStatus,
    RequestUnplug,
    SetUpAndAttach,
    TearDown,
    WarnOverdue,
)
from services.handler.plan.nics import attached_nics
from services.handler.plan.plugs import plan_plugs
from services.handler.plan.report import plan_report
from services.handler.plan.unplugs import plan_requeue, plan_unplugs, released_interfaces
from services.handler.pod_network.operations import AddAddress, ChangeLink, DeleteLinks, ObservedLinks
from services.handler.pod_network.records import has_stale_record
from services.handler.pod_network.setup import bridge_mac
from services.handler.unplug import (
    MAX_RETRY_INTERVAL,
    UNPLUG_TIMEOUT,
    Unplug,
    UnplugRequests,
    UnplugState,
    after_guest_activity,
    after_request,
    seconds_until_next,
    timeout_message,
)
from tests.support.observed.handler import observed_state
from tests.support.observed.objects import POD_UID, nic, pod, vmi

SANDBOX, MAC, IP = "sandbox-1", "3e:89:92:5a:b5:a7", "10.0.0.2/24"
NAMES = link_names(pod_interface("iface1"))
UNPLUG = Operation(
    id="op-u", kind=OperationKind.UNPLUG, interface="iface1", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01"
)
LO = Link(index=1, name="lo")
PLAIN = Link(index=2, name=NAMES.pod_interface, kind="veth", mac=MAC, mtu=1500, up=True)
SET_UP = (
    LO,
    Link(
        index=2,
        name=NAMES.bridged,
        kind="veth",
        mac=bridge_mac(POD_UID, NAMES.pod_interface),
        mtu=1500,
        up=True,
        master=3,
    ),
    Link(index=3, name=NAMES.bridge, kind="bridge", up=True),
    Link(index=4, name=NAMES.tap, kind="tun", up=True, master=3, multi_queue=False),
    Link(index=5, name=NAMES.pod_interface, kind="dummy", mac=MAC, mtu=1500),
)


def record(**changes: Any) -> PodNic:
    whole = PodNic(pod_uid=POD_UID, sandbox_id=SANDBOX, interface=NAMES.pod_interface, mac=MAC, mtu=1500, ips=(IP,))
    return msgspec.structs.replace(whole, **changes)


def launcher(*attached: str, recorded: bool = True, **annotations: str) -> Pod:
    entries = [NetworkStatus(name="default/net1", interface=pod_interface(name), mac=MAC) for name in attached]
    annotated = {NETWORK_STATUS: encode_network_status(entries), **annotations}
    if recorded and "iface1" in attached:
        annotated[pod_nic_key("iface1")] = encode_annotation(record())
    return pod(annotated)


def guest(*names: str, free: tuple[str, ...] = ("rp1",)) -> GuestView:
    return GuestView({device_alias(n): NetDevice(device_alias(n), MAC) for n in ("default", *names)}, free)


def unplugging(*others: Any, operation: Operation | None = UNPLUG, **fields: Any) -> VirtualMachineInstance:
    """Return a VMI whose ``iface1`` is absent."""
    annotations = {operation_key("iface1"): encode_annotation(operation)} if operation else {}
    return vmi(nic("iface1", state="absent"), *others, annotations=annotations, **fields)


def observed(machine: VirtualMachineInstance, launcher: Pod, **fields: Any) -> Observed:
    values: dict[str, Any] = {"guest": guest(), "pod_links": ObservedLinks((LO,)), "sandbox_id": SANDBOX, "now": 100.0}
    return observed_state(machine, launcher, **(values | fields))


def one(actions: list[Any]) -> Any:
    assert len(actions) == 1, actions
    return actions[0]


def torn_down(action: Any) -> TearDown:
    assert isinstance(action, TearDown), action
    return action


# -- requests ---------------------------------------------------------------------------------------------------------


def test_nothing_is_torn_down_while_the_domain_has_the_device() -> None:
    state = observed(unplugging(), launcher("iface1"), guest=guest("iface1"), pod_links=ObservedLinks(SET_UP))
    assert isinstance(one(plan_unplugs(state)), RequestUnplug)


@pytest.mark.parametrize(("now", "requested", "wait"), [(10.9, False, 0.1), (11.0, True, 2.0), (14.9, True, 0.1)])
def test_a_request_is_repeated_when_it_is_due(now: float, requested: bool, wait: float) -> None:
    unplugs = {"iface1": Unplug(UnplugState.PENDING, UnplugRequests(1, first_at=10.0, next_at=11.0))}
    state = observed(unplugging(), launcher("iface1"), guest=guest("iface1"), pod_links=None, unplugs=unplugs, now=now)
    assert [type(action) for action in plan_unplugs(state)] == ([RequestUnplug] if requested else [])
    seconds = plan_requeue(state).seconds
    assert seconds is not None
    assert math.isclose(seconds, wait)


def test_a_request_that_is_due_is_made_before_the_overdue_unplug_is_reported() -> None:
    """The report follows at once, with the error of the last request."""
    unplugs = {"iface1": Unplug(UnplugState.PENDING, UnplugRequests(1, first_at=10.0, next_at=11.0))}
    state = observed(unplugging(), launcher("iface1"), guest=guest("iface1"), pod_links=None, unplugs=unplugs, now=50.0)
    assert isinstance(one(plan_unplugs(state)), RequestUnplug)
    assert plan_requeue(state).seconds == 0.0


@pytest.mark.parametrize("refused", [False, True])
def test_an_overdue_unplug_is_reported_once_for_each_request(refused: bool) -> None:
    now = 11.5 if refused else 16.0
    requests = UnplugRequests(2, first_at=10.0, next_at=18.0, refused=refused, last_error="busy")
    unplugs = {"iface1": Unplug(UnplugState.PENDING, requests)}
    parts: dict[str, Any] = {"guest": guest("iface1"), "pod_links": None, "now": now}
    state = observed(unplugging(), launcher("iface1"), unplugs=unplugs, **parts)
    warning = one(plan_unplugs(state))
    assert isinstance(warning, WarnOverdue)
    assert (warning.nic.name, warning.count, warning.retry_after) == ("iface1", 2, 18.0 - now)
    assert warning.message == timeout_message("iface1", requests, now)
    assert plan_requeue(state).seconds == 18.0 - now
    reported = {"iface1": Unplug(UnplugState.OVERDUE, msgspec.structs.replace(requests, warned_count=2))}
    assert plan_unplugs(observed(unplugging(), launcher("iface1"), unplugs=reported, **parts)) == []


def test_without_a_pending_unplug_nothing_is_requeued() -> None:
    assert plan_requeue(observed(unplugging(), launcher("iface1"))).seconds is None


def test_an_unplug_is_requested_for_a_released_nic_that_the_domain_has() -> None:
    machine = unplugging(operation=msgspec.structs.replace(UNPLUG, released=POD_UID))
    assert isinstance(one(plan_unplugs(observed(machine, launcher(), guest=guest("iface1")))), RequestUnplug)


@given(times=st.integers(1, 12))
def test_requests_are_repeated_at_growing_intervals_without_limit(times: int) -> None:
    requests, now, before = None, 0.0, 0.0
    for _ in range(times):
        requests = after_request(requests, now)
        assert before <= requests.next_at - now <= MAX_RETRY_INTERVAL
        before, now = requests.next_at - now, requests.next_at
    assert requests is not None
    assert (requests.count, requests.first_at) == (times, 0.0)


@pytest.mark.parametrize(
    ("requests", "next_at"),
    [
        pytest.param(UnplugRequests(5, first_at=0.0, next_at=130.0), 100.0, id="at once without a pending request"),
        pytest.param(
            UnplugRequests(5, first_at=0.0, next_at=130.0, accepted_at=98.0), 103.0, id="when QEMU accepts it again"
        ),
        pytest.param(
            UnplugRequests(5, first_at=0.0, next_at=130.0, accepted_at=10.0),
            100.0,
            id="at once when the last request is old",
        ),
        pytest.param(
            UnplugRequests(5, first_at=0.0, next_at=101.0, accepted_at=98.0), 101.0, id="not later than before"
        ),
        pytest.param(
            UnplugRequests(1, first_at=99.5, next_at=100.5), 100.5, id="unchanged right after the first request"
        ),
    ],
)
def test_guest_activity_advances_the_next_request(requests: UnplugRequests, next_at: float) -> None:
    assert after_guest_activity(requests, 100.0) == msgspec.structs.replace(requests, next_at=next_at)


def test_an_unplug_is_overdue_after_the_timeout_or_a_refusal() -> None:
    requests = after_request(None, 0.0)
    assert not requests.overdue(UNPLUG_TIMEOUT - 0.1)
    assert requests.overdue(UNPLUG_TIMEOUT)
    assert msgspec.structs.replace(requests, refused=True).overdue(0.1)
    assert after_request(msgspec.structs.replace(requests, refused=True), 2.0).refused
    text = timeout_message("iface1", msgspec.structs.replace(requests, last_error="guest is busy"), 7.0)
    assert text.startswith("the guest has not released iface1 7 s after the first request; number of requests: 1;")
    assert text.endswith("(last error: guest is busy)")
    assert "refuses to release iface1" in timeout_message(
        "iface1", msgspec.structs.replace(requests, refused=True), 1.0
    )


def test_the_next_run_is_at_the_next_request_or_the_deadline() -> None:
    requests = UnplugRequests(3, first_at=0.0, next_at=7.0)
    assert seconds_until_next(requests, 3.0) == UNPLUG_TIMEOUT - 3.0
    assert seconds_until_next(requests, 5.0) == 0.0, "the report is due"
    requests = msgspec.structs.replace(requests, warned_count=3)
    assert seconds_until_next(requests, 5.0) == 2.0
    assert seconds_until_next(requests, 9.0) == 0.0


# -- teardown ------------------------------------------------------------------------------------------------------


def test_the_pod_network_of_a_device_that_is_gone_is_torn_down() -> None:
    action = torn_down(one(plan_unplugs(observed(unplugging(), launcher("iface1"), pod_links=ObservedLinks(SET_UP)))))
    assert action.record is None
    (gone,) = [operation.names for operation in action.operations if isinstance(operation, DeleteLinks)]
    assert gone == (NAMES.tap, NAMES.bridge, NAMES.pod_interface)


@pytest.mark.parametrize(
    ("pod_", "pod_links"),
    [
        (launcher(), ObservedLinks((LO,))),
        (launcher("iface1"), ObservedLinks((LO, PLAIN), (Address(2, IP),))),
        (launcher("iface1", recorded=False), ObservedLinks((LO, PLAIN))),
        (pod(), ObservedLinks((LO,))),
    ],
    ids=[
        "never annotated",
        "attached without a pod network",
        "attached by another controller",
        "a pod without annotations",
    ],
)
def test_a_nic_without_a_pod_network_is_released_without_operations(pod_: Pod, pod_links: ObservedLinks) -> None:
    action = torn_down(one(plan_unplugs(observed(unplugging(), pod_, pod_links=pod_links))))
    assert (action.record, action.operations) == (None, [])


def test_nothing_is_released_without_observed_links() -> None:
    assert plan_unplugs(observed(unplugging(), launcher("iface1"), pod_links=None)) == []


def test_a_torn_down_nic_is_released_and_not_torn_down_again() -> None:
    unplugs = {"iface1": Unplug(UnplugState.TORN_DOWN, None)}
    state = observed(unplugging(), launcher("iface1"), unplugs=unplugs, pod_links=None)
    assert plan_unplugs(state) == []
    assert released_interfaces(state) == {"iface1"}


def test_nothing_is_released_before_the_teardown() -> None:
    for view, pod_links in ((guest("iface1"), SET_UP), (guest(), SET_UP), (guest(), (LO,))):
        state = observed(unplugging(), launcher("iface1"), guest=view, pod_links=ObservedLinks(pod_links))
        assert released_interfaces(state) == frozenset()


@pytest.mark.parametrize("uid", [POD_UID, "another"])
def test_only_a_release_by_this_pod_counts(uid: str) -> None:
    machine = unplugging(operation=msgspec.structs.replace(UNPLUG, released=uid))
    assert bool(plan_unplugs(observed(machine, launcher()))) is (uid != POD_UID)


def test_a_lost_record_is_made_from_the_dummy_and_written_first() -> None:
    pod_links = ObservedLinks(SET_UP, (Address(5, IP),))
    action = torn_down(
        one(plan_unplugs(observed(unplugging(), launcher("iface1", recorded=False), pod_links=pod_links)))
    )
    assert action.record is not None
    written = read_pod_nic({pod_nic_key("iface1"): action.record[-1]["value"]}, pod_nic_key("iface1"))
    assert written is not None
    assert (written.mac, written.ips) == (MAC, (IP,))


def test_a_nic_whose_record_is_too_large_is_torn_down_without_writing_it() -> None:
    """The unplug is not delayed: the pod interface is restored from the record in memory."""
    addresses = tuple(Address(5, f"10.0.{i // 250}.{i % 250}/16") for i in range(600))
    pod_links = ObservedLinks(SET_UP, addresses)
    action = torn_down(
        one(plan_unplugs(observed(unplugging(), launcher("iface1", recorded=False), pod_links=pod_links)))
    )
    assert action.record is None
    assert [operation.cidr for operation in action.operations if isinstance(operation, AddAddress)] == [
        a.cidr for a in addresses
    ]


def test_without_a_record_the_pod_interface_gets_its_name_and_mac_back() -> None:
    """The record belongs to another sandbox, and the dummy is gone."""
    entry = NetworkStatus(name="default/net1", interface=NAMES.pod_interface, mac=MAC, ips=["10.0.0.2"])
    annotated = {
        NETWORK_STATUS: encode_network_status([entry]),
        pod_nic_key("iface1"): encode_annotation(record(sandbox_id="earlier", mac="02:00:00:00:00:01")),
    }
    action = torn_down(one(plan_unplugs(observed(unplugging(), pod(annotated), pod_links=ObservedLinks(SET_UP[:4])))))
    assert action.record is None
    assert action.operations[-1] == ChangeLink(2, NAMES.pod_interface, True, MAC)


def test_a_foreign_link_is_a_conflict_that_is_retried() -> None:
    pod_links = ObservedLinks((*SET_UP[:3], Link(index=4, name=NAMES.tap, kind="veth")))
    action = one(plan_unplugs(observed(unplugging(), launcher("iface1"), pod_links=pod_links)))
    assert isinstance(action, PublishFailure)
    assert (action.reason, action.final) == ("PodNetworkConflict", False)


def test_each_absent_nic_is_planned_on_its_own() -> None:
    machine = vmi(nic("a", state="absent"), nic("b"), nic("c", state="absent"))
    actions = plan_unplugs(observed(machine, launcher("a", "b", "c"), guest=guest("a", "b")))
    assert [(type(action), action.nic.name) for action in actions] == [(RequestUnplug, "a"), (TearDown, "c")]


def test_ordinal_names_and_other_bindings_are_refused_with_a_reason() -> None:
    ordinal = pod({NETWORKS: '[{"name": "net1", "interface": "net1"}]'})
    action = one(plan_unplugs(observed(unplugging(), ordinal, guest=guest("iface1"))))
    assert (action.reason, action.final) == ("OrdinalPodInterface", True)
    interface = {"name": "iface1", "sriov": {}, "state": "absent"}
    machine = vmi((interface, {"name": "iface1", "multus": {"networkName": "net1"}}))
    assert one(plan_unplugs(observed(machine, launcher()))).reason == "UnsupportedBinding"


def test_the_primary_interface_is_not_unplugged() -> None:
    document = msgspec.to_builtins(vmi())
    document["spec"]["domain"]["devices"]["interfaces"][0]["state"] = "absent"
    assert plan_unplugs(observed(msgspec.convert(document, VirtualMachineInstance), launcher())) == []


# -- the report ----------------------------------------------------------------------------------------------

STATUS: list[dict[str, Any]] = [
    {"name": "default", "infoSource": "domain", "mac": MAC, "queueCount": 1, "linkState": "up"},
    {"name": "iface1", "infoSource": "domain, guest-agent, multus-status", "mac": MAC, "interfaceName": "eth1"},
]
SLOTS = {NIC_SLOTS: encode_annotation(NicSlots(free=1, nics=1, pod_uid=POD_UID))}


def reported(state: Observed, released: tuple[str, ...] = (), failed: dict[str, str] | None = None) -> ReportStatus:
    found = plan_report(state, Outcome(frozenset(released), failed or {}))
    assert found is not None
    return found


def written(found: ReportStatus, interface: str = "iface1") -> Operation | None:
    values = [op["value"] for op in found.ops if op["op"] == "add" and "operation" in op["path"]]
    values += [op["value"].get(operation_key(interface)) for op in found.ops if op["path"] == "/metadata/annotations"]
    return read_operation({operation_key(interface): values[0]}, interface) if values else None


def test_released_and_tokens_and_slots_are_one_patch() -> None:
    found = reported(observed(unplugging(status=STATUS), launcher("iface1")), ("iface1",))
    operation = written(found)
    assert operation is not None
    assert (operation.id, operation.released) == ("op-u", POD_UID)
    assert operation.traceparent == UNPLUG.traceparent
    (status,) = [op["value"] for op in found.ops if op["op"] == "add" and op["path"] == "/status/interfaces"]
    assert status[1] == {"name": "iface1", "infoSource": "multus-status", "mac": MAC}
    assert any(op["op"] == "test" and op["value"] == encode_annotation(UNPLUG) for op in found.ops)
    assert [gone.operation.released for gone in found.released] == [POD_UID]


def test_a_derived_operation_is_written_with_its_outcome() -> None:
    for annotations in ({}, SLOTS):
        machine = vmi(nic("iface1", state="absent"), annotations=annotations)
        found = reported(observed(machine, launcher()), ("iface1",))
        operation = written(found)
        assert operation is not None
        assert (operation.kind, operation.released) == (OperationKind.UNPLUG, POD_UID)
        assert {"op": "test", "path": "/metadata/resourceVersion", "value": "100"} in found.ops


def test_a_released_nic_is_not_reported_again() -> None:
    done = msgspec.structs.replace(UNPLUG, released=POD_UID)
    machine = vmi(
        nic("iface1", state="absent"),
        annotations={**SLOTS, operation_key("iface1"): encode_annotation(done)},
        status=STATUS[:1],
    )
    assert plan_report(observed(machine, launcher()), Outcome(frozenset({"iface1"}), {})) is None


def test_an_interface_that_is_plugged_again_meanwhile_is_not_reported_as_released() -> None:
    plugging = Operation(id="op-p", kind=OperationKind.PLUG, interface="iface1")
    machine = vmi(nic("iface1"), annotations={operation_key("iface1"): encode_annotation(plugging)})
    found = reported(observed(machine, launcher()), ("iface1",))
    assert (written(found), found.released) == (None, [])


# -- slots, and plugs that fail for good -----------------------------------------------------------------------------


def ten() -> Observed:
    names = [f"n{i}" for i in range(10)]
    links = [LO, *(Link(index=i, name=pod_interface(n), kind="veth", mac=MAC) for i, n in enumerate(names, 2))]
    free = tuple(f"rp{i}" for i in range(1, 9))
    return observed(
        vmi(*map(nic, names)), launcher(*names), pod_links=ObservedLinks(tuple(links)), guest=guest(free=free)
    )


def test_of_ten_nics_for_eight_slots_eight_are_plugged_and_two_refused() -> None:
    state = ten()
    actions = plan_plugs(state)
    assert [action.slot for action in actions if isinstance(action, SetUpAndAttach)] == list(state.guest.free_slots)
    refused = [action for action in actions if isinstance(action, PublishFailure)]
    assert [(action.nic.name, action.reason, action.final) for action in refused] == [
        ("n8", "NoFreeSlot", True),
        ("n9", "NoFreeSlot", True),
    ]


def test_a_plug_waits_for_the_slot_of_a_pending_unplug() -> None:
    """With one pending unplug and two plugs, the first plug waits for the slot and the second is refused."""
    machine = unplugging(nic("b"), nic("c"))
    links = (LO, *(Link(index=i, name=pod_interface(n), kind="veth", mac=MAC) for i, n in enumerate("bc", 2)))
    state = observed(
        machine, launcher("iface1", "b", "c"), pod_links=ObservedLinks(links), guest=guest("iface1", free=())
    )
    assert [(a.nic.name, a.reason, a.final) for a in plan_plugs(state) if isinstance(a, PublishFailure)] == [
        ("b", "WaitingForSlot", False),
        ("c", "NoFreeSlot", True),
    ]


def test_a_plug_that_failed_for_good_is_reported_and_not_tried_again() -> None:
    plugging = Operation(id="op-p", kind=OperationKind.PLUG, interface="iface1")
    machine = vmi(nic("iface1"), annotations={operation_key("iface1"): encode_annotation(plugging)})
    state = observed(machine, launcher("iface1"), pod_links=ObservedLinks((LO, PLAIN)), guest=guest(free=()))
    found = reported(state, failed={"iface1": "NoFreeSlot"})
    operation = written(found)
    assert operation is not None
    assert (operation.id, operation.failed, operation.kind) == ("op-p", "NoFreeSlot", OperationKind.PLUG)
    after = vmi(nic("iface1"), annotations={operation_key("iface1"): encode_annotation(operation)})
    nics = parse_nics(after, launcher("iface1"))
    assert attached_nics(nics) == []
    assert plan_plugs(msgspec.structs.replace(state, nics=nics)) == []


def test_a_failed_plug_that_is_unplugged_meanwhile_is_not_marked() -> None:
    outcome = Outcome(frozenset(), {"iface1": "NoFreeSlot"})
    found = plan_report(observed(unplugging(), launcher("iface1")), outcome)
    assert found is None or written(found) is None


# -- plugging again under the same name ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "old"),
    [
        ((LO, PLAIN), False),
        ((LO, msgspec.structs.replace(PLAIN, mac="02:00:00:00:00:99")), True),
        ((LO, msgspec.structs.replace(PLAIN, mac=bridge_mac(POD_UID, NAMES.pod_interface))), False),
        (SET_UP, False),
        ((LO,), False),
    ],
    ids=["its own", "a newer link", "partly set up", "set up", "no link"],
)
def test_a_record_of_an_earlier_attachment_is_detected(links: tuple[Link, ...], old: bool) -> None:
    attached = launcher("iface1")
    nics = attached_nics(parse_nics(vmi(nic("iface1")), attached))
    assert has_stale_record(attached, nics, ObservedLinks(links), SANDBOX) is old
    assert not has_stale_record(attached, nics, ObservedLinks(links), "another sandbox")
