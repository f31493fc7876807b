"""Tables of the controller's plans for the pod's annotation and the VMI's status."""

import msgspec
import pytest

from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
    parse_networks,
)
from schemas.kubernetes.objects import Condition
from schemas.kubernetes.operations import Operation, encode_annotation, held_by, operation_key
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.common.reconcile import Reject
from services.controller.plan import PatchObject, plan
from services.controller.plan.actions import pod_annotated_event
from tests.support.observed import objects
from tests.support.observed.observations import controller_observed

LINK = pod_interface("iface1")
ELEMENT = NetworkSelectionElement(name="net1", namespace="default", interface=LINK)
ATTACHED = NetworkStatus(name="default/net1", interface=LINK, mac="02:00:00:00:00:01")
OPERATION = Operation("op1", OperationKind.PLUG, "iface1")


def annotations_of(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode_annotation(operation) for operation in operations}


def annotations(elements: list[NetworkSelectionElement], statuses: list[NetworkStatus] | None = None) -> dict[str, str]:
    found = {NETWORKS: encode_networks(elements)}
    if statuses is not None:
        found[NETWORK_STATUS] = encode_network_status(statuses)
    return found


def test_interface_is_annotated_with_its_operation_and_published() -> None:
    vmi, pod = objects.vmi(objects.nic("iface1"), annotations=annotations_of(OPERATION)), objects.pod({"a": "b"})
    (action,) = plan(controller_observed(None, vmi, pod))
    assert isinstance(action, PatchObject)
    values = {op["path"]: op["value"] for op in action.ops if op["op"] == "add"}
    assert values["/metadata/annotations/k8s.v1.cni.cncf.io~1networks"] == (
        '[{"name":"net1","namespace":"default","interface":"' + LINK + '"}]'
    )
    written = encode_annotation(held_by(OPERATION, objects.POD_UID))
    assert values[f"/metadata/annotations/hotnic.io~1operation.{LINK[3:]}"] == written
    event = pod_annotated_event(action.added_attachments[0], vmi, pod, 1)
    assert event.operation == OPERATION
    assert str(event.subject) == "hotplug.pod-annotated.node1.default.vm1"


def test_interfaces_on_one_network_have_an_element_each() -> None:
    operations = (Operation("one", OperationKind.PLUG, "a"), Operation("two", OperationKind.PLUG, "b"))
    vmi = objects.vmi(objects.nic("a"), objects.nic("b"), annotations=annotations_of(*operations))
    (action,) = plan(controller_observed(None, vmi, objects.pod(annotations([ELEMENT]))))
    assert isinstance(action, PatchObject)
    assert [(added.operation.interface, added.pod_interface) for added in action.added_attachments] == [
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


def test_annotation_patch_is_guarded_by_the_observed_value() -> None:
    other = NetworkSelectionElement(name="other", interface="net7x")
    vmi = objects.vmi(objects.nic("iface1"), annotations=annotations_of(OPERATION))
    pod = objects.pod(annotations([other]))
    (action,) = plan(controller_observed(None, vmi, pod))
    assert isinstance(action, PatchObject)
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
            objects.vmi(objects.nic("iface1"), phase="Scheduled", annotations=annotations_of(OPERATION)),
            objects.pod(),
        ),
        ("no pod", objects.vmi(objects.nic("iface1")), None),
        (
            "pod being deleted",
            objects.vmi(objects.nic("iface1")),
            objects.pod(deletionTimestamp="2026-01-01T00:00:00Z"),
        ),
        ("migrating", objects.vmi(objects.nic("iface1"), migrationState={"targetNode": "node2"}), objects.pod()),
        (
            "annotated already",
            objects.vmi(objects.nic("iface1"), annotations=annotations_of(OPERATION)),
            objects.pod(annotations([ELEMENT])),
        ),
        ("only the primary", objects.vmi(), objects.pod()),
    ],
)
def test_no_action_is_planned(reason: str, vmi: object, pod: object) -> None:
    assert plan(controller_observed(None, vmi, pod)) == [], reason  # type: ignore[arg-type]


def test_completed_migration_does_not_block() -> None:
    vmi = objects.vmi(objects.nic("iface1"), migrationState={"completed": True})
    assert len(plan(controller_observed(None, vmi, objects.pod()))) == 1


def test_absent_interface_keeps_its_element_until_this_pod_has_released_it() -> None:
    absent = objects.nic("iface1", state="absent")
    pod = objects.pod(annotations([ELEMENT]))
    for uid, actions in ((None, 0), ("another pod", 0), (objects.POD_UID, 1)):
        released = Operation("op2", OperationKind.UNPLUG, "iface1", released=uid)
        vmi = objects.vmi(absent, annotations=annotations_of(released))
        assert len(plan(controller_observed(None, vmi, pod))) == actions


def test_pod_with_ordinal_names_gets_further_ordinals() -> None:
    first = NetworkSelectionElement(name="net1", namespace="default", interface="net1")
    plugs = annotations_of(Operation("a1", OperationKind.PLUG, "a"), Operation("b1", OperationKind.PLUG, "b"))
    entries = [{"name": "a", "infoSource": "domain, multus-status", "podInterfaceName": "net1"}]
    vmi = objects.vmi(objects.nic("a"), objects.nic("b"), annotations=plugs, status=entries)
    pod = objects.pod(annotations([first], [NetworkStatus("default/net1", "net1")]))
    (action,) = plan(controller_observed(None, vmi, pod))
    assert isinstance(action, PatchObject)
    assert [added.pod_interface for added in action.added_attachments] == ["net2"]


def test_plug_beside_an_attachment_of_the_template_keeps_its_bytes_and_gets_a_link_of_its_own() -> None:
    foreign = '{"name":"backup", "namespace":"tenant", "example.com/tier": 1.0}'
    red = '{"name":"net-a","namespace":"default","interface":"podb1f51a511f1"}'
    statuses = [NetworkStatus("tenant/backup", "net1"), NetworkStatus("default/net-a", "podb1f51a511f1")]
    pod = objects.pod({NETWORKS: f"[{foreign},{red}]", NETWORK_STATUS: encode_network_status(statuses)})
    entries = [{"name": "red", "infoSource": "domain, multus-status", "podInterfaceName": "podb1f51a511f1"}]
    plug = annotations_of(Operation("op", OperationKind.PLUG, "blue"))
    vmi = objects.vmi(objects.nic("red", "net-a"), objects.nic("blue", "net-b"), annotations=plug, status=entries)
    (action,) = plan(controller_observed(None, vmi, pod))
    assert isinstance(action, PatchObject)
    (text,) = [op["value"] for op in action.ops if op["op"] == "add" and op["path"].endswith("~1networks")]
    blue = '{"name":"net-b","namespace":"default","interface":"pod16477688c0e"}'
    assert text == f"[{red},{blue},{foreign}]"


def test_element_has_no_mac_that_the_attachment_would_fail_of_and_a_normalized_one_otherwise() -> None:
    plugs = annotations_of(Operation("a1", OperationKind.PLUG, "a"), Operation("b1", OperationKind.PLUG, "b"))
    bad, good = objects.nic("a", macAddress="ff:ff:ff:ff:ff:ff"), objects.nic("b", macAddress="0200.0000.0001")
    (action,) = plan(controller_observed(None, objects.vmi(bad, good, annotations=plugs), objects.pod()))
    assert isinstance(action, PatchObject)
    (values,) = [op["value"] for op in action.ops if op["op"] == "add"]
    assert [element.mac for element in parse_networks(values[NETWORKS])] == [None, "02:00:00:00:00:01"]


def test_pod_that_is_not_ready_gets_its_attachment() -> None:
    pod = objects.pod()
    conditions = [Condition("Ready", "False", reason="ContainersNotReady")]
    pod = msgspec.structs.replace(pod, status=msgspec.structs.replace(pod.status, conditions=conditions))
    vmi = objects.vmi(objects.nic("iface1"), annotations=annotations_of(OPERATION))
    (action,) = plan(controller_observed(None, vmi, pod))
    assert isinstance(action, PatchObject)
    assert [added.pod_interface for added in action.added_attachments] == [LINK]


def test_multus_status_token_is_added_and_other_tokens_stay() -> None:
    entries = [{"name": "default", "infoSource": "domain"}, {"name": "iface1", "infoSource": "domain", "mac": "02:.."}]
    vmi = objects.vmi(objects.nic("iface1"), status=entries)
    (action,) = plan(controller_observed(None, vmi, objects.pod(annotations([ELEMENT], [ATTACHED]))))
    assert isinstance(action, PatchObject)
    assert action.ops[0] == {"op": "test", "path": "/status/interfaces", "value": entries}
    assert action.ops[1]["value"] == [
        entries[0],
        {"name": "iface1", "infoSource": "domain, multus-status", "mac": "02:..", "podInterfaceName": LINK},
    ]
    done = objects.vmi(objects.nic("iface1"), status=action.ops[1]["value"])
    assert plan(controller_observed(None, done, objects.pod(annotations([ELEMENT], [ATTACHED])))) == []


def test_multus_status_token_is_removed_with_the_attachment() -> None:
    entries = [{"name": "iface1", "infoSource": "multus-status", "podInterfaceName": LINK}]
    vmi = objects.vmi(objects.nic("iface1"), status=entries, annotations=annotations_of(OPERATION))
    (action,) = plan(controller_observed(None, vmi, objects.pod(annotations([ELEMENT], []))))
    assert isinstance(action, PatchObject)
    assert action.ops[1]["value"] == []


def test_malformed_annotation_is_rejected() -> None:
    with pytest.raises(Reject, match="MalformedObject"):
        plan(controller_observed(None, objects.vmi(objects.nic("iface1")), objects.pod({NETWORKS: "[{"})))
