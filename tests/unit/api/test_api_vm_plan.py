"""Tables of the api's answers to requests about a VM: they change the template, never the running VMI."""

from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORKS, NetworkSelectionElement, encode_networks
from schemas.kubernetes.objects import VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import (
    NIC_SLOTS,
    NicSlots,
    Operation,
    derive_operation_id,
    encode_annotation,
    held_by,
    operation_key,
)
from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.stages import OperationKind
from services.api.plan import ChangeObject, JoinOperation, Observed, RefuseRequest, RequestTarget, plan
from tests.support.observed import objects
from tests.support.observed.observations import api_observed

IFACE = objects.nic("iface1")
ABSENT_IFACE = objects.nic("iface1", state="absent")
PLUG, UNPLUG = Operation("plug", OperationKind.PLUG, "iface1"), Operation("unplug", OperationKind.UNPLUG, "iface1")
NO_SLOT = {NIC_SLOTS: encode_annotation(NicSlots(free=0, nics=8, pod_uid=objects.POD_UID))}
LAST_SLOT = {NIC_SLOTS: encode_annotation(NicSlots(free=1, nics=7, pod_uid=objects.POD_UID))}
ORDINAL = objects.pod({NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface="net1")])})
ADD = AddInterfaceOptions("net1", "iface1")
DELETING = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


def annotations_of(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode_annotation(operation) for operation in operations}


def observation(
    vm: VirtualMachine | None,
    vmi: VirtualMachineInstance | None = None,
    options: AddInterfaceOptions | RemoveInterfaceOptions = ADD,
    **fields: Any,
) -> Observed:
    pod = objects.pod() if vmi is not None else None
    given = {"vm": vm, "vmi": vmi, "pod": pod, "nad": objects.nad(), "new_id": "new", **fields}
    return api_observed(RequestTarget.VM, options, **given)


def removing(
    vm: VirtualMachine | None, vmi: VirtualMachineInstance | None = None, name: str = "iface1", **fields: Any
) -> Observed:
    return observation(vm, vmi, options=RemoveInterfaceOptions(name), nad=None, **fields)


ADD_REFUSALS = [
    ("unknown VM", observation(None), 404, 'virtualmachine.kubevirt.io "vm1" not found'),
    ("being deleted", observation(objects.vm(**DELETING)), 409, "being deleted"),
    ("unknown NAD", observation(objects.vm(), nad=None), 404, 'not found in namespace "default"'),
    ("ipvlan", observation(objects.vm(), nad=objects.nad('{"type":"ipvlan"}')), 422, "ipvlan"),
    ("in the template already", observation(objects.vm(IFACE)), 409, "is taken by network attachment 'net1'"),
    ("being unplugged", observation(objects.vm(ABSENT_IFACE)), 409, "is being unplugged"),
    (
        "link names collide",
        observation(
            objects.vm(objects.nic(objects.COLLIDING[0])), options=AddInterfaceOptions("net1", objects.COLLIDING[1])
        ),
        409,
        "same link names",
    ),
    (
        "link names collide in the running VM",
        observation(
            objects.vm(),
            objects.vmi(objects.nic(objects.COLLIDING[0]), owned=True),
            options=AddInterfaceOptions("net1", objects.COLLIDING[1]),
        ),
        409,
        "same link names",
    ),
    (
        "network name taken",
        observation(objects.vm(({"name": "x", "bridge": {}}, {"name": "iface1"}))),
        409,
        "network name",
    ),
    ("no slot", observation(objects.vm(), objects.vmi(owned=True, annotations=NO_SLOT)), 409, "no free slot"),
    (
        "the template's pending plug takes the last slot",
        observation(objects.vm(objects.nic("other")), objects.vmi(owned=True, annotations=LAST_SLOT)),
        409,
        "plugs in progress: 1",
    ),
    (
        "the running VM has another interface of that name",
        observation(objects.vm(), objects.vmi(objects.nic("iface1", "net2"), owned=True)),
        409,
        "in the running",
    ),
    (
        "being unplugged from the running VM",
        observation(objects.vm(), objects.vmi(ABSENT_IFACE, owned=True)),
        409,
        "is being unplugged",
    ),
    (
        "attached already",
        observation(
            objects.vm(IFACE, annotations=annotations_of(PLUG)),
            objects.vmi(
                IFACE, owned=True, annotations=annotations_of(PLUG), status=[{"name": "iface1", "infoSource": "domain"}]
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
    ("only in the running VM", removing(objects.vm(), objects.vmi(IFACE, owned=True)), 404, "remove it from the VMI"),
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
def test_impossible_vm_request_is_refused_with_the_reason(observed: Observed, code: int, text: str) -> None:
    answer = plan(observed)
    assert isinstance(answer, RefuseRequest)
    assert answer.code == code
    assert text in answer.message


@pytest.mark.parametrize(
    "vmi",
    [
        None,
        objects.vmi(owned=True),
        objects.vmi(owned=True, phase="Scheduling"),
        objects.vmi(ABSENT_IFACE, owned=False),
        objects.vmi(ABSENT_IFACE, owned=True, phase="Succeeded"),
    ],
    ids=["stopped", "running", "starting", "another's VMI", "ended"],
)
def test_add_changes_the_template_and_the_annotation(vmi: VirtualMachineInstance | None) -> None:
    answer = plan(observation(objects.vm(annotations={"some": "thing"}), vmi))
    assert isinstance(answer, ChangeObject)
    assert (answer.target, answer.operation.id, answer.network) == (RequestTarget.VM, "new", "default/net1")
    paths = [(op["op"], op["path"]) for op in answer.ops]
    assert paths[:2] == [
        ("test", "/spec/template/spec/networks"),
        ("test", "/spec/template/spec/domain/devices/interfaces"),
    ]
    values = {op["path"]: op["value"] for op in answer.ops if op["op"] == "add"}
    assert values["/spec/template/spec/networks"] == [objects.PRIMARY_NETWORK, IFACE[1]]
    assert values["/spec/template/spec/domain/devices/interfaces"] == [objects.PRIMARY, IFACE[0]]
    assert values[f"/metadata/annotations/{operation_key('iface1').replace('/', '~1')}"] == encode_annotation(
        held_by(answer.operation, objects.VM_UID)
    )


PRIMARY_OF_VMI = {"name": "lan", "bridge": {}}


@pytest.mark.parametrize(
    ("observed", "interface", "network"),
    [
        (observation(objects.vm(bare=True)), {"name": "default", "masquerade": {}}, {"name": "default", "pod": {}}),
        (
            observation(objects.vm(bare=True), default_binding="bridge"),
            {"name": "default", "bridge": {}},
            {"name": "default", "pod": {}},
        ),
        (observation(objects.vm(bare=True), objects.vmi(owned=True)), objects.PRIMARY, objects.PRIMARY_NETWORK),
    ],
    ids=["hotnic's default", "KubeVirt's configuration", "the running VMI's"],
)
def test_add_makes_the_implicit_pod_network_explicit(
    observed: Observed, interface: dict[str, Any], network: dict[str, Any]
) -> None:
    answer = plan(observed)
    assert isinstance(answer, ChangeObject)
    values = {op["path"]: op["value"] for op in answer.ops if op["op"] == "add"}
    assert values["/spec/template/spec/networks"][0] == network
    assert values["/spec/template/spec/domain/devices/interfaces"][0] == interface


def test_interface_of_the_running_vmi_becomes_permanent_with_its_operation_and_mac() -> None:
    status = [{"name": "iface1", "mac": "02:00:00:00:00:07"}]
    vmi = objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG) | NO_SLOT, status=status)
    answer = plan(observation(objects.vm(), vmi))
    assert isinstance(answer, ChangeObject)
    assert answer.operation == PLUG
    # Without it a pool of MACs would give the template another one.
    added = [item for op in answer.ops if op["op"] != "test" for item in op["value"] if "macAddress" in item]
    assert added == [IFACE[0] | {"macAddress": "02:00:00:00:00:07"}]


@pytest.mark.parametrize(
    "vmi",
    [objects.vmi(owned=True), objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG))],
    ids=["not copied yet", "plug in progress"],
)
def test_identical_vm_request_joins_the_operation_in_progress(vmi: VirtualMachineInstance) -> None:
    assert plan(observation(objects.vm(IFACE, annotations=annotations_of(PLUG)), vmi)) == JoinOperation(PLUG)


def test_remove_sets_absent_in_the_template_of_running_and_stopped_vms() -> None:
    for vmi in (None, objects.vmi(IFACE, owned=True), objects.vmi(owned=True)):
        answer = plan(removing(objects.vm(IFACE, annotations=annotations_of(PLUG)), vmi))
        assert isinstance(answer, ChangeObject)
        assert (answer.target, answer.operation.kind) == (RequestTarget.VM, OperationKind.UNPLUG)
        values = {op["path"]: op["value"] for op in answer.ops if op["op"] == "add"}
        assert values["/spec/template/spec/domain/devices/interfaces"] == [objects.PRIMARY, ABSENT_IFACE[0]]
        assert "/spec/template/spec/networks" not in values


def test_remove_from_a_stopped_vm_ignores_an_old_pod() -> None:
    assert isinstance(plan(removing(objects.vm(IFACE), None, pod=ORDINAL)), ChangeObject)


def test_remove_joins_the_unplug_of_the_running_vmi() -> None:
    answer = plan(
        removing(objects.vm(IFACE), objects.vmi(ABSENT_IFACE, owned=True, annotations=annotations_of(UNPLUG)))
    )
    assert isinstance(answer, ChangeObject)
    assert answer.operation == UNPLUG


@pytest.mark.parametrize(
    ("vm", "vmi", "operation"),
    [
        (objects.vm(ABSENT_IFACE, annotations=annotations_of(UNPLUG)), None, "unplug"),
        (objects.vm(ABSENT_IFACE), objects.vmi(ABSENT_IFACE, owned=True, annotations=annotations_of(UNPLUG)), "unplug"),
        (objects.vm(ABSENT_IFACE), None, None),
        # An edit with kubectl: the controller will derive the same id.
        (
            objects.vm(ABSENT_IFACE, generation=7),
            objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG)),
            derive_operation_id(f"{objects.VMI_UID}/{objects.VM_UID}", "iface1", OperationKind.UNPLUG, 7),
        ),
    ],
)
def test_repeated_vm_removal_joins_the_operation(
    vm: VirtualMachine, vmi: VirtualMachineInstance | None, operation: str | None
) -> None:
    first, second = plan(removing(vm, vmi)), plan(removing(vm, vmi))
    assert isinstance(first, JoinOperation)
    assert first == second
    assert first.operation.kind is OperationKind.UNPLUG
    assert operation is None or first.operation.id == operation
