"""Kubernetes resources as whole objects of decoded JSON.

The node copies templates and rewrites statuses, so no field may be lost. The caches use the partial structs of
`schemas.kubernetes.objects` instead, because they only detect changes.
"""

from __future__ import annotations

from typing import Any, TypeVar

from schemas.kubernetes.objects import Resource
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound

Object = dict[str, Any]
T = TypeVar("T")
Key = tuple[str, str]
"""Namespace and name."""

NODES: Resource[Object] = Resource("", "v1", "nodes", "Node", dict[str, Any], namespaced=False)
PODS: Resource[Object] = Resource("", "v1", "pods", "Pod", dict[str, Any])
VMS: Resource[Object] = Resource("kubevirt.io", "v1", "virtualmachines", "VirtualMachine", dict[str, Any])
VMIS: Resource[Object] = Resource(
    "kubevirt.io", "v1", "virtualmachineinstances", "VirtualMachineInstance", dict[str, Any]
)


async def find(kube: Kube, resource: Resource[T], key: Key) -> T | None:
    """Return the object as it is now, or None when it does not exist.

    :raises KubeError: the request failed otherwise.
    """
    try:
        return await kube.get(resource, *key)
    except NotFound:
        return None
