"""Builders of the Kubernetes objects that the tests of plans start from."""

from typing import Any

import msgspec

from schemas.kubernetes.objects import NetworkAttachmentDefinition, Pod, VirtualMachine, VirtualMachineInstance

NAMESPACE = "default"
VMI_UID = "11111111-1111-4111-8111-111111111111"
VM_UID = "44444444-4444-4444-8444-444444444444"
POD_UID = "22222222-2222-4222-8222-222222222222"
NODE = "node1"
OWNER = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "vm1", "uid": VM_UID, "controller": True}
COLLIDING = ("nic2497513", "nic7431755")
"""Two interface names with the same ``<h>``."""
PRIMARY = {"name": "default", "masquerade": {}}
PRIMARY_NETWORK = {"name": "default", "pod": {}}


def nic(name: str, nad: str = "net1", **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an interface with bridge binding and its network, as items of a spec."""
    return {"name": name, "bridge": {}, **fields}, {"name": name, "multus": {"networkName": nad}}


def vmi(
    *nics: tuple[dict[str, Any], dict[str, Any]],
    phase: str = "Running",
    status: list[dict[str, Any]] | None = None,
    annotations: dict[str, str] | None = None,
    owned: bool = False,
    **status_fields: Any,
) -> VirtualMachineInstance:
    """Return a VMI ``default/vm1`` on ``node1`` with a primary masquerade interface and the given secondary ones.

    :param owned: whether the VM of :func:`vm` owns it.
    """
    document: dict[str, Any] = {
        "metadata": {
            "name": "vm1",
            "namespace": NAMESPACE,
            "uid": VMI_UID,
            "resourceVersion": "100",
            "generation": 1,
            "annotations": annotations or {},
            "ownerReferences": [OWNER] if owned else [],
        },
        "spec": {
            "domain": {"devices": {"interfaces": [PRIMARY, *(interface for interface, _ in nics)]}},
            "networks": [PRIMARY_NETWORK, *(network for _, network in nics)],
        },
        "status": {"phase": phase, "nodeName": NODE, "activePods": {POD_UID: NODE}, **status_fields},
    }
    if status is not None:
        document["status"]["interfaces"] = status
    return msgspec.convert(document, VirtualMachineInstance)


def vm(
    *nics: tuple[dict[str, Any], dict[str, Any]],
    annotations: dict[str, str] | None = None,
    generation: int = 1,
    bare: bool = False,
    **metadata: Any,
) -> VirtualMachine:
    """Return the VM ``default/vm1``; its template has a primary masquerade interface and the given secondary ones.

    :param bare: the template lists no interface and no network.
    """
    interfaces = [PRIMARY, *(interface for interface, _ in nics)]
    networks = [PRIMARY_NETWORK, *(network for _, network in nics)]
    spec = {"domain": {"devices": {"interfaces": interfaces}}, "networks": networks}
    document = {
        "metadata": {
            "name": "vm1",
            "namespace": NAMESPACE,
            "uid": VM_UID,
            "resourceVersion": "300",
            "generation": generation,
            "annotations": annotations or {},
            **metadata,
        },
        "spec": {"running": True, "template": {"spec": {"domain": {"devices": {}}} if bare else spec}},
    }
    return msgspec.convert(document, VirtualMachine)


def pod(annotations: dict[str, str] | None = None, **metadata: Any) -> Pod:
    """Return the running launcher pod of :func:`vmi`."""
    return msgspec.convert(
        {
            "metadata": {
                "name": "virt-launcher-vm1-abcde",
                "namespace": NAMESPACE,
                "uid": POD_UID,
                "resourceVersion": "200",
                "labels": {"kubevirt.io/created-by": VMI_UID},
                "annotations": annotations or {},
                "ownerReferences": [
                    {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm1", "uid": VMI_UID}
                ],
                **metadata,
            },
            "spec": {"nodeName": NODE},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        },
        Pod,
    )


def nad(config: str = '{"cniVersion":"1.0.0","type":"bridge"}', name: str = "net1") -> NetworkAttachmentDefinition:
    """Return a NAD in the VMI's namespace."""
    return msgspec.convert(
        {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"config": config}}, NetworkAttachmentDefinition
    )


def mirror_metadata(node: str) -> dict[str, Any]:
    """Return the metadata by which a kubelet marks the mirror pod of a static pod."""
    digest = "5f2a1b7c9d0e4f6a8b3c2d1e0f9a8b7c"
    annotations = {"kubernetes.io/config.source": "file", "kubernetes.io/config.hash": digest}
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": f"uid-{node}", "controller": True}
    return {"annotations": annotations | {"kubernetes.io/config.mirror": digest}, "ownerReferences": [owner]}
