"""The plan of plugs and the report: which NICs are plugged or refused, and what is written to the VMI."""

from typing import Any

import msgspec
import pytest

from schemas.bus.events import ConfirmedBy
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, NetworkStatus, encode_network_status
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.kubernetes.operations import (
    MAX_POD_NIC_BYTES,
    NIC_SLOTS,
    NicSlots,
    Operation,
    PodNic,
    RecordedRoute,
    encode_annotation,
    operation_key,
    pod_nic_key,
    read_pod_nic,
)
from schemas.names import device_alias, pod_interface
from schemas.stages import OperationKind
from services.common.domain.eligibility import PLUG_FAILURES
from services.common.domain.nic import link_names, parse_nics
from services.common.domain.status_interfaces import DOMAIN, Entry, parse_tokens
from services.common.guest.agent import GuestNic
from services.common.guest.port import GuestView, NetDevice
from services.common.netlink.links import Address, Link
from services.common.netlink.links import Route as ObservedRoute
from services.common.reconcile import Reject
from services.handler.observe import parse
from services.handler.plan.actions import Observed, Outcome, PublishFailure, ReportStatus, SetUpAndAttach
from services.handler.plan.nics import attached_nics, is_eligible
from services.handler.plan.plugs import plan_plugs
from services.handler.plan.report import gained_token
from services.handler.plan.report import plan_report as plan_report_of
from services.handler.pod_network.operations import AddLink, ObservedLinks
from services.handler.pod_network.setup import bridge_mac
from tests.support.observed.handler import observed_state
from tests.support.observed.objects import NODE, POD_UID, nic, pod, vmi

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
    return encode_annotation(PodNic(**(values | changes)))


def attached_pod(*names: str, records: bool = True, **extra: str) -> Pod:
    annotations = {NETWORK_STATUS: str(status(*names)), **extra}
    if records:
        annotations |= {pod_nic_key(name): record(name) for name in names}
    return pod(annotations)


def links(*names: str, kind: str | None = "veth", **fields: Any) -> ObservedLinks:
    found = [
        Link(index=i, name=pod_interface(name), kind=kind, mac=MAC, mtu=1500, up=True, **fields)
        for i, name in enumerate(names, start=2)
    ]
    return ObservedLinks((Link(index=1, name="lo"), *found), tuple(Address(link.index, IP) for link in found))


def guest(*interfaces: str, free: tuple[str, ...] = ("rp1", "rp2"), cpus: int = 1) -> GuestView:
    devices = {
        device_alias(name): NetDevice(device_alias(name), f"02:00:00:00:00:{i:02x}", up=True)
        for i, name in enumerate(interfaces)
    }
    return GuestView(devices, free, cpus)


WITH_BUSES = msgspec.structs.replace(guest("default"), buses={"rp1": 1, "rp2": 2, "rp3": 3})
"""Of three slots the last one has a device."""


def observed(machine: VirtualMachineInstance, launcher: Pod, **fields: Any) -> Observed:
    values: dict[str, Any] = {
        "guest": guest("default"),
        "pod_links": links("iface1"),
        "sandbox_id": SANDBOX,
        "tap_owner": 107,
    }
    return observed_state(machine, launcher, **(values | fields))


def only(actions: list[SetUpAndAttach | PublishFailure]) -> SetUpAndAttach | PublishFailure:
    assert len(actions) == 1
    return actions[0]


def plugged(actions: list[SetUpAndAttach | PublishFailure]) -> SetUpAndAttach:
    action = only(actions)
    assert isinstance(action, SetUpAndAttach), action
    return action


def refused(actions: list[SetUpAndAttach | PublishFailure]) -> PublishFailure:
    action = only(actions)
    assert isinstance(action, PublishFailure), action
    return action


def test_an_attached_nic_is_plugged() -> None:
    action = plugged(plan_plugs(observed(vmi(nic("iface1")), attached_pod("iface1"))))
    assert action.record is None
    assert action.operations
    assert action.slot == "rp1"
    device = action.device
    assert (device.interface, device.mac, device.tap, device.mtu, device.queues) == (
        "iface1",
        MAC,
        "tap7e0055a6880",
        1500,
        1,
    )


@pytest.mark.parametrize(("status", "owner"), [({}, 107), ({"runtimeUser": 1000}, 1000), ({"runtimeUser": 0}, 0)])
def test_the_tap_is_owned_by_the_user_of_the_guest(status: dict[str, int], owner: int) -> None:
    action = plugged(plan_plugs(observed(vmi(nic("iface1"), **status), attached_pod("iface1"))))
    assert [
        operation.desired.owner
        for operation in action.operations
        if isinstance(operation, AddLink) and operation.desired.kind == "tap"
    ] == [owner]


def test_each_device_gets_a_slot_of_its_own() -> None:
    actions = plan_plugs(
        observed(
            vmi(nic("iface1"), nic("iface2")), attached_pod("iface1", "iface2"), pod_links=links("iface1", "iface2")
        )
    )
    assert [action.slot for action in actions if isinstance(action, SetUpAndAttach)] == ["rp1", "rp2"]


def test_the_last_slot_is_assigned_once_and_the_next_nic_is_refused() -> None:
    first, second = plan_plugs(
        observed(
            vmi(nic("iface1"), nic("iface2")),
            attached_pod("iface1", "iface2"),
            pod_links=links("iface1", "iface2"),
            guest=guest("default", free=("rp8",)),
        )
    )
    assert isinstance(first, SetUpAndAttach)
    assert isinstance(second, PublishFailure)
    assert (second.reason, second.final) == ("NoFreeSlot", True)


@pytest.mark.parametrize(
    ("interface", "network_status"),
    [
        ({"state": "absent"}, "iface1"),
        ({}, "other"),
    ],
)
def test_an_absent_or_unattached_interface_is_not_plugged(interface: dict[str, Any], network_status: str) -> None:
    assert plan_plugs(observed(vmi(nic("iface1", **interface)), attached_pod(network_status))) == []


def test_an_interface_with_another_binding_is_not_plugged() -> None:
    item, network = nic("iface1")
    del item["bridge"]
    assert plan_plugs(observed(vmi(({**item, "sriov": {}}, network)), attached_pod("iface1"))) == []


def test_a_device_in_the_domain_is_not_plugged_again() -> None:
    assert plan_plugs(observed(vmi(nic("iface1")), attached_pod("iface1"), guest=guest("default", "iface1"))) == []


def test_nothing_is_planned_without_observed_links() -> None:
    assert plan_plugs(observed(vmi(nic("iface1")), attached_pod("iface1"), pod_links=None)) == []


@pytest.mark.parametrize(
    ("spec", "shown", "expected"),
    [
        ({"macAddress": "02-AA-00-00-00-01"}, "02:bb:00:00:00:01", "02:aa:00:00:00:01"),
        ({}, "02:bb:00:00:00:01", "02:bb:00:00:00:01"),
        ({}, None, MAC),
    ],
)
def test_the_guest_mac_is_from_the_spec_else_the_status_else_the_pod_interface(
    spec: dict[str, Any], shown: str | None, expected: str
) -> None:
    entries = [{"name": "iface1", "infoSource": "multus-status"} | ({"mac": shown} if shown else {})]
    action = plugged(plan_plugs(observed(vmi(nic("iface1", **spec), status=entries), attached_pod("iface1"))))
    assert action.device.mac == expected


@pytest.mark.parametrize(
    ("machine", "fields", "reason", "final"),
    [
        (vmi(nic("iface1", model="e1000")), {}, "UnsupportedModel", True),
        (vmi(nic("iface1", macAddress="67:4f:16:00:00:01")), {}, "InvalidInterface", True),
        (
            vmi(nic("iface0", "net0", macAddress="02-00-00-00-00-01"), nic("iface1", macAddress="02:00:00:00:00:01")),
            {},
            "DuplicateMacAddress",
            True,
        ),
        (
            vmi(nic("iface0", "net0", macAddress=MAC, state="absent"), nic("iface1", macAddress=MAC)),
            {},
            "DuplicateMacAddress",
            False,
        ),
        (vmi(nic("iface1"), status=[{"name": "iface1", "mac": "02:00"}]), {}, "MalformedNic", False),
        (vmi(nic("iface1", pciAddress="0000:09:00.0")), {"guest": WITH_BUSES}, "NoSuchSlot", True),
        (vmi(nic("iface1", pciAddress="0000:09:00.0")), {}, "NoSuchSlot", False),
        (vmi(nic("iface1", pciAddress="0000:03:00.0")), {"guest": WITH_BUSES}, "NoFreeSlot", True),
        (vmi(nic("iface1")), {"guest": guest("default", free=())}, "NoFreeSlot", True),
        (vmi(nic("iface1")), {"pod_links": links()}, "PodLinkMissing", False),
        (vmi(nic("iface1")), {"pod_links": links("iface1", kind="ipvlan")}, "UnsupportedPodLink", True),
        (vmi(nic("iface1")), {"pod_links": links("iface1", kind="macvlan", mode="bridge")}, "UnsupportedPodLink", True),
    ],
)
def test_a_nic_that_cannot_be_plugged_is_refused(
    machine: VirtualMachineInstance, fields: dict[str, Any], reason: str, final: bool
) -> None:
    action = refused(plan_plugs(observed(machine, attached_pod("iface1"), **fields)))
    assert (action.reason, action.final) == (reason, final)
    assert action.message


def test_a_nic_gets_the_slot_of_its_pci_address_and_its_acpi_index() -> None:
    machine = vmi(nic("iface1"), nic("iface2", pciAddress="0000:01:00.0", acpiIndex=101))
    launcher, pod_links = attached_pod("iface1", "iface2"), links("iface1", "iface2")
    actions = plan_plugs(observed(machine, launcher, pod_links=pod_links, guest=WITH_BUSES))
    found = [(one.slot, one.device.acpi_index) for one in actions if isinstance(one, SetUpAndAttach)]
    assert found == [("rp2", None), ("rp1", 101)]


def test_an_impossible_mac_stops_its_own_nic_only() -> None:
    machine = vmi(nic("iface1", macAddress="zz:00"), nic("iface2", macAddress="0200.0000.0001"))
    launcher, pod_links = attached_pod("iface1", "iface2"), links("iface1", "iface2")
    first, second = plan_plugs(observed(machine, launcher, pod_links=pod_links))
    assert isinstance(first, PublishFailure)
    assert (first.nic.name, first.reason) == ("iface1", "InvalidInterface")
    assert isinstance(second, SetUpAndAttach)
    assert second.device.mac == "02:00:00:00:00:01"


@pytest.mark.parametrize("fields", [{"model": "virtio"}, {"tag": "x"}, {"bootOrder": 2}, {"dhcpOptions": {"x": "y"}}])
def test_a_nic_that_a_vm_may_have_from_its_start_is_plugged(fields: dict[str, Any]) -> None:
    plugged(plan_plugs(observed(vmi(nic("iface1", **fields)), attached_pod("iface1"))))


def test_a_leftover_link_is_a_conflict_that_is_retried() -> None:
    pod_links = links("iface1")
    left = Link(index=9, name=link_names(pod_interface("iface1")).bridged, kind="veth")
    action = refused(
        plan_plugs(
            observed(vmi(nic("iface1")), attached_pod("iface1"), pod_links=ObservedLinks((*pod_links.links, left)))
        )
    )
    assert (action.reason, action.final) == ("PodNetworkConflict", False)


def written(action: SetUpAndAttach) -> PodNic:
    assert action.record is not None
    value = action.record[-1]["value"]
    text = value if isinstance(value, str) else value[pod_nic_key("iface1")]
    found = read_pod_nic({"x": text}, "x")
    assert found is not None
    return found


def test_a_missing_record_is_made_from_the_pod_interface() -> None:
    pod_links = msgspec.structs.replace(
        links("iface1"),
        routes=(
            ObservedRoute(2, "10.0.0.0/24"),
            ObservedRoute(2, "0.0.0.0/0", "10.0.0.1", 5),
            ObservedRoute(2, "fe80::/64"),
            ObservedRoute(3, "10.9.0.0/16", "10.0.0.9"),
        ),
    )
    action = plugged(
        plan_plugs(observed(vmi(nic("iface1")), attached_pod("iface1", records=False), pod_links=pod_links))
    )
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
    action = plugged(plan_plugs(observed(vmi(nic("iface1")), launcher)))
    assert written(action).mac == MAC


def partly_set_up(*, dummy: bool) -> ObservedLinks:
    names = link_names(pod_interface("iface1"))
    found = [
        Link(index=1, name="lo"),
        Link(index=2, name=names.bridged, kind="veth", mac=bridge_mac(POD_UID, names.pod_interface), mtu=1400),
    ]
    if dummy:
        found.append(Link(index=5, name=names.pod_interface, kind="dummy", mac=MAC, mtu=1400))
    return ObservedLinks(tuple(found), (Address(5, IP),) if dummy else ())


def test_a_lost_record_is_made_from_the_dummy() -> None:
    launcher = attached_pod("iface1", records=False)
    made = written(plugged(plan_plugs(observed(vmi(nic("iface1")), launcher, pod_links=partly_set_up(dummy=True)))))
    assert (made.mac, made.mtu, made.ips) == (MAC, 1400, (IP,))


def test_a_lost_record_without_addresses_is_made_from_network_status() -> None:
    launcher = attached_pod("iface1", records=False)
    made = written(plugged(plan_plugs(observed(vmi(nic("iface1")), launcher, pod_links=partly_set_up(dummy=False)))))
    assert (made.mac, made.ips) == (MAC, ())


def test_a_nic_whose_record_cannot_be_made_is_refused() -> None:
    launcher = pod({NETWORK_STATUS: str(status("iface1", ips=["10.0.0.2"]))})
    action = refused(plan_plugs(observed(vmi(nic("iface1")), launcher, pod_links=partly_set_up(dummy=False))))
    assert (action.reason, action.final) == ("PodNicRecordLost", True)


def crowded(routes: int) -> ObservedLinks:
    found = tuple(ObservedRoute(2, f"172.16.{i}.0/24", "10.0.0.1") for i in range(routes))
    return msgspec.structs.replace(links("iface1"), routes=found)


def test_a_nic_whose_record_is_too_large_is_refused() -> None:
    launcher = attached_pod("iface1", records=False)
    action = refused(plan_plugs(observed(vmi(nic("iface1")), launcher, pod_links=crowded(250))))
    assert (action.reason, action.final, action.reason in PLUG_FAILURES) == ("PodNicRecordTooLarge", True, True)
    assert pod_interface("iface1") in action.message
    assert f"the limit is {MAX_POD_NIC_BYTES}" in action.message


def test_a_written_record_can_be_read_back() -> None:
    action = plugged(
        plan_plugs(observed(vmi(nic("iface1")), attached_pod("iface1", records=False), pod_links=crowded(150)))
    )
    assert len(written(action).routes) == 150


def test_a_multiqueue_vm_has_a_queue_for_each_cpu() -> None:
    machine = vmi(nic("iface1"))
    devices = msgspec.structs.replace(machine.spec.domain.devices, network_interface_multiqueue=True)
    spec = msgspec.structs.replace(machine.spec, domain=msgspec.structs.replace(machine.spec.domain, devices=devices))
    machine = msgspec.structs.replace(machine, spec=spec)
    action = plugged(plan_plugs(observed(machine, attached_pod("iface1"), guest=guest("default", cpus=4))))
    assert action.device.queues == 4


def test_a_pod_with_ordinal_names_gets_ordinal_link_names() -> None:
    text = encode_network_status([NetworkStatus(name="default/net1", interface="net1", mac=MAC)])
    (found,) = attached_nics(parse_nics(vmi(nic("iface1")), pod({NETWORK_STATUS: text, NETWORKS: "net1@net1"})))
    assert (found.link, found.names.tap) == ("net1", "tap1")


def test_a_malformed_annotation_is_rejected() -> None:
    with pytest.raises(Reject, match="MalformedObject"):
        parse(vmi(nic("iface1")), pod({NETWORK_STATUS: "["}))


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
def test_only_a_vm_that_runs_here_and_does_not_migrate_is_eligible(
    machine: VirtualMachineInstance, launcher: Pod | None, node: str, expected: bool
) -> None:
    assert is_eligible(machine, launcher, node) is expected


# -- the report ---------------------------------------------------------------------------------------------------


def plan_report(state: Observed) -> ReportStatus | None:
    """Return the report of a state in which no operation ends."""
    return plan_report_of(state, Outcome(frozenset(), {}))


def slots(free: int = 2, nics: int = 2) -> dict[str, str]:
    return {NIC_SLOTS: encode_annotation(NicSlots(free, nics, POD_UID))}


def after(found: Any) -> list[dict[str, Any]]:
    assert found is not None
    (value,) = [op["value"] for op in found.ops if op["op"] == "add" and op["path"] == "/status/interfaces"]
    assert isinstance(value, list)
    return value


def test_a_new_device_is_reported_beside_the_entries_of_others() -> None:
    before = [{"name": "iface1", "infoSource": "multus-status", "podInterfaceName": "pod7e0055a6880"}]
    found = plan_report(
        observed(
            vmi(nic("iface1"), status=before), attached_pod("iface1"), guest=guest("default", "iface1"), pod_links=None
        )
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
    """Return the VMI after its report was written."""
    found = plan_report(observed(machine, attached_pod("iface1"), pod_links=None, **fields))
    interfaces = after(found)
    document = msgspec.to_builtins(machine)
    document["status"]["interfaces"] = interfaces
    document["metadata"]["annotations"] = slots()
    return msgspec.convert(document, VirtualMachineInstance)


def test_a_reported_device_is_not_reported_again() -> None:
    view = guest("default", "iface1")
    done = reported(vmi(nic("iface1")), guest=view)
    assert plan_report(observed(done, attached_pod("iface1"), guest=view, pod_links=None)) is None


def test_a_driver_confirms_a_device_once_and_only_without_an_agent() -> None:
    view = guest("default", "iface1")
    done = reported(vmi(nic("iface1")), guest=view)
    driver_active = msgspec.structs.replace(
        view,
        devices={alias: msgspec.structs.replace(device, driver_active=True) for alias, device in view.devices.items()},
    )
    parts: dict[str, Any] = {"guest": driver_active, "pod_links": None}
    found = plan_report(observed(done, attached_pod("iface1"), unconfirmed=frozenset({"iface1"}), **parts))
    assert found is not None
    assert [(nic.name, by) for nic, by in found.confirmed] == [("iface1", ConfirmedBy.DRIVER)]
    assert found.ops == []
    assert plan_report(observed(done, attached_pod("iface1"), **parts)) is None
    agent = (GuestNic("eth1", "02:00:00:00:00:01"),)
    found = plan_report(observed(done, attached_pod("iface1"), unconfirmed=frozenset({"iface1"}), agent=agent, **parts))
    assert found is not None
    assert [(nic.name, by) for nic, by in found.confirmed] == [("iface1", ConfirmedBy.GUEST_AGENT)]


def test_the_agent_adds_the_link_name_and_addresses_in_the_guest() -> None:
    view = guest("default", "iface1")
    done = reported(vmi(nic("iface1")), guest=view)
    agent = (GuestNic("eth0", "02:00:00:00:00:00", ("10.0.2.15",)), GuestNic("eth1", "02:00:00:00:00:01"))
    found = plan_report(observed(done, attached_pod("iface1"), guest=view, agent=agent, pod_links=None))
    first, second = after(found)
    # The primary NIC is behind NAT.
    assert (first["interfaceName"], first["infoSource"]) == ("eth0", "domain, guest-agent")
    assert "ipAddress" not in first
    assert (second["interfaceName"], second["infoSource"]) == ("eth1", "domain, guest-agent")
    assert "ipAddress" not in second
    assert found is not None
    assert [(nic.name, by) for nic, by in found.confirmed] == [("iface1", ConfirmedBy.GUEST_AGENT)]


def entries_after(
    machine: VirtualMachineInstance, agent: tuple[GuestNic, ...], launcher: Pod | None = None
) -> list[dict[str, Any]]:
    state = observed(
        machine, launcher or attached_pod("iface1"), guest=guest("default", "iface1"), agent=agent, pod_links=None
    )
    found = plan_report(state)
    assert found is not None
    status = [op["value"] for op in found.ops if op["op"] == "add" and op["path"] == "/status/interfaces"]
    return status[0] if status else (machine.status.interfaces or [])


@pytest.mark.parametrize("pod_ips", [[], ["10.244.1.120"]], ids=["written by KubeVirt", "the pod's"])
def test_a_masquerade_interface_keeps_the_address_of_the_pod(pod_ips: list[str]) -> None:
    # With the pod's addresses known, an address that an earlier version wrote is mended.
    shown = "10.0.2.2" if pod_ips else "10.244.1.120"
    entry = {"name": "default", "infoSource": "domain", "ipAddress": shown, "ipAddresses": [shown]}
    launcher = attached_pod("iface1")
    status = msgspec.structs.replace(launcher.status, pod_ips=[{"ip": ip} for ip in pod_ips])
    launcher = msgspec.structs.replace(launcher, status=status)
    machine = vmi(nic("iface1"), status=[entry])
    for agent in ((GuestNic("eth0", "02:00:00:00:00:00", ("10.0.2.2", "fd10:0:2::2")),), ()):
        found = entries_after(machine, agent, launcher)[0]
        assert (found["ipAddress"], found["ipAddresses"]) == ("10.244.1.120", ["10.244.1.120"])
        assert found.get("interfaceName") == ("eth0" if agent else None)


@pytest.mark.parametrize("binding", ["sriov", "macvtap", "binding"])
@pytest.mark.parametrize("tokens", ["domain, guest-agent, multus-status", "domain"])
def test_the_entry_of_an_interface_that_is_no_network_device_is_left_alone(binding: str, tokens: str) -> None:
    entry = {"name": "fast", "interfaceName": "eth2", "ipAddress": "192.0.2.7", "infoSource": tokens}
    item, network = {"name": "fast", binding: {}}, {"name": "fast", "multus": {"networkName": "net2"}}
    found = entries_after(vmi(nic("iface1"), (item, network), status=[entry]), ())
    assert [one for one in found if one["name"] == "fast"] == [entry]


LABELLED = (GuestNic("net1", "02:00:00:00:00:01", ("192.0.2.10",)), GuestNic("net1:vip", "02:00:00:00:00:01", ("::9",)))
BRIDGED = (
    GuestNic("eth1", "02:00:00:00:00:01", ("fe80::1",)),
    GuestNic("br0", "02:00:00:00:00:01", ("fe80::2", "192.0.2.10")),
)


@pytest.mark.parametrize(
    ("agent", "name", "ips"),
    [
        (LABELLED, "net1", ["192.0.2.10", "::9"]),
        (LABELLED[::-1], "net1", ["192.0.2.10", "::9"]),
        (LABELLED[1:], "net1", ["::9"]),
        (BRIDGED, "br0", ["fe80::2", "192.0.2.10"]),
        (BRIDGED[::-1], "br0", ["fe80::2", "192.0.2.10"]),
        ((BRIDGED[0], GuestNic("bond0", "02:00:00:00:00:01")), "eth1", ["fe80::1"]),
    ],
    ids=["label", "label first", "label alone", "bridge", "bridge first", "bond without addresses"],
)
def test_addresses_of_labels_and_bridges_belong_to_the_nic(
    agent: tuple[GuestNic, ...], name: str, ips: list[str]
) -> None:
    found = entries_after(vmi(nic("iface1")), agent)[1]
    assert (found["interfaceName"], found["ipAddress"], found["ipAddresses"]) == (name, ips[0], ips)


def test_a_nic_that_the_agent_no_longer_lists_loses_the_agent_fields() -> None:
    view = guest("default", "iface1")
    listed = (GuestNic("eth1", "02:00:00:00:00:01", ("10.0.0.9",)),)
    done = reported(vmi(nic("iface1")), guest=view, agent=listed)
    found = plan_report(observed(done, attached_pod("iface1"), guest=view, agent=(), pod_links=None))
    entry = after(found)[1]
    assert entry["infoSource"] == "domain"
    assert not {"interfaceName", "ipAddress", "ipAddresses"} & entry.keys()


def test_a_device_that_is_gone_from_the_domain_loses_its_tokens() -> None:
    done = reported(vmi(nic("iface1")), guest=guest("default", "iface1"))
    found = plan_report(observed(done, attached_pod("iface1"), guest=guest("default"), pod_links=None))
    assert [entry["name"] for entry in after(found)] == ["default"]


def test_free_slots_are_counted_for_this_pod() -> None:
    view = guest("default", "iface1", free=())
    done = reported(vmi(nic("iface1")), guest=view)
    found = plan_report(observed(done, attached_pod("iface1"), guest=view, pod_links=None))
    assert found is not None
    assert found.ops == [
        {"op": "test", "path": "/metadata/uid", "value": done.metadata.uid},
        {"op": "add", "path": "/metadata/annotations/hotnic.io~1nic-slots", "value": slots(free=0)[NIC_SLOTS]},
    ]
    assert found.confirmed == []


def test_the_action_has_the_operation_of_the_annotation() -> None:
    operation = Operation(
        id="op-1", kind=OperationKind.PLUG, interface="iface1", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    )
    machine = vmi(nic("iface1"), annotations={operation_key("iface1"): encode_annotation(operation)})
    assert plugged(plan_plugs(observed(machine, attached_pod("iface1")))).nic.operation == operation


def test_a_token_is_gained_by_name_whatever_else_the_list_has() -> None:
    before: list[Entry] = [{"name": "a"}, {"name": []}, {"name": "b", "infoSource": "domain"}]
    after: list[Entry] = [{"name": name, "infoSource": "domain"} for name in ("a", "b", "c", [], {}, "")]
    assert gained_token(before, after, DOMAIN) == ["a", "c"]
    assert parse_tokens({"infoSource": "domain," + "," * 1_000_000}) == {DOMAIN}
    assert len(parse_tokens({"infoSource": ",".join(map(str, range(100_000)))})) < 300
