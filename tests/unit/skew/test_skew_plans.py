"""Today's roles plan on the objects of an earlier version: they go on where it was, and remove nothing that is in use.

Each recorded moment is one at which a role may be replaced by a newer one.
"""

import json
from typing import Any

import msgspec
import pytest

from schemas.kubernetes.networks import parse_networks
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.kubernetes.options import OPERATION_HEADER
from schemas.multus import SandboxRecord
from schemas.names import device_alias, pod_interface
from schemas.stages import OperationKind
from services.common.domain.operations import find_acting_pod
from services.common.domain.status_interfaces import DOMAIN, parse_tokens
from services.common.guest.port import GuestView, NetDevice
from services.common.netlink.links import Link
from services.controller.plan import PatchObject, PatchTarget, StartOperations
from services.controller.plan import plan as plan_controller
from services.handler.plan import plan as plan_handler
from services.handler.plan.actions import RequestUnplug, SetLinkState, SetUpAndAttach, TearDown
from services.handler.pod_network.operations import ObservedLinks
from services.multus.records.sandbox import SandboxState, sandbox_view
from services.networks.plan import plan as plan_networks
from services.networks.plan.actions import Observed
from services.networks.plan.attachments import parse_attachments
from tests.support.observed.handler import observed_state
from tests.support.observed.networks_pods import NO_ISOLATION, short
from tests.support.observed.observations import controller_observed
from tests.support.skew.recording import RecordedSnapshot, Recording

NODE = "lab"
RED, BLUE, GREEN = (pod_interface(name) for name in ("red", "blue", "green"))
QUIET = (
    "red-guest-attached",
    "blue-guest-attached",
    "blue-link-down",
    "red-gone",
    "ordinary-attached",
    "other-vm-booted",
)
"""The moments at which no operation is in progress."""


def requested(recording: Recording, interface: str) -> str:
    """Return the operation of the first request to plug an interface."""
    exchanges = (one for one in recording.api_exchanges if json.loads(one["request"])["name"] == interface)
    operation: str = next(exchanges)["headers"][OPERATION_HEADER]
    return operation


def controller_actions(snapshot: RecordedSnapshot) -> list[Any]:
    found: list[Any] = []
    for vmi in snapshot.vmis:
        vm = next(vm for vm in snapshot.vms if vm.metadata.name == vmi.metadata.name)
        found += plan_controller(controller_observed(vm, vmi, find_acting_pod(vmi, snapshot.pods)))
    return found


def records(snapshot: RecordedSnapshot) -> dict[str, SandboxState]:
    """Return the multus daemon's records by pod UID."""
    found = [msgspec.json.decode(text, type=SandboxState) for text in snapshot.records.values()]
    return {record.pod_uid: record for record in found}


def networks_actions(snapshot: RecordedSnapshot, *, upstream: bool) -> list[str]:
    """Return the short form of the plans for all pods.

    :param upstream: whether the daemon is one without records.
    """
    found: list[str] = []
    for pod in snapshot.pods:
        record: SandboxRecord | None = None
        if not upstream:
            record = sandbox_view(records(snapshot)[pod.metadata.uid])
        attachments = parse_attachments(pod, record=record, unwritten=(), detached_links=())
        found += [short(action) for action in plan_networks(Observed(pod, NODE, attachments, NO_ISOLATION))]
    return found


def handler_actions(snapshot: RecordedSnapshot) -> list[str]:
    """Return the actions of a handler that has just started, on guest and pod: ``+`` attach, ``-`` unplug, ``~`` link.

    The domain has the devices that the VMI's status lists, and the pod has the links of the multus daemon's record.
    """
    _, vmi, pod = snapshot.machine()
    observed = observed_state(vmi, pod, guest=guest(vmi), **node_state(snapshot, pod))
    found = []
    for action in plan_handler(observed):
        match action:
            case SetUpAndAttach():
                found.append(f"+{action.nic.name}")
            case RequestUnplug():
                found.append(f"-{action.nic.name}")
            case TearDown():
                found.append(f"teardown {action.nic.name}")
            case SetLinkState() if action.changes:
                found.append(f"~{action.interface}")
    return found


def guest(vmi: VirtualMachineInstance) -> GuestView:
    """Return the domain that the VMI's status describes."""
    entries = [entry for entry in vmi.status.interfaces or () if DOMAIN in parse_tokens(entry)]
    aliases = [device_alias(entry["name"]) for entry in entries]
    devices = [
        NetDevice(alias, entry["mac"], entry.get("linkState") != "down", driver_active=True)
        for alias, entry in zip(aliases, entries, strict=True)
    ]
    return GuestView(dict(zip(aliases, devices, strict=True)), ("rp1", "rp2"))


def node_state(snapshot: RecordedSnapshot, pod: Pod) -> dict[str, Any]:
    """Return the sandbox and the links before a handler has changed them."""
    record = records(snapshot)[pod.metadata.uid]
    links = [
        Link(index=one.ifindex, name=one.ifname, kind=one.kind, mac=one.mac or "", mtu=one.mtu or 0, up=True)
        for one in record.attachments
    ]
    return {"sandbox_id": record.sandbox_id, "pod_links": ObservedLinks((Link(index=1, name="lo"), *links))}


@pytest.mark.parametrize("label", QUIET)
def test_nothing_is_planned_while_no_operation_is_in_progress(recording: Recording, label: str) -> None:
    snapshot = recording.snapshots[label]
    assert controller_actions(snapshot) == []
    assert networks_actions(snapshot, upstream=False) == networks_actions(snapshot, upstream=True) == []
    assert handler_actions(snapshot) == []


def test_a_requested_plug_is_annotated_with_its_operation(recording: Recording) -> None:
    snapshot = recording.snapshots["red-plug-requested"]
    (action,) = controller_actions(snapshot)
    assert isinstance(action, PatchObject)
    assert action.target is PatchTarget.POD
    (added,) = action.added_attachments
    assert (added.operation.id, added.pod_interface) == (requested(recording, "red"), RED)
    assert networks_actions(snapshot, upstream=False) == handler_actions(snapshot) == []


def test_a_plug_of_the_template_is_copied_to_the_vmi_with_its_operation(recording: Recording) -> None:
    snapshot = recording.snapshots["blue-plug-requested"]
    (action,) = controller_actions(snapshot)
    assert isinstance(action, StartOperations)
    (started,) = action.started
    assert (started.operation.id, started.operation.interface) == (requested(recording, "blue"), "blue")
    # The api has written it to the VM.
    assert (started.on_vm, started.on_vmi) == (False, True)
    assert action.vm is None
    assert networks_actions(snapshot, upstream=False) == handler_actions(snapshot) == []


@pytest.mark.parametrize("upstream", [False, True], ids=["with records", "without records"])
@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("red-pod-annotated", [f"+default/bridge-net@{RED}"]),
        ("red-multus-attached", []),
        ("green-failed", [f"+default/broken-net@{GREEN}"]),
        ("red-unplug-requested", []),
        ("red-guest-detached", []),
        ("red-unplug-unannotated", [f"-default/bridge-net@{RED}"]),
    ],
)
def test_networks_goes_on_with_its_half_of_an_operation(
    recording: Recording, label: str, expected: list[str], upstream: bool
) -> None:
    assert networks_actions(recording.snapshots[label], upstream=upstream) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("red-pod-annotated", []),
        ("red-multus-attached", ["+red"]),
        ("green-failed", []),
        ("red-unplug-requested", ["-red"]),
        ("red-guest-detached", []),
        ("red-unplug-unannotated", []),
    ],
)
def test_the_handler_goes_on_with_its_half_of_an_operation(
    recording: Recording, label: str, expected: list[str]
) -> None:
    assert handler_actions(recording.snapshots[label]) == expected


def test_a_released_interface_is_taken_out_of_the_annotation_and_no_other(recording: Recording) -> None:
    (action,) = controller_actions(recording.snapshots["red-guest-detached"])
    assert isinstance(action, PatchObject)
    (text,) = [op["value"] for op in action.ops if op["op"] == "add" and op["path"].endswith("~1networks")]
    assert [element.requested_interface for element in parse_networks(text)] == [BLUE]
    assert [operation.kind for operation in action.operations] == [OperationKind.UNPLUG]


@pytest.mark.parametrize("label", ["red-pod-annotated", "red-multus-attached", "red-unplug-requested", "green-failed"])
def test_the_controller_waits_for_the_other_roles(recording: Recording, label: str) -> None:
    assert controller_actions(recording.snapshots[label]) == []
