"""How an absent NIC leaves (asked, waited for, released), what the VMI says of it, and what ends a plug for good."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kube import Pod, VirtualMachineInstance
from schemas.names import device_alias, pod_interface
from schemas.networks import NETWORK_STATUS, NETWORKS, NetworkStatus, encode_network_status
from schemas.operations import (
    NIC_SLOTS,
    NicSlots,
    Operation,
    PodNic,
    encode,
    operation_key,
    operation_of,
    pod_nic_key,
    pod_nic_of,
)
from schemas.stages import OperationKind
from services.common.netlink.links import Address, Link
from services.handler.guest.port import Card, GuestView
from services.handler.netlink_operations import AddAddress, ChangeLink, DeleteLinks, Seen
from services.handler.nics import attached_nics
from services.handler.pending_unplug import MAX_AGAIN, PATIENCE, Asked, asked_again, next_look, stirred, told
from services.handler.plan import Observed, Plug, Refuse, plug
from services.handler.pod_network import bridge_mac, link_names
from services.handler.records import stale
from services.handler.report import Report, report
from services.handler.unplug import LetGo, Release, Wait, unplug
from tests.support.objects import POD_UID, nic, pod, vmi

SANDBOX, MAC, IP = "sandbox-1", "3e:89:92:5a:b5:a7", "10.0.0.2/24"
NAMES = link_names(pod_interface("iface1"))
UNPLUG = Operation(
    id="op-u", kind=OperationKind.UNPLUG, interface="iface1", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01"
)
LO = Link(index=1, name="lo")
PLAIN = Link(index=2, name=NAMES.nic, kind="veth", mac=MAC, mtu=1500, up=True)
WIRED = (
    LO,
    Link(index=2, name=NAMES.bridged, kind="veth", mac=bridge_mac(POD_UID, NAMES.nic), mtu=1500, up=True, master=3),
    Link(index=3, name=NAMES.bridge, kind="bridge", up=True),
    Link(index=4, name=NAMES.tap, kind="tun", up=True, master=3, multi_queue=False),
    Link(index=5, name=NAMES.nic, kind="dummy", mac=MAC, mtu=1500),
)


def record(**changes: Any) -> PodNic:
    whole = PodNic(pod_uid=POD_UID, sandbox_id=SANDBOX, interface=NAMES.nic, mac=MAC, mtu=1500, ips=(IP,))
    return msgspec.structs.replace(whole, **changes)


def launcher(*attached: str, recorded: bool = True, **annotations: str) -> Pod:
    entries = [NetworkStatus(name="default/net1", interface=pod_interface(name), mac=MAC) for name in attached]
    held = {NETWORK_STATUS: encode_network_status(entries), **annotations}
    if recorded and "iface1" in attached:
        held[pod_nic_key("iface1")] = encode(record())
    return pod(held)


def guest(*names: str, free: tuple[str, ...] = ("rp1",)) -> GuestView:
    return GuestView({device_alias(n): Card(device_alias(n), MAC) for n in ("default", *names)}, free)


def leaving(*others: Any, operation: Operation | None = UNPLUG, **fields: Any) -> VirtualMachineInstance:
    """A VMI whose ``iface1`` is absent."""
    annotations = {operation_key("iface1"): encode(operation)} if operation else {}
    return vmi(nic("iface1", state="absent"), *others, annotations=annotations, **fields)


def observed(machine: VirtualMachineInstance, launcher: Pod, **fields: Any) -> Observed:
    values: dict[str, Any] = {"guest": guest(), "seen": Seen((LO,)), "sandbox_id": SANDBOX, "now": 100.0}
    return Observed(machine, launcher, **(values | fields))


def one(actions: list[Any]) -> Any:
    assert len(actions) == 1, actions
    return actions[0]


def released(action: Any) -> Release:
    assert isinstance(action, Release), action
    return action


# -- asking ---------------------------------------------------------------------------------------------------------


def test_while_the_domain_has_the_card_nothing_is_undone() -> None:
    seen = observed(leaving(), launcher("iface1"), guest=guest("iface1"), seen=Seen(WIRED))
    assert isinstance(one(unplug(seen)), LetGo)


@pytest.mark.parametrize(("now", "action"), [(10.9, Wait), (11.0, LetGo), (50.0, LetGo)])
def test_a_guest_that_was_asked_is_asked_again_when_it_is_due(now: float, action: type) -> None:
    asked = {"iface1": Asked(1, since=10.0, due=11.0)}
    seen = observed(leaving(), launcher("iface1"), guest=guest("iface1"), seen=None, asked=asked, now=now)
    assert isinstance(one(unplug(seen)), action)


def test_a_card_that_is_there_although_it_was_released_is_asked_for() -> None:
    machine = leaving(operation=msgspec.structs.replace(UNPLUG, released=POD_UID))
    assert isinstance(one(unplug(observed(machine, launcher(), guest=guest("iface1")))), LetGo)


@given(times=st.integers(1, 12))
def test_the_guest_is_asked_at_growing_intervals_for_ever(times: int) -> None:
    asked, now, before = None, 0.0, 0.0
    for _ in range(times):
        asked = asked_again(asked, now)
        assert before <= asked.due - now <= MAX_AGAIN
        before, now = asked.due - now, asked.due
    assert asked is not None
    assert (asked.times, asked.since) == (times, 0.0)


@pytest.mark.parametrize(
    ("asked", "due"),
    [
        pytest.param(Asked(5, since=0.0, due=130.0), 100.0, id="at once, when no request is pending"),
        pytest.param(Asked(5, since=0.0, due=130.0, taken=98.0), 103.0, id="when QEMU takes it again"),
        pytest.param(Asked(5, since=0.0, due=130.0, taken=10.0), 100.0, id="at once, when the last one is old"),
        pytest.param(Asked(5, since=0.0, due=101.0, taken=98.0), 101.0, id="not later than it would be"),
        pytest.param(Asked(1, since=99.5, due=100.5), 100.5, id="not while it is about to let go"),
    ],
)
def test_a_guest_that_shows_that_it_is_up_is_asked_again(asked: Asked, due: float) -> None:
    assert stirred(asked, 100.0) == msgspec.structs.replace(asked, due=due)


def test_people_hear_of_a_guest_that_is_late_or_refuses() -> None:
    asked = asked_again(None, 0.0)
    assert not asked.late(PATIENCE - 0.1)
    assert asked.late(PATIENCE)
    assert msgspec.structs.replace(asked, refused=True).late(0.1)
    assert asked_again(msgspec.structs.replace(asked, refused=True), 2.0).refused
    text = told("iface1", msgspec.structs.replace(asked, why="guest is busy"), 7.0)
    assert text.startswith("the guest has not let go for 7 s of iface1; it was asked 1 times")
    assert text.endswith("(guest is busy)")
    assert "refuses to let go of iface1" in told("iface1", msgspec.structs.replace(asked, refused=True), 1.0)


def test_the_next_look_is_when_to_ask_again_or_to_tell() -> None:
    asked = Asked(3, since=0.0, due=7.0)
    assert next_look(asked, 3.0) == PATIENCE - 3.0
    assert next_look(asked, 5.0) == 2.0
    assert next_look(asked, 9.0) == 0.0


# -- releasing ------------------------------------------------------------------------------------------------------


def test_a_card_that_is_gone_is_released_step_by_step() -> None:
    action = released(one(unplug(observed(leaving(), launcher("iface1"), seen=Seen(WIRED)))))
    assert action.record is None
    (gone,) = [step.names for step in action.steps if isinstance(step, DeleteLinks)]
    assert gone == (NAMES.tap, NAMES.bridge, NAMES.nic)


@pytest.mark.parametrize(
    ("pod_", "seen"),
    [
        (launcher(), Seen((LO,))),
        (launcher("iface1"), Seen((LO, PLAIN), (Address(2, IP),))),
        (launcher("iface1", recorded=False), Seen((LO, PLAIN))),
        (pod(), Seen((LO,))),
    ],
    ids=["never annotated", "attached, never wired", "attached by another", "a pod without annotations"],
)
def test_a_nic_that_was_never_wired_is_released_after_a_look(pod_: Pod, seen: Seen) -> None:
    action = released(one(unplug(observed(leaving(), pod_, seen=seen))))
    assert (action.record, action.steps) == (None, [])


def test_nothing_is_released_before_somebody_looked() -> None:
    assert unplug(observed(leaving(), launcher("iface1"), seen=None)) == []


@pytest.mark.parametrize("uid", [POD_UID, "another"])
def test_released_means_this_pod(uid: str) -> None:
    machine = leaving(operation=msgspec.structs.replace(UNPLUG, released=uid))
    assert bool(unplug(observed(machine, launcher()))) is (uid != POD_UID)


def test_a_record_that_is_lost_is_made_from_the_stand_in_and_written_first() -> None:
    seen = Seen(WIRED, (Address(5, IP),))
    action = released(one(unplug(observed(leaving(), launcher("iface1", recorded=False), seen=seen))))
    assert action.record is not None
    written = pod_nic_of({pod_nic_key("iface1"): action.record[-1]["value"]}, pod_nic_key("iface1"))
    assert written is not None
    assert (written.mac, written.ips) == (MAC, (IP,))


def test_a_nic_of_which_too_much_is_to_be_noted_is_released_without_a_note() -> None:
    """An unplug never waits for it: what the look has seen is put back from memory."""
    addresses = tuple(Address(5, f"10.0.{i // 250}.{i % 250}/16") for i in range(600))
    seen = Seen(WIRED, addresses)
    action = released(one(unplug(observed(leaving(), launcher("iface1", recorded=False), seen=seen))))
    assert action.record is None
    assert [step.cidr for step in action.steps if isinstance(step, AddAddress)] == [a.cidr for a in addresses]


def test_where_nothing_tells_what_the_nic_was_it_gets_its_name_and_mac_back() -> None:
    """The record is another sandbox's, and the stand-in that could tell is gone."""
    entry = NetworkStatus(name="default/net1", interface=NAMES.nic, mac=MAC, ips=["10.0.0.2"])
    held = {
        NETWORK_STATUS: encode_network_status([entry]),
        pod_nic_key("iface1"): encode(record(sandbox_id="earlier", mac="02:00:00:00:00:01")),
    }
    action = released(one(unplug(observed(leaving(), pod(held), seen=Seen(WIRED[:4])))))
    assert action.record is None
    assert action.steps[-1] == ChangeLink(2, NAMES.nic, True, MAC)


def test_a_stranger_in_the_way_is_told_and_waited_for() -> None:
    seen = Seen((*WIRED[:3], Link(index=4, name=NAMES.tap, kind="veth")))
    action = one(unplug(observed(leaving(), launcher("iface1"), seen=seen)))
    assert isinstance(action, Refuse)
    assert (action.reason, action.final) == ("PodNetworkConflict", False)


def test_each_absent_nic_is_decided_on_its_own() -> None:
    machine = vmi(nic("a", state="absent"), nic("b"), nic("c", state="absent"))
    actions = unplug(observed(machine, launcher("a", "b", "c"), guest=guest("a", "b")))
    assert [(type(action), action.nic.name) for action in actions] == [(LetGo, "a"), (Release, "c")]


def test_numbered_and_foreign_bindings_are_refused_with_a_reason() -> None:
    numbered = pod({NETWORKS: '[{"name": "net1", "interface": "net1"}]'})
    action = one(unplug(observed(leaving(), numbered, guest=guest("iface1"))))
    assert (action.reason, action.final) == ("OrdinalPodInterface", True)
    interface = {"name": "iface1", "sriov": {}, "state": "absent"}
    machine = vmi((interface, {"name": "iface1", "multus": {"networkName": "net1"}}))
    assert one(unplug(observed(machine, launcher()))).reason == "UnsupportedBinding"


def test_the_primary_interface_is_none_of_the_handlers_business() -> None:
    document = msgspec.to_builtins(vmi())
    document["spec"]["domain"]["devices"]["interfaces"][0]["state"] = "absent"
    assert unplug(observed(msgspec.convert(document, VirtualMachineInstance), launcher())) == []


# -- what the VMI says ----------------------------------------------------------------------------------------------

SAID: list[dict[str, Any]] = [
    {"name": "default", "infoSource": "domain", "mac": MAC, "queueCount": 1, "linkState": "up"},
    {"name": "iface1", "infoSource": "domain, guest-agent, multus-status", "mac": MAC, "interfaceName": "eth1"},
]
SLOTS = {NIC_SLOTS: encode(NicSlots(free=1, nics=1, pod_uid=POD_UID))}


def reported(seen: Observed, released: tuple[str, ...] = (), failed: dict[str, str] | None = None) -> Report:
    found = report(seen, released, failed)
    assert found is not None
    return found


def written(found: Report, interface: str = "iface1") -> Operation | None:
    values = [op["value"] for op in found.ops if op["op"] == "add" and "operation" in op["path"]]
    values += [op["value"].get(operation_key(interface)) for op in found.ops if op["path"] == "/metadata/annotations"]
    return operation_of({operation_key(interface): values[0]}, interface) if values else None


def test_released_tokens_and_slots_are_one_patch() -> None:
    found = reported(observed(leaving(status=SAID), launcher("iface1")), ("iface1",))
    operation = written(found)
    assert operation is not None
    assert (operation.id, operation.released) == ("op-u", POD_UID)
    assert operation.traceparent == UNPLUG.traceparent
    (status,) = [op["value"] for op in found.ops if op["op"] == "add" and op["path"] == "/status/interfaces"]
    assert status[1] == {"name": "iface1", "infoSource": "multus-status", "mac": MAC}
    assert any(op["op"] == "test" and op["value"] == encode(UNPLUG) for op in found.ops)
    assert [gone.operation.released for gone in found.released] == [POD_UID]


def test_an_operation_nobody_wrote_down_is_written_with_what_was_done() -> None:
    for annotations in ({}, SLOTS):
        machine = vmi(nic("iface1", state="absent"), annotations=annotations)
        found = reported(observed(machine, launcher()), ("iface1",))
        operation = written(found)
        assert operation is not None
        assert (operation.kind, operation.released) == (OperationKind.UNPLUG, POD_UID)
        assert {"op": "test", "path": "/metadata/resourceVersion", "value": "100"} in found.ops


def test_what_is_released_already_is_not_said_again() -> None:
    done = msgspec.structs.replace(UNPLUG, released=POD_UID)
    machine = vmi(
        nic("iface1", state="absent"), annotations={**SLOTS, operation_key("iface1"): encode(done)}, status=SAID[:1]
    )
    assert report(observed(machine, launcher()), ("iface1",)) is None


def test_an_interface_that_is_wished_for_again_meanwhile_is_not_called_released() -> None:
    plugging = Operation(id="op-p", kind=OperationKind.PLUG, interface="iface1")
    machine = vmi(nic("iface1"), annotations={operation_key("iface1"): encode(plugging)})
    found = reported(observed(machine, launcher()), ("iface1",))
    assert (written(found), found.released) == (None, [])


# -- slots, and plugs that end for good -----------------------------------------------------------------------------


def ten() -> Observed:
    names = [f"n{i}" for i in range(10)]
    links = [LO, *(Link(index=i, name=pod_interface(n), kind="veth", mac=MAC) for i, n in enumerate(names, 2))]
    free = tuple(f"rp{i}" for i in range(1, 9))
    return observed(vmi(*map(nic, names)), launcher(*names), seen=Seen(tuple(links)), guest=guest(free=free))


def test_ten_nics_on_eight_slots_are_eight_in_and_two_refused() -> None:
    seen = ten()
    actions = plug(seen)
    assert [action.slot for action in actions if isinstance(action, Plug)] == list(seen.guest.free_slots)
    refused = [action for action in actions if isinstance(action, Refuse)]
    assert [(action.nic.name, action.reason, action.final) for action in refused] == [
        ("n8", "NoFreeSlot", True),
        ("n9", "NoFreeSlot", True),
    ]


def test_a_slot_that_a_card_is_leaving_is_waited_for() -> None:
    """Unplug one, plug two where no slot is free: the first gets the slot that will be, the second is told at once."""
    machine = leaving(nic("b"), nic("c"))
    links = (LO, *(Link(index=i, name=pod_interface(n), kind="veth", mac=MAC) for i, n in enumerate("bc", 2)))
    seen = observed(machine, launcher("iface1", "b", "c"), seen=Seen(links), guest=guest("iface1", free=()))
    assert [(a.nic.name, a.reason, a.final) for a in plug(seen) if isinstance(a, Refuse)] == [
        ("b", "WaitingForSlot", False),
        ("c", "NoFreeSlot", True),
    ]


def test_a_plug_that_ended_for_good_is_written_down_and_not_tried_again() -> None:
    plugging = Operation(id="op-p", kind=OperationKind.PLUG, interface="iface1")
    machine = vmi(nic("iface1"), annotations={operation_key("iface1"): encode(plugging)})
    seen = observed(machine, launcher("iface1"), seen=Seen((LO, PLAIN)), guest=guest(free=()))
    found = reported(seen, failed={"iface1": "NoFreeSlot"})
    operation = written(found)
    assert operation is not None
    assert (operation.id, operation.failed, operation.kind) == ("op-p", "NoFreeSlot", OperationKind.PLUG)
    after = vmi(nic("iface1"), annotations={operation_key("iface1"): encode(operation)})
    assert attached_nics(after, launcher("iface1")) == []
    assert plug(msgspec.structs.replace(seen, vmi=after)) == []


def test_an_ended_plug_that_was_unplugged_meanwhile_is_not_marked() -> None:
    found = report(observed(leaving(), launcher("iface1")), failed={"iface1": "NoFreeSlot"})
    assert found is None or written(found) is None


# -- plugging again under the same name ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "old"),
    [
        ((LO, PLAIN), False),
        ((LO, msgspec.structs.replace(PLAIN, mac="02:00:00:00:00:99")), True),
        ((LO, msgspec.structs.replace(PLAIN, mac=bridge_mac(POD_UID, NAMES.nic))), False),
        (WIRED, False),
        ((LO,), False),
    ],
    ids=["its own", "a newer link", "half wired", "wired", "no link"],
)
def test_a_record_of_an_earlier_attachment_is_noticed(links: tuple[Link, ...], old: bool) -> None:
    attached = launcher("iface1")
    nics = attached_nics(vmi(nic("iface1")), attached)
    assert stale(attached, nics, Seen(links), SANDBOX) is old
    assert not stale(attached, nics, Seen(links), "another sandbox")
