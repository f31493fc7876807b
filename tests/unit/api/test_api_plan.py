"""What the api answers to addinterface on a VMI, as a table."""

from typing import Any

import pytest

from schemas.kube import NetworkAttachmentDefinition, VirtualMachineInstance
from schemas.names import interface_hash
from schemas.operations import NIC_SLOTS, NicSlots, Operation, encode, operation_key, operation_of
from schemas.options import AddInterfaceOptions
from schemas.stages import OperationKind
from services.api.plan import Change, Joined, Observed, Refuse, Target, plan
from services.api.plan.checks import unbridgeable
from tests.support import objects

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def seen(
    vmi: VirtualMachineInstance | None,
    name: str = "iface1",
    network: str = "net1",
    nad: NetworkAttachmentDefinition | None = None,
    **fields: Any,
) -> Observed:
    return Observed(
        target=Target.VMI,
        namespace=objects.NAMESPACE,
        name="vm1",
        options=AddInterfaceOptions(network, name),
        vmi=vmi,
        nad=objects.nad() if nad is None and not fields.pop("nad_missing", False) else nad,
        pod=objects.pod() if vmi else None,
        fresh_id="33333333-3333-4333-8333-333333333333",
        now="2026-01-01T00:00:00Z",
        traceparent=TRACEPARENT,
        **fields,
    )


def slots(free: int, pod_uid: str = objects.POD_UID) -> dict[str, str]:
    return {NIC_SLOTS: encode(NicSlots(free=free, nics=8, pod_uid=pod_uid))}


def noted(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode(operation) for operation in operations}


OTHER = objects.nic("other")
LEFT = [{"name": "other", "infoSource": "domain, multus-status"}]
FAILED = Operation("failed", OperationKind.PLUG, "other", failed="NoFreeSlot")

REFUSALS = [
    ("unknown VMI", seen(None), 404, "not found"),
    ("not running", seen(objects.vmi(phase="Scheduling")), 409, "VMI is not running"),
    ("unknown NAD", seen(objects.vmi(), nad_missing=True), 404, 'not found in namespace "default"'),
    ("name taken by the pod network", seen(objects.vmi(), name="default"), 409, "taken by the pod network"),
    ("name taken by another NAD", seen(objects.vmi(objects.nic("iface1", "net2"))), 409, "taken by network attachment"),
    (
        "attached already",
        seen(objects.vmi(objects.nic("iface1"), status=[{"name": "iface1", "infoSource": "domain"}])),
        409,
        "is taken",
    ),
    ("being unplugged", seen(objects.vmi(objects.nic("iface1", state="absent"))), 409, "being unplugged"),
    (
        "on its way out of the template",
        seen(objects.vmi(owned=True), vm=objects.vm(objects.nic("iface1", state="absent"))),
        409,
        "is being unplugged from VM vm1",
    ),
    ("KubeVirt drives the NICs", seen(objects.vmi(), owned=False), 409, "KubeVirt drives the NICs"),
    (
        "the links' names are taken",
        seen(objects.vmi(objects.nic(objects.COLLIDING[0])), name=objects.COLLIDING[1]),
        409,
        "has the same link names",
    ),
    (
        "failed for good",
        seen(
            objects.vmi(
                objects.nic("iface1"),
                annotations=noted(Operation("p", OperationKind.PLUG, "iface1", failed="NoFreeSlot")),
            )
        ),
        409,
        "could not be plugged (NoFreeSlot)",
    ),
    ("unreadable spec", seen(objects.vmi(({"bridge": {}}, {"name": "x"}))), 422, "cannot be read"),
    ("no slot", seen(objects.vmi(annotations=slots(0))), 409, "no free slot"),
    ("the last slot is taken by one that comes", seen(objects.vmi(OTHER, annotations=slots(1))), 409, "1 on their way"),
    ("macvlan", seen(objects.vmi(), nad=objects.nad('{"type":"macvlan","mode":"bridge"}')), 422, "macvlan"),
    ("ipvlan in a list", seen(objects.vmi(), nad=objects.nad('{"plugins":[{"type":"ipvlan"}]}')), 422, "ipvlan"),
]


@pytest.mark.parametrize(("observed", "code", "text"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_a_request_that_cannot_be_done_is_refused_with_the_reason(observed: Observed, code: int, text: str) -> None:
    answer = plan(observed)
    assert isinstance(answer, Refuse)
    assert answer.code == code
    assert text in answer.message


def test_what_another_vm_of_that_name_wants_is_no_matter_of_this_vmi() -> None:
    observed = seen(objects.vmi(), vm=objects.vm(objects.nic("iface1", state="absent")))
    assert isinstance(plan(observed), Change)


def test_a_good_request_patches_both_lists_under_guard_and_carries_the_operation() -> None:
    vmi = objects.vmi(annotations={"some": "thing"})
    answer = plan(seen(vmi))
    assert isinstance(answer, Change)
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
    written = operation_of({operation_key("iface1"): answer.ops[5]["value"]}, "iface1")
    assert written == answer.operation
    assert written is not None
    assert written.traceparent == TRACEPARENT


def test_the_first_annotation_of_an_object_is_written_under_its_version() -> None:
    answer = plan(seen(objects.vmi()))
    assert isinstance(answer, Change)
    assert {"op": "test", "path": "/metadata/resourceVersion", "value": "100"} in answer.ops


def test_the_event_names_the_object_as_patched() -> None:
    vmi = objects.vmi()
    answer = plan(seen(vmi))
    assert isinstance(answer, Change)
    event = answer.event(vmi)
    assert str(event.subject) == "hotplug.requested.node1.default.vm1"
    assert event.changed is not None
    assert event.changed.resource_version == "100"
    assert event.network == "default/net1"


def test_an_identical_request_whose_operation_runs_joins_it() -> None:
    operation = Operation("op1", OperationKind.PLUG, "iface1")
    vmi = objects.vmi(objects.nic("iface1"), annotations={operation_key("iface1"): encode(operation)})
    for network in ("net1", "default/net1"):
        assert plan(seen(vmi, network=network)) == Joined(operation)


@pytest.mark.parametrize(
    "vmi",
    [
        objects.vmi(OTHER, annotations=slots(2)),
        objects.vmi(OTHER, status=LEFT, annotations=slots(1)),
        objects.vmi(objects.nic("other", state="absent"), annotations=slots(1)),
        objects.vmi(OTHER, annotations=slots(1) | noted(FAILED)),
        objects.vmi(({"name": "other", "sriov": {}}, OTHER[1]), annotations=slots(1)),
    ],
    ids=["room for both", "in the domain", "on its way out", "failed", "no card of ours"],
)
def test_only_a_card_that_will_come_takes_a_slot_from_the_next_and_the_count_is_guarded(
    vmi: VirtualMachineInstance,
) -> None:
    answer = plan(seen(vmi))
    assert isinstance(answer, Change)
    path = "/metadata/annotations/hotnic.io~1nic-slots"
    assert answer.ops[0] == {"op": "test", "path": path, "value": vmi.metadata.annotations[NIC_SLOTS]}


def test_slots_counted_for_an_earlier_pod_are_ignored() -> None:
    assert isinstance(plan(seen(objects.vmi(annotations=slots(0, pod_uid="another")))), Change)


def test_a_network_in_another_namespace_is_referred_to_whole() -> None:
    answer = plan(seen(objects.vmi(), network="other/net1"))
    assert isinstance(answer, Change)
    assert answer.network == "other/net1"
    assert answer.ops[2]["value"][-1]["multus"] == {"networkName": "other/net1"}


@pytest.mark.parametrize(
    ("config", "plugin"),
    [
        ('{"type":"bridge"}', None),
        ('{"type":"macvlan"}', "macvlan"),
        ('{"type":"macvlan","mode":"passthru"}', None),
        ('{"plugins":[{"type":"bridge"},{"type":"tuning"}]}', None),
        ("not json", None),
        ("[]", None),
        ('{"plugins":["x"]}', None),
        ("[" * 100_000, None),
    ],
)
def test_the_config_of_a_network_tells_whether_its_links_can_be_bridged(config: str, plugin: str | None) -> None:
    assert unbridgeable(config) == plugin
