"""What the api answers to requests about a VM, as tables: the template, and never the running VMI."""

from typing import Any

import pytest

from schemas.kube import VirtualMachine, VirtualMachineInstance
from schemas.networks import NETWORKS, NetworkSelectionElement, encode_networks
from schemas.operations import NIC_SLOTS, NicSlots, Operation, derived_id, encode, operation_key
from schemas.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.stages import OperationKind
from services.api.plan import Change, Joined, Observed, Refuse, Target, plan
from tests.support import objects

IFACE = objects.nic("iface1")
GONE = objects.nic("iface1", state="absent")
PLUG, UNPLUG = Operation("plug", OperationKind.PLUG, "iface1"), Operation("unplug", OperationKind.UNPLUG, "iface1")
NO_SLOT = {NIC_SLOTS: encode(NicSlots(free=0, nics=8, pod_uid=objects.POD_UID))}
LAST_SLOT = {NIC_SLOTS: encode(NicSlots(free=1, nics=7, pod_uid=objects.POD_UID))}
ORDINAL = objects.pod({NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface="net1")])})
DELETING = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


def noted(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode(operation) for operation in operations}


def seen(vm: VirtualMachine | None, vmi: VirtualMachineInstance | None = None, **fields: Any) -> Observed:
    return Observed(
        **{
            "target": Target.VM,
            "namespace": objects.NAMESPACE,
            "name": "vm1",
            "options": AddInterfaceOptions("net1", "iface1"),
            "vm": vm,
            "vmi": vmi,
            "pod": objects.pod() if vmi is not None else None,
            "nad": objects.nad(),
            "fresh_id": "fresh",
            "now": "2026-01-01T00:00:00Z",
            **fields,
        }
    )


def removing(
    vm: VirtualMachine | None, vmi: VirtualMachineInstance | None = None, name: str = "iface1", **fields: Any
) -> Observed:
    return seen(vm, vmi, options=RemoveInterfaceOptions(name), nad=None, **fields)


ADD_REFUSALS = [
    ("unknown VM", seen(None), 404, 'virtualmachine.kubevirt.io "vm1" not found'),
    ("being deleted", seen(objects.vm(**DELETING)), 409, "being deleted"),
    ("unknown NAD", seen(objects.vm(), nad=None), 404, 'not found in namespace "default"'),
    ("ipvlan", seen(objects.vm(), nad=objects.nad('{"type":"ipvlan"}')), 422, "ipvlan"),
    ("in the template already", seen(objects.vm(IFACE)), 409, "is taken by network attachment 'net1'"),
    ("being unplugged", seen(objects.vm(GONE)), 409, "is being unplugged"),
    (
        "links called alike",
        seen(objects.vm(objects.nic(objects.COLLIDING[0])), options=AddInterfaceOptions("net1", objects.COLLIDING[1])),
        409,
        "same link names",
    ),
    (
        "links called alike in the running VM",
        seen(
            objects.vm(),
            objects.vmi(objects.nic(objects.COLLIDING[0]), owned=True),
            options=AddInterfaceOptions("net1", objects.COLLIDING[1]),
        ),
        409,
        "same link names",
    ),
    ("network name taken", seen(objects.vm(({"name": "x", "bridge": {}}, {"name": "iface1"}))), 409, "network name"),
    ("no slot", seen(objects.vm(), objects.vmi(owned=True, annotations=NO_SLOT)), 409, "no free slot"),
    (
        "the last slot is the template's already",
        seen(objects.vm(objects.nic("other")), objects.vmi(owned=True, annotations=LAST_SLOT)),
        409,
        "1 on their way",
    ),
    (
        "another NIC runs",
        seen(objects.vm(), objects.vmi(objects.nic("iface1", "net2"), owned=True)),
        409,
        "in the running",
    ),
    ("the running one is unplugged", seen(objects.vm(), objects.vmi(GONE, owned=True)), 409, "is being unplugged"),
    (
        "done already",
        seen(
            objects.vm(IFACE, annotations=noted(PLUG)),
            objects.vmi(
                IFACE, owned=True, annotations=noted(PLUG), status=[{"name": "iface1", "infoSource": "domain"}]
            ),
        ),
        409,
        "is taken",
    ),
]

REMOVE_REFUSALS = [
    ("unknown VM", removing(None), 404, 'virtualmachine.kubevirt.io "vm1" not found'),
    ("being deleted", removing(objects.vm(IFACE, **DELETING)), 409, "being deleted"),
    ("unknown interface", removing(objects.vm()), 404, 'interface "iface1" not found'),
    ("only in the running VM", removing(objects.vm(), objects.vmi(IFACE, owned=True)), 404, "ask there"),
    ("primary", removing(objects.vm(), name="default"), 422, "primary network"),
    (
        "ordinal names",
        removing(objects.vm(IFACE), objects.vmi(IFACE, owned=True), pod=ORDINAL),
        409,
        "ordinal interface names",
    ),
]


@pytest.mark.parametrize(
    ("observed", "code", "text"),
    [row[1:] for row in [*ADD_REFUSALS, *REMOVE_REFUSALS]],
    ids=[f"add: {row[0]}" for row in ADD_REFUSALS] + [f"remove: {row[0]}" for row in REMOVE_REFUSALS],
)
def test_what_cannot_be_done_is_refused_with_the_reason(observed: Observed, code: int, text: str) -> None:
    answer = plan(observed)
    assert isinstance(answer, Refuse)
    assert answer.code == code
    assert text in answer.message


@pytest.mark.parametrize(
    "vmi",
    [
        None,
        objects.vmi(owned=True),
        objects.vmi(owned=True, phase="Scheduling"),
        objects.vmi(GONE, owned=False),
        objects.vmi(GONE, owned=True, phase="Succeeded"),
    ],
    ids=["stopped", "running", "starting", "another's VMI", "ended"],
)
def test_adding_changes_the_template_and_its_annotation(vmi: VirtualMachineInstance | None) -> None:
    answer = plan(seen(objects.vm(annotations={"some": "thing"}), vmi))
    assert isinstance(answer, Change)
    assert (answer.target, answer.operation.id, answer.network) == (Target.VM, "fresh", "default/net1")
    paths = [(op["op"], op["path"]) for op in answer.ops]
    assert paths[:2] == [
        ("test", "/spec/template/spec/networks"),
        ("test", "/spec/template/spec/domain/devices/interfaces"),
    ]
    values = {op["path"]: op["value"] for op in answer.ops if op["op"] == "add"}
    assert values["/spec/template/spec/networks"] == [objects.PRIMARY_NETWORK, IFACE[1]]
    assert values["/spec/template/spec/domain/devices/interfaces"] == [objects.PRIMARY, IFACE[0]]
    assert values[f"/metadata/annotations/{operation_key('iface1').replace('/', '~1')}"] == encode(answer.operation)


PRIMARY_OF_VMI = {"name": "lan", "bridge": {}}


@pytest.mark.parametrize(
    ("observed", "interface", "network"),
    [
        (seen(objects.vm(bare=True)), {"name": "default", "masquerade": {}}, {"name": "default", "pod": {}}),
        (
            seen(objects.vm(bare=True), default_binding="bridge"),
            {"name": "default", "bridge": {}},
            {"name": "default", "pod": {}},
        ),
        (seen(objects.vm(bare=True), objects.vmi(owned=True)), objects.PRIMARY, objects.PRIMARY_NETWORK),
    ],
    ids=["as hotnic has it", "as KubeVirt is configured", "as it runs"],
)
def test_a_pod_network_left_unsaid_is_written_down_or_it_would_be_lost_at_restart(
    observed: Observed, interface: dict[str, Any], network: dict[str, Any]
) -> None:
    answer = plan(observed)
    assert isinstance(answer, Change)
    values = {op["path"]: op["value"] for op in answer.ops if op["op"] == "add"}
    assert values["/spec/template/spec/networks"][0] == network
    assert values["/spec/template/spec/domain/devices/interfaces"][0] == interface


def test_a_nic_of_the_running_vm_becomes_permanent_by_its_own_operation() -> None:
    vmi = objects.vmi(IFACE, owned=True, annotations=noted(PLUG) | NO_SLOT)
    answer = plan(seen(objects.vm(), vmi))
    assert isinstance(answer, Change)
    assert answer.operation == PLUG


@pytest.mark.parametrize(
    "vmi",
    [objects.vmi(owned=True), objects.vmi(IFACE, owned=True, annotations=noted(PLUG))],
    ids=["not copied yet", "on its way"],
)
def test_an_identical_request_whose_operation_runs_joins_it(vmi: VirtualMachineInstance) -> None:
    assert plan(seen(objects.vm(IFACE, annotations=noted(PLUG)), vmi)) == Joined(PLUG)


def test_removing_marks_the_template_whether_the_vm_runs_or_not() -> None:
    for vmi in (None, objects.vmi(IFACE, owned=True), objects.vmi(owned=True)):
        answer = plan(removing(objects.vm(IFACE, annotations=noted(PLUG)), vmi))
        assert isinstance(answer, Change)
        assert (answer.target, answer.operation.kind) == (Target.VM, OperationKind.UNPLUG)
        values = {op["path"]: op["value"] for op in answer.ops if op["op"] == "add"}
        assert values["/spec/template/spec/domain/devices/interfaces"] == [objects.PRIMARY, GONE[0]]
        assert "/spec/template/spec/networks" not in values


def test_a_stopped_vm_asks_nothing_of_an_old_pod() -> None:
    assert isinstance(plan(removing(objects.vm(IFACE), None, pod=ORDINAL)), Change)


def test_removing_what_the_running_vm_loses_already_is_the_same_operation() -> None:
    answer = plan(removing(objects.vm(IFACE), objects.vmi(GONE, owned=True, annotations=noted(UNPLUG))))
    assert isinstance(answer, Change)
    assert answer.operation == UNPLUG


@pytest.mark.parametrize(
    ("vm", "vmi", "operation"),
    [
        (objects.vm(GONE, annotations=noted(UNPLUG)), None, "unplug"),
        (objects.vm(GONE), objects.vmi(GONE, owned=True, annotations=noted(UNPLUG)), "unplug"),
        (objects.vm(GONE), None, None),
        # An edit that the controller will give this very id.
        (
            objects.vm(GONE, generation=7),
            objects.vmi(IFACE, owned=True, annotations=noted(PLUG)),
            derived_id(f"{objects.VMI_UID}/{objects.VM_UID}", "iface1", OperationKind.UNPLUG, 7),
        ),
    ],
)
def test_the_same_removal_again_is_the_same_operation(
    vm: VirtualMachine, vmi: VirtualMachineInstance | None, operation: str | None
) -> None:
    first, second = plan(removing(vm, vmi)), plan(removing(vm, vmi))
    assert isinstance(first, Joined)
    assert first == second
    assert first.operation.kind is OperationKind.UNPLUG
    assert operation is None or first.operation.id == operation
