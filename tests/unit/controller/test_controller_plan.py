"""What the controller does with the pod and the status of a VMI, as a table."""

import pytest

from schemas.names import pod_interface
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
    parse_networks,
)
from schemas.operations import Operation, encode, operation_key
from schemas.stages import OperationKind
from services.common.reconcile import Reject
from services.controller.plan import Observed, Patch, plan
from services.controller.plan.actions import pod_annotated
from tests.support import objects

LINK = pod_interface("iface1")
ELEMENT = NetworkSelectionElement(name="net1", namespace="default", interface=LINK)
ATTACHED = NetworkStatus(name="default/net1", interface=LINK, mac="02:00:00:00:00:01")
OPERATION = Operation("op1", OperationKind.PLUG, "iface1")


def noted(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode(operation) for operation in operations}


def annotations(elements: list[NetworkSelectionElement], statuses: list[NetworkStatus] | None = None) -> dict[str, str]:
    found = {NETWORKS: encode_networks(elements)}
    if statuses is not None:
        found[NETWORK_STATUS] = encode_network_status(statuses)
    return found


def test_a_plugged_interface_is_annotated_with_its_operation_and_published() -> None:
    vmi, pod = objects.vmi(objects.nic("iface1"), annotations=noted(OPERATION)), objects.pod({"a": "b"})
    (action,) = plan(Observed(vmi, pod))
    assert isinstance(action, Patch)
    values = {op["path"]: op["value"] for op in action.ops if op["op"] == "add"}
    assert values["/metadata/annotations/k8s.v1.cni.cncf.io~1networks"] == (
        '[{"name":"net1","namespace":"default","interface":"' + LINK + '"}]'
    )
    assert values[f"/metadata/annotations/hotnic.io~1operation.{LINK[3:]}"] == encode(OPERATION)
    event = pod_annotated(action.gained[0], vmi, pod, 1)
    assert event.operation == OPERATION
    assert str(event.subject) == "hotplug.pod-annotated.node1.default.vm1"


def test_several_nics_on_one_network_are_several_elements() -> None:
    operations = (Operation("one", OperationKind.PLUG, "a"), Operation("two", OperationKind.PLUG, "b"))
    vmi = objects.vmi(objects.nic("a"), objects.nic("b"), annotations=noted(*operations))
    (action,) = plan(Observed(vmi, objects.pod(annotations([ELEMENT]))))
    assert isinstance(action, Patch)
    assert [(gained.operation.interface, gained.pod_interface) for gained in action.gained] == [
        ("a", pod_interface("a")),
        ("b", pod_interface("b")),
    ]
    (text,) = [op["value"] for op in action.ops if op["op"] == "add" and op["path"].endswith("~1networks")]
    elements = parse_networks(text)
    assert [(e.name, e.requested_interface) for e in elements] == [
        ("net1", pod_interface("a")),
        ("net1", pod_interface("b")),
        ("net1", LINK),
    ]


def test_the_patch_is_guarded_by_what_was_seen() -> None:
    other = NetworkSelectionElement(name="other", interface="net7x")
    vmi = objects.vmi(objects.nic("iface1"), annotations=noted(OPERATION))
    pod = objects.pod(annotations([other]))
    (action,) = plan(Observed(vmi, pod))
    assert isinstance(action, Patch)
    assert action.ops[0] == {
        "op": "test",
        "path": "/metadata/annotations/k8s.v1.cni.cncf.io~1networks",
        "value": encode_networks([other]),
    }
    (add,) = [op for op in action.ops if op["op"] == "add" and op["path"].endswith("networks")]
    assert parse_networks(add["value"]) == [ELEMENT, other]


@pytest.mark.parametrize(
    ("reason", "vmi", "pod"),
    [
        (
            "not running",
            objects.vmi(objects.nic("iface1"), phase="Scheduled", annotations=noted(OPERATION)),
            objects.pod(),
        ),
        ("no pod", objects.vmi(objects.nic("iface1")), None),
        ("pod going away", objects.vmi(objects.nic("iface1")), objects.pod(deletionTimestamp="2026-01-01T00:00:00Z")),
        ("migrating", objects.vmi(objects.nic("iface1"), migrationState={"targetNode": "node2"}), objects.pod()),
        (
            "annotated already",
            objects.vmi(objects.nic("iface1"), annotations=noted(OPERATION)),
            objects.pod(annotations([ELEMENT])),
        ),
        ("only the primary", objects.vmi(), objects.pod()),
    ],
)
def test_nothing_is_done(reason: str, vmi: object, pod: object) -> None:
    assert plan(Observed(vmi, pod)) == [], reason  # type: ignore[arg-type]


def test_a_finished_migration_no_longer_holds_anything_up() -> None:
    vmi = objects.vmi(objects.nic("iface1"), migrationState={"completed": True})
    assert len(plan(Observed(vmi, objects.pod()))) == 1


def test_an_absent_interface_keeps_its_element_until_this_pod_has_released_it() -> None:
    gone = objects.nic("iface1", state="absent")
    pod = objects.pod(annotations([ELEMENT]))
    for uid, actions in ((None, 0), ("another pod", 0), (objects.POD_UID, 1)):
        released = Operation("op2", OperationKind.UNPLUG, "iface1", released=uid)
        vmi = objects.vmi(gone, annotations=noted(released))
        assert len(plan(Observed(vmi, pod))) == actions


def test_a_pod_with_ordinal_names_goes_on_with_ordinals() -> None:
    first = NetworkSelectionElement(name="net1", namespace="default", interface="net1")
    plugs = noted(Operation("a1", OperationKind.PLUG, "a"), Operation("b1", OperationKind.PLUG, "b"))
    vmi = objects.vmi(objects.nic("a"), objects.nic("b"), annotations=plugs)
    pod = objects.pod(annotations([first]))
    (action,) = plan(Observed(vmi, pod))
    assert isinstance(action, Patch)
    assert [gained.pod_interface for gained in action.gained] == ["net2"]


def test_the_status_follows_what_multus_has_attached_and_leaves_other_tokens_alone() -> None:
    entries = [{"name": "default", "infoSource": "domain"}, {"name": "iface1", "infoSource": "domain", "mac": "02:.."}]
    vmi = objects.vmi(objects.nic("iface1"), status=entries)
    (action,) = plan(Observed(vmi, objects.pod(annotations([ELEMENT], [ATTACHED]))))
    assert isinstance(action, Patch)
    assert action.ops[0] == {"op": "test", "path": "/status/interfaces", "value": entries}
    assert action.ops[1]["value"] == [
        entries[0],
        {"name": "iface1", "infoSource": "domain, multus-status", "mac": "02:..", "podInterfaceName": LINK},
    ]
    done = objects.vmi(objects.nic("iface1"), status=action.ops[1]["value"])
    assert plan(Observed(done, objects.pod(annotations([ELEMENT], [ATTACHED])))) == []


def test_the_token_goes_when_the_attachment_is_gone() -> None:
    entries = [{"name": "iface1", "infoSource": "multus-status", "podInterfaceName": LINK}]
    vmi = objects.vmi(objects.nic("iface1"), status=entries, annotations=noted(OPERATION))
    (action,) = plan(Observed(vmi, objects.pod(annotations([ELEMENT], []))))
    assert isinstance(action, Patch)
    assert action.ops[1]["value"] == []


def test_an_annotation_that_cannot_be_read_is_said_so() -> None:
    with pytest.raises(Reject, match="MalformedObject"):
        plan(Observed(objects.vmi(objects.nic("iface1")), objects.pod({NETWORKS: "[{"})))
