"""What the api answers to removeinterface on a VMI, as a table."""

from typing import Any

import pytest

from schemas.kube import VirtualMachineInstance
from schemas.names import pod_interface
from schemas.networks import NETWORKS, NetworkSelectionElement, encode_networks
from schemas.operations import Operation, derived_id, encode, operation_key, operation_of
from schemas.options import RemoveInterfaceOptions
from schemas.stages import OperationKind, Stage
from services.api.plan import Change, Joined, Observed, Refuse, Target, plan
from tests.support import objects

LINK = pod_interface("iface1")
PLUGGED = Operation("plug", OperationKind.PLUG, "iface1")
HASHED = objects.pod({NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])})
ORDINAL = objects.pod({NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface="net1")])})
SRIOV = ({"name": "fast", "sriov": {}}, {"name": "fast", "multus": {"networkName": "net1"}})
DEFAULT_MULTUS = ({"name": "m", "bridge": {}}, {"name": "m", "multus": {"networkName": "net1", "default": True}})


def seen(vmi: VirtualMachineInstance | None, name: str = "iface1", **fields: Any) -> Observed:
    return Observed(
        **{
            "target": Target.VMI,
            "namespace": objects.NAMESPACE,
            "name": "vm1",
            "options": RemoveInterfaceOptions(name),
            "vmi": vmi,
            "pod": HASHED,
            "fresh_id": "33333333-3333-4333-8333-333333333333",
            "now": "2026-01-01T00:00:00Z",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            **fields,
        }
    )


def plugged(**fields: Any) -> VirtualMachineInstance:
    return objects.vmi(objects.nic("iface1"), annotations={operation_key("iface1"): encode(PLUGGED)}, **fields)


REFUSALS = [
    ("unknown VMI", seen(None), 404, "NotFound", 'virtualmachineinstance.kubevirt.io "vm1" not found'),
    ("not running", seen(plugged(phase="Scheduled")), 409, "Conflict", "VMI is not running"),
    ("KubeVirt drives the NICs", seen(plugged(), owned=False), 409, "Conflict", "KubeVirt drives the NICs"),
    ("unknown interface", seen(plugged(), "iface2"), 404, "NotFound", 'interface "iface2" not found'),
    ("primary", seen(plugged(), "default"), 422, "Invalid", 'state "absent" is not supported on default networks'),
    ("default network of multus", seen(objects.vmi(DEFAULT_MULTUS), "m"), 422, "Invalid", "primary network"),
    (
        "not bound by bridge",
        seen(objects.vmi(SRIOV), "fast"),
        422,
        "Invalid",
        '"fast" interface\'s state "absent" is supported only for bridge binding',
    ),
    ("no network", seen(objects.vmi(({"name": "x", "bridge": {}}, {"name": "y"})), "x"), 422, "Invalid", "no network"),
    ("ordinal names", seen(plugged(), pod=ORDINAL), 409, "Conflict", "ordinal interface names"),
    ("unreadable", seen(objects.vmi(({"bridge": {}}, {"name": "x"})), "x"), 422, "Invalid", "cannot be read"),
]


@pytest.mark.parametrize(
    ("observed", "code", "reason", "text"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_what_cannot_be_removed_is_refused_with_the_reason(
    observed: Observed, code: int, reason: str, text: str
) -> None:
    answer = plan(observed)
    assert isinstance(answer, Refuse)
    assert (answer.code, answer.reason) == (code, reason)
    assert text in answer.message


def test_removing_sets_absent_and_a_fresh_operation_in_one_guarded_patch() -> None:
    vmi = plugged()
    answer = plan(seen(vmi))
    assert isinstance(answer, Change)
    key = f"/metadata/annotations/hotnic.io~1operation.{LINK[3:]}"
    assert [(op["op"], op["path"]) for op in answer.ops] == [
        ("test", "/spec/networks"),
        ("test", "/spec/domain/devices/interfaces"),
        ("test", key),
        ("add", "/spec/domain/devices/interfaces"),
        ("add", key),
    ]
    assert answer.ops[2]["value"] == encode(PLUGGED)
    assert answer.ops[3]["value"] == [objects.PRIMARY, {"name": "iface1", "bridge": {}, "state": "absent"}]
    written = operation_of({operation_key("iface1"): answer.ops[4]["value"]}, "iface1")
    assert written == answer.operation
    assert (written.kind, written.released) == (OperationKind.UNPLUG, None)
    event = answer.event(vmi)
    assert (event.stage, event.node, event.network) == (Stage.REQUESTED, objects.NODE, "")


def test_a_plug_that_still_runs_can_be_removed() -> None:
    assert isinstance(plan(seen(plugged(), pod=None)), Change)


def test_the_same_removal_again_is_the_same_operation() -> None:
    unplug = Operation("unplug", OperationKind.UNPLUG, "iface1")
    gone = objects.nic("iface1", state="absent")
    vmi = objects.vmi(gone, annotations={operation_key("iface1"): encode(unplug)})
    assert plan(seen(vmi)) == Joined(unplug)
    edited = plan(seen(objects.vmi(gone)))
    assert isinstance(edited, Joined)
    assert edited.operation.id == derived_id(objects.VMI_UID, "iface1", OperationKind.UNPLUG, 1)
