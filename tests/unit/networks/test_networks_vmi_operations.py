"""Where KubeVirt owns the VMs, the role joins the operation that the VMI has."""

from typing import Any

import msgspec
import pytest

from schemas.bus.events import MultusAttached, MultusDetached, ObjectRef
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.networks.vmi_operations import vmi_of
from tests.support.kube.node_kube import forbid
from tests.support.node.networks_node import ETH0, Node

VMIS, VM_UID = "virtualmachineinstances", "vm-uid"
BLUE = pod_interface("blue")
ELEMENT = {"name": "blue", "namespace": "default", "interface": BLUE}
OWNER = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm1", "uid": "vmi-uid"}
PLUG = Operation("plug", OperationKind.PLUG, "blue", vm=VM_UID, network="default/blue")
UNPLUG = Operation("unplug", OperationKind.UNPLUG, "blue", vm=VM_UID)
ENTRIES = {operation_key("blue"): encode_annotation(PLUG), unplug_key("blue"): encode_annotation(UNPLUG)}


def launcher(node: Node, entries: dict[str, str], vm: str = VM_UID, **pod: Any) -> None:
    """Add a VMI with these entries, and its launcher pod."""
    owner = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "vm1", "uid": vm}
    node.kube.put(
        VMIS, "default", "vm1", metadata={"uid": "vmi-uid", "annotations": entries, "ownerReferences": [owner]}
    )
    node.nad()
    node.pod(metadata={"ownerReferences": [OWNER]}, **pod)


async def test_plug_and_unplug_join_the_operations_of_the_vmi(node: Node) -> None:
    launcher(node, ENTRIES)
    await node.idle()
    assert node.kube.counted("GET", VMIS) == 0
    node.set_networks([ELEMENT])
    await node.until_links("eth0", BLUE)
    node.set_networks([])
    await node.until_links("eth0")
    attached, detached = await node.until_published(lambda events: len(events) == 2)
    assert (type(attached), attached.operation) == (MultusAttached, PLUG)
    assert (type(detached), detached.operation) == (MultusDetached, UNPLUG)
    await node.idle()
    assert node.kube.counted("GET", VMIS) == 2


@pytest.mark.parametrize(
    ("owner", "found"),
    [
        (OWNER, ObjectRef("default", "vm1", "vmi-uid")),
        (OWNER | {"apiVersion": "kubevirt.io/v1alpha3"}, ObjectRef("default", "vm1", "vmi-uid")),
        (OWNER | {"apiVersion": "example.com/v1"}, None),
        # Kubernetes does not limit it, and NATS ends a connection that uses such a subject.
        (OWNER | {"name": "a" * 5000}, None),
        (OWNER | {"name": "*.>"}, None),
        (OWNER | {"kind": "ReplicaSet"}, None),
    ],
)
def test_only_a_vmi_with_a_proper_name_is_an_owner(owner: dict[str, str], found: ObjectRef | None) -> None:
    metadata = {"name": "p", "namespace": "default", "ownerReferences": [owner]}
    assert vmi_of(msgspec.convert({"metadata": metadata}, Pod)) == found


async def test_a_copy_of_an_operation_is_ignored(node: Node) -> None:
    """On a migration's target pod it is the operation of an earlier time, on a clone that of another VM."""
    frozen = Operation("frozen", OperationKind.PLUG, "blue", vm=VM_UID)
    launcher(
        node,
        {operation_key("blue"): encode_annotation(PLUG)},
        vm="another-vm",
        networks=[ELEMENT],
        status=[ETH0],
        annotations={operation_key("blue"): encode_annotation(frozen)},
    )
    (attached,) = await node.until_published(lambda events: len(events) == 1)
    assert attached.operation.id not in ("frozen", "plug")
    assert attached.operation.vm is None


async def test_an_attachment_to_the_old_network_is_not_the_operation_of_its_change(node: Node) -> None:
    changed = Operation("changed", OperationKind.PLUG, "blue", vm=VM_UID, network="default/green")
    launcher(node, {operation_key("blue"): encode_annotation(changed)}, networks=[ELEMENT], status=[ETH0])
    (attached,) = await node.until_published(lambda events: len(events) == 1)
    assert attached.operation.id != "changed"


async def test_without_the_right_to_read_vmis_the_network_is_attached(node: Node) -> None:
    node.kube.before = forbid(VMIS, "hotnic:hotnic-networks")
    launcher(node, ENTRIES)
    node.set_networks([ELEMENT])
    await node.until_links("eth0", BLUE)
    (attached,) = await node.until_published(lambda events: len(events) == 1)
    assert attached.operation.id != "plug"
