"""Tables of the api's answers to removeinterface on a VMI."""

from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORKS, NetworkSelectionElement, encode_networks
from schemas.kubernetes.objects import VirtualMachineInstance
from schemas.kubernetes.operations import (
    Operation,
    derive_operation_id,
    encode_annotation,
    operation_key,
    read_operation,
)
from schemas.kubernetes.options import RemoveInterfaceOptions
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage
from services.api.plan import ChangeObject, JoinOperation, Observed, RefuseRequest, RequestTarget, plan
from tests.support.observed import objects
from tests.support.observed.observations import api_observed

LINK = pod_interface("iface1")
PLUGGED = Operation("plug", OperationKind.PLUG, "iface1")
HASHED = objects.pod({NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])})
ORDINAL = objects.pod({NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface="net1")])})
IN_GUEST = {"name": "iface1", "infoSource": "domain"}
SRIOV = ({"name": "fast", "sriov": {}}, {"name": "fast", "multus": {"networkName": "net1"}})
DEFAULT_MULTUS = ({"name": "m", "bridge": {}}, {"name": "m", "multus": {"networkName": "net1", "default": True}})


def observation(vmi: VirtualMachineInstance | None, name: str = "iface1", **fields: Any) -> Observed:
    return api_observed(RequestTarget.VMI, RemoveInterfaceOptions(name), **{"vmi": vmi, "pod": HASHED, **fields})


def plugged(**fields: Any) -> VirtualMachineInstance:
    return objects.vmi(
        objects.nic("iface1"), annotations={operation_key("iface1"): encode_annotation(PLUGGED)}, **fields
    )


REFUSALS = [
    ("unknown VMI", observation(None), 404, "NotFound", 'virtualmachineinstance.kubevirt.io "vm1" not found'),
    ("not running", observation(plugged(phase="Scheduled")), 409, "Conflict", "VMI is not running"),
    ("unknown interface", observation(plugged(), "iface2"), 404, "NotFound", 'interface "iface2" not found'),
    (
        "primary",
        observation(plugged(), "default"),
        422,
        "Invalid",
        'state "absent" is not supported on default networks',
    ),
    ("default network of multus", observation(objects.vmi(DEFAULT_MULTUS), "m"), 422, "Invalid", "primary network"),
    (
        "does not use the bridge binding",
        observation(objects.vmi(SRIOV), "fast"),
        422,
        "Invalid",
        '"fast" interface\'s state "absent" is supported only for bridge binding',
    ),
    (
        "no network",
        observation(objects.vmi(({"name": "x", "bridge": {}}, {"name": "y"})), "x"),
        422,
        "Invalid",
        "no network",
    ),
    ("ordinal names", observation(plugged(status=[IN_GUEST]), pod=ORDINAL), 409, "Conflict", "ordinal interface names"),
    ("unreadable", observation(objects.vmi(({"bridge": {}}, {"name": "x"})), "x"), 422, "Invalid", "cannot be read"),
]


@pytest.mark.parametrize(
    ("observed", "code", "reason", "text"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_impossible_removal_is_refused_with_the_reason(observed: Observed, code: int, reason: str, text: str) -> None:
    answer = plan(observed)
    assert isinstance(answer, RefuseRequest)
    assert (answer.code, answer.reason) == (code, reason)
    assert text in answer.message


def test_remove_sets_absent_and_a_new_operation_in_one_guarded_patch() -> None:
    vmi = plugged()
    answer = plan(observation(vmi))
    assert isinstance(answer, ChangeObject)
    key = f"/metadata/annotations/hotnic.io~1operation.{LINK[3:]}"
    assert [(op["op"], op["path"]) for op in answer.ops] == [
        ("test", "/spec/networks"),
        ("test", "/spec/domain/devices/interfaces"),
        ("test", key),
        ("add", "/spec/domain/devices/interfaces"),
        ("add", key),
    ]
    assert answer.ops[2]["value"] == encode_annotation(PLUGGED)
    assert answer.ops[3]["value"] == [objects.PRIMARY, {"name": "iface1", "bridge": {}, "state": "absent"}]
    written = read_operation({operation_key("iface1"): answer.ops[4]["value"]}, "iface1")
    assert written == answer.operation
    assert (written.kind, written.released) == (OperationKind.UNPLUG, None)
    event = answer.requested_event(vmi)
    assert (event.stage, event.node, event.network) == (Stage.REQUESTED, objects.NODE, "")


def test_interface_with_a_plug_in_progress_can_be_removed() -> None:
    assert isinstance(plan(observation(plugged(), pod=None)), ChangeObject)


def test_repeated_removal_joins_the_operation() -> None:
    unplug = Operation("unplug", OperationKind.UNPLUG, "iface1")
    absent = objects.nic("iface1", state="absent")
    vmi = objects.vmi(absent, annotations={operation_key("iface1"): encode_annotation(unplug)})
    assert plan(observation(vmi)) == JoinOperation(unplug)
    edited = plan(observation(objects.vmi(absent)))
    assert isinstance(edited, JoinOperation)
    assert edited.operation.id == derive_operation_id(objects.VMI_UID, "iface1", OperationKind.UNPLUG, 1)
