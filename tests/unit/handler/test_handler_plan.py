"""What the handler decides: which NICs are plugged, which refused, and what the VMI says afterwards."""

from typing import Any

import msgspec
import pytest

from schemas.events import ConfirmedBy
from schemas.kube import Pod, VirtualMachineInstance
from schemas.names import device_alias, pod_interface
from schemas.networks import NETWORK_STATUS, NETWORKS, NetworkStatus, encode_network_status
from schemas.operations import (
    MAX_POD_NIC_BYTES,
    NIC_SLOTS,
    NicSlots,
    Operation,
    PodNic,
    RecordedRoute,
    encode,
    operation_key,
    pod_nic_key,
    pod_nic_of,
)
from schemas.stages import OperationKind
from services.common.netlink.links import Address, Link
from services.common.netlink.links import Route as SeenRoute
from services.common.reconcile import Reject
from services.handler.guest.agent import GuestNic
from services.handler.guest.port import Card, GuestView
from services.handler.netlink_operations import AddLink, Seen
from services.handler.nics import acts_here, attached_nics
from services.handler.plan import TERMINAL, Observed, Plug, Refuse, plug
from services.handler.pod_network import bridge_mac, link_names
from services.handler.report import report
from tests.support.objects import NODE, POD_UID, nic, pod, vmi

SANDBOX = "sandbox-1"
MAC = "3e:89:92:5a:b5:a7"
IP = "10.0.0.2/24"


def status(*names: str, **fields: Any) -> NetworkStatus | str:
    return encode_network_status(
        [NetworkStatus(name="default/net1", interface=pod_interface(name), mac=MAC, **fields) for name in names]
    )


def record(name: str = "iface1", **changes: Any) -> str:
    values: dict[str, Any] = {
        "pod_uid": POD_UID,
        "sandbox_id": SANDBOX,
        "interface": pod_interface(name),
        "mac": MAC,
        "mtu": 1500,
        "ips": (IP,),
    }
    return encode(PodNic(**(values | changes)))


def attached_pod(*names: str, records: bool = True, **extra: str) -> Pod:
    annotations = {NETWORK_STATUS: str(status(*names)), **extra}
    if records:
        annotations |= {pod_nic_key(name): record(name) for name in names}
    return pod(annotations)


def links(*names: str, kind: str | None = "veth", **fields: Any) -> Seen:
    found = [
        Link(index=i, name=pod_interface(name), kind=kind, mac=MAC, mtu=1500, up=True, **fields)
        for i, name in enumerate(names, start=2)
    ]
    return Seen((Link(index=1, name="lo"), *found), tuple(Address(link.index, IP) for link in found))


def guest(*interfaces: str, free: tuple[str, ...] = ("rp1", "rp2"), cpus: int = 1) -> GuestView:
    cards = {
        device_alias(name): Card(device_alias(name), f"02:00:00:00:00:{i:02x}", up=True)
        for i, name in enumerate(interfaces)
    }
    return GuestView(cards, free, cpus)


def observed(machine: VirtualMachineInstance, launcher: Pod, **fields: Any) -> Observed:
    values: dict[str, Any] = {
        "guest": guest("default"),
        "seen": links("iface1"),
        "sandbox_id": SANDBOX,
        "tap_owner": 107,
    }
    return Observed(machine, launcher, **(values | fields))


def only(actions: list[Plug | Refuse]) -> Plug | Refuse:
    assert len(actions) == 1
    return actions[0]


def plugged(actions: list[Plug | Refuse]) -> Plug:
    action = only(actions)
    assert isinstance(action, Plug), action
    return action


def refused(actions: list[Plug | Refuse]) -> Refuse:
    action = only(actions)
    assert isinstance(action, Refuse), action
    return action


def test_an_attached_nic_is_wired_and_plugged() -> None:
    action = plugged(plug(observed(vmi(nic("iface1")), attached_pod("iface1"))))
    assert action.record is None
    assert action.steps
    assert action.slot == "rp1"
    card = action.card
    assert (card.interface, card.mac, card.tap, card.mtu, card.queues) == ("iface1", MAC, "tap7e0055a6880", 1500, 1)


@pytest.mark.parametrize(("status", "owner"), [({}, 107), ({"runtimeUser": 1000}, 1000), ({"runtimeUser": 0}, 0)])
def test_the_tap_belongs_to_the_user_that_the_guest_runs_as(status: dict[str, int], owner: int) -> None:
    action = plugged(plug(observed(vmi(nic("iface1"), **status), attached_pod("iface1"))))
    assert [step.wish.owner for step in action.steps if isinstance(step, AddLink) and step.wish.kind == "tap"] == [
        owner
    ]


def test_each_card_gets_a_slot_of_its_own() -> None:
    actions = plug(
        observed(vmi(nic("iface1"), nic("iface2")), attached_pod("iface1", "iface2"), seen=links("iface1", "iface2"))
    )
    assert [action.slot for action in actions if isinstance(action, Plug)] == ["rp1", "rp2"]


def test_the_last_slot_is_given_once_and_the_next_nic_is_told() -> None:
    first, second = plug(
        observed(
            vmi(nic("iface1"), nic("iface2")),
            attached_pod("iface1", "iface2"),
            seen=links("iface1", "iface2"),
            guest=guest("default", free=("rp8",)),
        )
    )
    assert isinstance(first, Plug)
    assert isinstance(second, Refuse)
    assert (second.reason, second.final) == ("NoFreeSlot", True)


@pytest.mark.parametrize(
    ("interface", "network_status"),
    [
        ({"state": "absent"}, "iface1"),
        ({}, "other"),
    ],
)
def test_what_is_absent_or_not_attached_yet_is_left_alone(interface: dict[str, Any], network_status: str) -> None:
    assert plug(observed(vmi(nic("iface1", **interface)), attached_pod(network_status))) == []


def test_a_binding_other_than_bridge_is_left_alone() -> None:
    item, network = nic("iface1")
    del item["bridge"]
    assert plug(observed(vmi(({**item, "sriov": {}}, network)), attached_pod("iface1"))) == []


def test_a_card_in_the_domain_is_not_plugged_again() -> None:
    assert plug(observed(vmi(nic("iface1")), attached_pod("iface1"), guest=guest("default", "iface1"))) == []


def test_nothing_is_planned_for_links_nobody_looked_at() -> None:
    assert plug(observed(vmi(nic("iface1")), attached_pod("iface1"), seen=None)) == []


@pytest.mark.parametrize(
    ("spec", "shown", "expected"),
    [
        ({"macAddress": "02-AA-00-00-00-01"}, "02:bb:00:00:00:01", "02:aa:00:00:00:01"),
        ({}, "02:bb:00:00:00:01", "02:bb:00:00:00:01"),
        ({}, None, MAC),
    ],
)
def test_the_guests_mac_is_the_specs_else_the_statuses_else_the_pod_nics(
    spec: dict[str, Any], shown: str | None, expected: str
) -> None:
    entries = [{"name": "iface1", "infoSource": "multus-status"} | ({"mac": shown} if shown else {})]
    action = plugged(plug(observed(vmi(nic("iface1", **spec), status=entries), attached_pod("iface1"))))
    assert action.card.mac == expected


@pytest.mark.parametrize(
    ("machine", "fields", "reason", "final"),
    [
        (vmi(nic("iface1", model="e1000")), {}, "UnsupportedModel", True),
        (vmi(nic("iface1")), {"guest": guest("default", free=())}, "NoFreeSlot", True),
        (vmi(nic("iface1")), {"seen": links()}, "PodLinkMissing", False),
        (vmi(nic("iface1")), {"seen": links("iface1", kind="ipvlan")}, "UnsupportedPodLink", True),
        (vmi(nic("iface1")), {"seen": links("iface1", kind="macvlan", mode="bridge")}, "UnsupportedPodLink", True),
    ],
)
def test_what_cannot_be_plugged_is_refused_before_anything_is_touched(
    machine: VirtualMachineInstance, fields: dict[str, Any], reason: str, final: bool
) -> None:
    action = refused(plug(observed(machine, attached_pod("iface1"), **fields)))
    assert (action.reason, action.final) == (reason, final)
    assert action.message


def test_a_model_that_is_virtio_by_name_is_plugged() -> None:
    plugged(plug(observed(vmi(nic("iface1", model="virtio")), attached_pod("iface1"))))


def test_a_leftover_link_is_a_conflict_that_may_pass() -> None:
    seen = links("iface1")
    left = Link(index=9, name=link_names(pod_interface("iface1")).bridged, kind="veth")
    action = refused(plug(observed(vmi(nic("iface1")), attached_pod("iface1"), seen=Seen((*seen.links, left)))))
    assert (action.reason, action.final) == ("PodNetworkConflict", False)


def written(action: Plug) -> PodNic:
    assert action.record is not None
    value = action.record[-1]["value"]
    text = value if isinstance(value, str) else value[pod_nic_key("iface1")]
    found = pod_nic_of({"x": text}, "x")
    assert found is not None
    return found


def test_a_missing_record_is_made_from_the_link_before_the_first_step() -> None:
    seen = msgspec.structs.replace(
        links("iface1"),
        routes=(
            SeenRoute(2, "10.0.0.0/24"),
            SeenRoute(2, "0.0.0.0/0", "10.0.0.1", 5),
            SeenRoute(2, "fe80::/64"),
            SeenRoute(3, "10.9.0.0/16", "10.0.0.9"),
        ),
    )
    action = plugged(plug(observed(vmi(nic("iface1")), attached_pod("iface1", records=False), seen=seen)))
    assert action.record is not None
    assert action.record[0] == {"op": "test", "path": "/metadata/uid", "value": POD_UID}
    made = written(action)
    assert (made.mac, made.mtu, made.ips, made.sandbox_id) == (MAC, 1500, (IP,), SANDBOX)
    assert made.routes == (RecordedRoute("0.0.0.0/0", "10.0.0.1", 5),)


@pytest.mark.parametrize("change", [{"pod_uid": "other"}, {"sandbox_id": "other"}])
def test_a_record_of_another_pod_or_sandbox_counts_as_missing(change: dict[str, str]) -> None:
    launcher = attached_pod(
        "iface1", records=False, **{pod_nic_key("iface1"): record(mac="02:00:00:00:00:77", **change)}
    )
    action = plugged(plug(observed(vmi(nic("iface1")), launcher)))
    assert written(action).mac == MAC


def half_wired(*, keeper: bool) -> Seen:
    names = link_names(pod_interface("iface1"))
    found = [
        Link(index=1, name="lo"),
        Link(index=2, name=names.bridged, kind="veth", mac=bridge_mac(POD_UID, names.nic), mtu=1400),
    ]
    if keeper:
        found.append(Link(index=5, name=names.nic, kind="dummy", mac=MAC, mtu=1400))
    return Seen(tuple(found), (Address(5, IP),) if keeper else ())


def test_a_lost_record_is_made_from_the_link_that_keeps_the_addresses() -> None:
    launcher = attached_pod("iface1", records=False)
    made = written(plugged(plug(observed(vmi(nic("iface1")), launcher, seen=half_wired(keeper=True)))))
    assert (made.mac, made.mtu, made.ips) == (MAC, 1400, (IP,))


def test_a_lost_record_without_addresses_is_made_from_network_status() -> None:
    launcher = attached_pod("iface1", records=False)
    made = written(plugged(plug(observed(vmi(nic("iface1")), launcher, seen=half_wired(keeper=False)))))
    assert (made.mac, made.ips) == (MAC, ())


def test_a_record_lost_for_good_is_not_invented() -> None:
    launcher = pod({NETWORK_STATUS: str(status("iface1", ips=["10.0.0.2"]))})
    action = refused(plug(observed(vmi(nic("iface1")), launcher, seen=half_wired(keeper=False))))
    assert (action.reason, action.final) == ("PodNicRecordLost", True)


def crowded(routes: int) -> Seen:
    found = tuple(SeenRoute(2, f"172.16.{i}.0/24", "10.0.0.1") for i in range(routes))
    return msgspec.structs.replace(links("iface1"), routes=found)


def test_a_nic_of_which_too_much_is_to_be_noted_is_refused_before_anything_is_changed() -> None:
    launcher = attached_pod("iface1", records=False)
    action = refused(plug(observed(vmi(nic("iface1")), launcher, seen=crowded(250))))
    assert (action.reason, action.final, action.reason in TERMINAL) == ("PodNicRecordTooLarge", True, True)
    assert pod_interface("iface1") in action.message
    assert f"at most {MAX_POD_NIC_BYTES}" in action.message


def test_what_the_handler_notes_of_a_nic_it_can_read_again() -> None:
    action = plugged(plug(observed(vmi(nic("iface1")), attached_pod("iface1", records=False), seen=crowded(150))))
    assert len(written(action).routes) == 150


def test_queues_follow_the_cpus_when_asked_for() -> None:
    machine = vmi(nic("iface1"))
    devices = msgspec.structs.replace(machine.spec.domain.devices, network_interface_multiqueue=True)
    spec = msgspec.structs.replace(machine.spec, domain=msgspec.structs.replace(machine.spec.domain, devices=devices))
    machine = msgspec.structs.replace(machine, spec=spec)
    action = plugged(plug(observed(machine, attached_pod("iface1"), guest=guest("default", cpus=4))))
    assert action.card.queues == 4


def test_a_pod_with_ordinal_names_keeps_them() -> None:
    text = encode_network_status([NetworkStatus(name="default/net1", interface="net1", mac=MAC)])
    (found,) = attached_nics(vmi(nic("iface1")), pod({NETWORK_STATUS: text, NETWORKS: "net1@net1"}))
    assert (found.names.nic, found.names.tap) == ("net1", "tap1")


def test_a_malformed_annotation_needs_someone_to_change_it() -> None:
    with pytest.raises(Reject, match="MalformedObject"):
        plug(observed(vmi(nic("iface1")), pod({NETWORK_STATUS: "["})))


@pytest.mark.parametrize(
    ("machine", "launcher", "node", "expected"),
    [
        (vmi(), pod(), NODE, True),
        (vmi(), None, NODE, False),
        (vmi(), pod(), "elsewhere", False),
        (vmi(phase="Scheduled"), pod(), NODE, False),
        (vmi(), pod(deletionTimestamp="2026-01-01T00:00:00Z"), NODE, False),
        (vmi(migrationState={"targetNode": "n2"}), pod(), NODE, False),
        (vmi(migrationState={"completed": True}), pod(), NODE, True),
    ],
)
def test_only_a_vm_that_runs_here_and_stays_is_worked_on(
    machine: VirtualMachineInstance, launcher: Pod | None, node: str, expected: bool
) -> None:
    assert acts_here(machine, launcher, node) is expected


# -- the report ---------------------------------------------------------------------------------------------------


def slots(free: int = 2, nics: int = 2) -> dict[str, str]:
    return {NIC_SLOTS: encode(NicSlots(free, nics, POD_UID))}


def after(found: Any) -> list[dict[str, Any]]:
    assert found is not None
    (value,) = [op["value"] for op in found.ops if op["op"] == "add" and op["path"] == "/status/interfaces"]
    assert isinstance(value, list)
    return value


def test_a_new_card_is_reported_beside_what_others_wrote() -> None:
    before = [{"name": "iface1", "infoSource": "multus-status", "podInterfaceName": "pod7e0055a6880"}]
    found = report(
        observed(vmi(nic("iface1"), status=before), attached_pod("iface1"), guest=guest("default", "iface1"), seen=None)
    )
    assert after(found) == [
        {"name": "default", "mac": "02:00:00:00:00:00", "queueCount": 1, "linkState": "up", "infoSource": "domain"},
        {
            "name": "iface1",
            "infoSource": "domain, multus-status",
            "podInterfaceName": "pod7e0055a6880",
            "mac": "02:00:00:00:00:01",
            "queueCount": 1,
            "linkState": "up",
        },
    ]
    assert found is not None
    assert {"op": "test", "path": "/status/interfaces", "value": before} in found.ops
    assert [(nic.name, by) for nic, by in found.confirmed] == [("iface1", ConfirmedBy.DEVICE)]


def reported(machine: VirtualMachineInstance, **fields: Any) -> VirtualMachineInstance:
    """The VMI after its report was written."""
    found = report(observed(machine, attached_pod("iface1"), seen=None, **fields))
    interfaces = after(found)
    document = msgspec.to_builtins(machine)
    document["status"]["interfaces"] = interfaces
    document["metadata"]["annotations"] = slots()
    return msgspec.convert(document, VirtualMachineInstance)


def test_what_is_reported_is_not_reported_again() -> None:
    view = guest("default", "iface1")
    done = reported(vmi(nic("iface1")), guest=view)
    assert report(observed(done, attached_pod("iface1"), guest=view, seen=None)) is None


def test_a_driver_confirms_a_card_once_and_only_where_no_agent_does() -> None:
    view = guest("default", "iface1")
    done = reported(vmi(nic("iface1")), guest=view)
    driven = msgspec.structs.replace(
        view, cards={alias: msgspec.structs.replace(card, driven=True) for alias, card in view.cards.items()}
    )
    parts: dict[str, Any] = {"guest": driven, "seen": None}
    found = report(observed(done, attached_pod("iface1"), unconfirmed=frozenset({"iface1"}), **parts))
    assert found is not None
    assert [(nic.name, by) for nic, by in found.confirmed] == [("iface1", ConfirmedBy.DRIVER)]
    assert found.ops == []
    assert report(observed(done, attached_pod("iface1"), **parts)) is None
    agent = (GuestNic("eth1", "02:00:00:00:00:01"),)
    found = report(observed(done, attached_pod("iface1"), unconfirmed=frozenset({"iface1"}), agent=agent, **parts))
    assert found is not None
    assert [(nic.name, by) for nic, by in found.confirmed] == [("iface1", ConfirmedBy.GUEST_AGENT)]


def test_the_agent_adds_the_guests_own_name_and_addresses() -> None:
    view = guest("default", "iface1")
    done = reported(vmi(nic("iface1")), guest=view)
    agent = (GuestNic("eth0", "02:00:00:00:00:00", ("10.0.2.15",)), GuestNic("eth1", "02:00:00:00:00:01"))
    found = report(observed(done, attached_pod("iface1"), guest=view, agent=agent, seen=None))
    first, second = after(found)
    assert (first["interfaceName"], first["ipAddress"], first["ipAddresses"]) == ("eth0", "10.0.2.15", ["10.0.2.15"])
    assert (second["interfaceName"], second["infoSource"]) == ("eth1", "domain, guest-agent")
    assert "ipAddress" not in second
    assert found is not None
    assert [(nic.name, by) for nic, by in found.confirmed] == [("iface1", ConfirmedBy.GUEST_AGENT)]


def test_an_agent_that_no_longer_lists_a_nic_is_believed() -> None:
    view = guest("default", "iface1")
    listed = (GuestNic("eth1", "02:00:00:00:00:01", ("10.0.0.9",)),)
    done = reported(vmi(nic("iface1")), guest=view, agent=listed)
    found = report(observed(done, attached_pod("iface1"), guest=view, agent=(), seen=None))
    entry = after(found)[1]
    assert entry["infoSource"] == "domain"
    assert not {"interfaceName", "ipAddress", "ipAddresses"} & entry.keys()


def test_a_card_that_left_the_domain_loses_its_tokens() -> None:
    done = reported(vmi(nic("iface1")), guest=guest("default", "iface1"))
    found = report(observed(done, attached_pod("iface1"), guest=guest("default"), seen=None))
    assert [entry["name"] for entry in after(found)] == ["default"]


def test_free_slots_are_counted_for_this_pod() -> None:
    view = guest("default", "iface1", free=())
    done = reported(vmi(nic("iface1")), guest=view)
    found = report(observed(done, attached_pod("iface1"), guest=view, seen=None))
    assert found is not None
    assert found.ops == [
        {"op": "test", "path": "/metadata/uid", "value": done.metadata.uid},
        {"op": "add", "path": "/metadata/annotations/hotnic.io~1nic-slots", "value": slots(free=0)[NIC_SLOTS]},
    ]
    assert found.confirmed == []


def test_the_operation_of_the_annotation_is_carried_on() -> None:
    operation = Operation(
        id="op-1", kind=OperationKind.PLUG, interface="iface1", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    )
    machine = vmi(nic("iface1"), annotations={operation_key("iface1"): encode(operation)})
    assert plugged(plug(observed(machine, attached_pod("iface1")))).nic.operation == operation
