"""Tables of the api's answers to addinterface on a VMI."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.networks import RESOURCE_NAME
from schemas.kubernetes.objects import NetworkAttachmentDefinition, VirtualMachineInstance
from schemas.kubernetes.operations import (
    NIC_SLOTS,
    NicSlots,
    Operation,
    encode_annotation,
    operation_key,
    read_operation,
)
from schemas.kubernetes.options import AddInterfaceOptions
from schemas.names import interface_hash
from schemas.stages import OperationKind
from services.api.plan import ChangeObject, JoinOperation, Observed, RefuseRequest, RequestTarget, plan
from tests.support.observed import objects
from tests.support.observed.observations import TRACEPARENT, api_observed


def observation(
    vmi: VirtualMachineInstance | None,
    name: str = "iface1",
    network: str = "net1",
    nad: NetworkAttachmentDefinition | None = None,
    **fields: Any,
) -> Observed:
    return api_observed(
        RequestTarget.VMI,
        AddInterfaceOptions(network, name),
        vmi=vmi,
        nad=objects.nad() if nad is None and not fields.pop("nad_missing", False) else nad,
        pod=objects.pod() if vmi else None,
        **fields,
    )


def slots(free: int, pod_uid: str = objects.POD_UID) -> dict[str, str]:
    return {NIC_SLOTS: encode_annotation(NicSlots(free=free, nics=8, pod_uid=pod_uid))}


def annotations_of(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode_annotation(operation) for operation in operations}


OTHER = objects.nic("other")
OTHER_IN_DOMAIN = [{"name": "other", "infoSource": "domain, multus-status"}]
FAILED = Operation("failed", OperationKind.PLUG, "other", failed="NoFreeSlot")

REFUSALS = [
    ("unknown VMI", observation(None), 404, "not found"),
    ("not running", observation(objects.vmi(phase="Scheduling")), 409, "VMI is not running"),
    ("unknown NAD", observation(objects.vmi(), nad_missing=True), 404, 'not found in namespace "default"'),
    ("name taken by the pod network", observation(objects.vmi(), name="default"), 409, "taken by the pod network"),
    (
        "name taken by another NAD",
        observation(objects.vmi(objects.nic("iface1", "net2"))),
        409,
        "taken by network attachment",
    ),
    (
        "attached already",
        observation(objects.vmi(objects.nic("iface1"), status=[{"name": "iface1", "infoSource": "domain"}])),
        409,
        "is taken",
    ),
    ("being unplugged", observation(objects.vmi(objects.nic("iface1", state="absent"))), 409, "being unplugged"),
    (
        "being unplugged by the template",
        observation(objects.vmi(owned=True), vm=objects.vm(objects.nic("iface1", state="absent"))),
        409,
        "is being unplugged from VM vm1",
    ),
    (
        "link names collide",
        observation(objects.vmi(objects.nic(objects.COLLIDING[0])), name=objects.COLLIDING[1]),
        409,
        "has the same link names",
    ),
    (
        "failed for good",
        observation(
            objects.vmi(
                objects.nic("iface1"),
                annotations=annotations_of(Operation("p", OperationKind.PLUG, "iface1", failed="NoFreeSlot")),
            )
        ),
        409,
        "whose plug failed (NoFreeSlot)",
    ),
    ("unreadable spec", observation(objects.vmi(({"bridge": {}}, {"name": "x"}))), 422, "cannot be read"),
    ("no slot", observation(objects.vmi(annotations=slots(0))), 409, "no free slot"),
    (
        "a pending plug takes the last slot",
        observation(objects.vmi(OTHER, annotations=slots(1))),
        409,
        "plugs in progress: 1",
    ),
    ("macvlan", observation(objects.vmi(), nad=objects.nad('{"type":"macvlan","mode":"bridge"}')), 422, "macvlan"),
    ("ipvlan in a list", observation(objects.vmi(), nad=objects.nad('{"plugins":[{"type":"ipvlan"}]}')), 422, "ipvlan"),
]


@pytest.mark.parametrize(("observed", "code", "text"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_impossible_request_is_refused_with_the_reason(observed: Observed, code: int, text: str) -> None:
    answer = plan(observed)
    assert isinstance(answer, RefuseRequest)
    assert answer.code == code
    assert text in answer.message


def test_template_of_a_vm_that_does_not_own_the_vmi_is_ignored() -> None:
    observed = observation(objects.vmi(), vm=objects.vm(objects.nic("iface1", state="absent")))
    assert isinstance(plan(observed), ChangeObject)


def test_add_patches_both_lists_and_the_operation_under_guard() -> None:
    vmi = objects.vmi(annotations={"some": "thing"})
    answer = plan(observation(vmi))
    assert isinstance(answer, ChangeObject)
    assert [(op["op"], op["path"]) for op in answer.ops] == [
        ("test", "/spec/networks"),
        ("test", "/spec/domain/devices/interfaces"),
        ("test", f"/metadata/annotations/hotnic.io~1operation.{interface_hash('iface1')}"),
        ("add", "/spec/networks"),
        ("add", "/spec/domain/devices/interfaces"),
        ("add", f"/metadata/annotations/hotnic.io~1operation.{interface_hash('iface1')}"),
    ]
    assert answer.ops[0]["value"] == vmi.spec.networks
    assert answer.ops[2]["value"] is None
    assert answer.ops[3]["value"][-1] == {"name": "iface1", "multus": {"networkName": "net1"}}
    assert answer.ops[4]["value"][-1] == {"name": "iface1", "bridge": {}}
    written = read_operation({operation_key("iface1"): answer.ops[5]["value"]}, "iface1")
    assert written == answer.operation
    assert written is not None
    assert written.traceparent == TRACEPARENT


def test_first_annotation_is_guarded_by_the_resource_version() -> None:
    answer = plan(observation(objects.vmi()))
    assert isinstance(answer, ChangeObject)
    assert {"op": "test", "path": "/metadata/resourceVersion", "value": "100"} in answer.ops


def test_event_names_the_patched_version() -> None:
    vmi = objects.vmi()
    answer = plan(observation(vmi))
    assert isinstance(answer, ChangeObject)
    event = answer.requested_event(vmi)
    assert str(event.subject) == "hotplug.requested.node1.default.vm1"
    assert event.changed is not None
    assert event.changed.resource_version == "100"
    assert event.network == "default/net1"


def test_identical_request_joins_the_operation_in_progress() -> None:
    operation = Operation("op1", OperationKind.PLUG, "iface1")
    vmi = objects.vmi(objects.nic("iface1"), annotations={operation_key("iface1"): encode_annotation(operation)})
    for network in ("net1", "default/net1"):
        assert plan(observation(vmi, network=network)) == JoinOperation(operation)


@pytest.mark.parametrize(
    "vmi",
    [
        objects.vmi(OTHER, annotations=slots(2)),
        objects.vmi(OTHER, status=OTHER_IN_DOMAIN, annotations=slots(1)),
        objects.vmi(objects.nic("other", state="absent"), annotations=slots(1)),
        objects.vmi(OTHER, annotations=slots(1) | annotations_of(FAILED)),
        objects.vmi(({"name": "other", "sriov": {}}, OTHER[1]), annotations=slots(1)),
    ],
    ids=["room for both", "in the domain", "being unplugged", "failed", "another binding"],
)
def test_only_a_pending_plug_takes_a_free_slot_and_the_count_is_guarded(
    vmi: VirtualMachineInstance,
) -> None:
    answer = plan(observation(vmi))
    assert isinstance(answer, ChangeObject)
    path = "/metadata/annotations/hotnic.io~1nic-slots"
    assert answer.ops[0] == {"op": "test", "path": path, "value": vmi.metadata.annotations[NIC_SLOTS]}


def test_slot_count_of_an_earlier_pod_is_ignored() -> None:
    assert isinstance(plan(observation(objects.vmi(annotations=slots(0, pod_uid="another")))), ChangeObject)


def test_nad_of_another_namespace_keeps_its_namespace() -> None:
    answer = plan(observation(objects.vmi(), network="other/net1"))
    assert isinstance(answer, ChangeObject)
    assert answer.network == "other/net1"
    assert answer.ops[2]["value"][-1]["multus"] == {"networkName": "other/net1"}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ('{"type":"bridge"}', None),
        ('{"cniVersion":"0.2.0","type":"bridge"}', None),
        ('{"cniVersion":"2.0.0","cniVersions":["1.0.0"],"type":"bridge"}', None),
        ('{"type":"macvlan","mode":"passthru"}', None),
        ('{"plugins":[{"type":"bridge"},{"type":"tuning"}]}', None),
        ("", None),
        ('{"type":"macvlan"}', "creates macvlan links"),
        ('{"plugins":[{"type":"tuning"},{"type":"macvlan","master":"eth1"}]}', "creates macvlan links"),
        ('{"plugins":[{"type":"bridge"},{"type":"ipvlan"}]}', "creates ipvlan links"),
        ("not json", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"name":"x"}', "names no plugin"),
        ('{"plugins":["x"]}', "names no plugin"),
        ('{"plugins":{}}', "names no plugin"),
        ('{"cniVersion":"2.0.0","type":"bridge"}', "cniVersion '2.0.0'"),
        ('{"type":"bridge","x":"%s"}' % ("x" * 65536), "the limit is 65536"),
        ('{"plugins":[%s{"type":"a"}]}' % ('{"type":"a"},' * 32), "33 plugins; the limit is 32"),
    ],
)
def test_nad_that_cannot_be_attached_is_refused(config: str, why: str | None) -> None:
    answer = plan(observation(objects.vmi(), nad=objects.nad(config)))
    if why is None:
        assert isinstance(answer, ChangeObject)
        assert bool(answer.warnings) is not bool(config)
    else:
        assert isinstance(answer, RefuseRequest)
        assert (answer.code, why in answer.message) == (422, True)


@pytest.mark.parametrize(
    ("resource", "refused"), [("vendor.example/vf", True), ("bridge.network.kubevirt.io/br1", False)]
)
def test_nad_of_a_device_plugin_is_refused_while_the_vm_runs(resource: str, refused: bool) -> None:
    nad = objects.nad()
    metadata = msgspec.structs.replace(nad.metadata, annotations={RESOURCE_NAME: resource})
    nad = msgspec.structs.replace(nad, metadata=metadata)
    answer = plan(observation(objects.vmi(), nad=nad))
    assert isinstance(answer, RefuseRequest) is refused
    if isinstance(answer, RefuseRequest):
        assert (answer.code, resource in answer.message) == (422, True)
