"""The objects of an installed KubeVirt: CRDs of its version, the KubeVirt object, the pods of its components.

The pods run nothing: they are what a client finds by their labels. Next: `loops/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lab.kubevirt.loops.play import INSTALLATIONS, MIGRATIONS, PREFERENCES
from lab.kubevirt.versions import Behaviour
from lab.node.resources import PODS
from lab.supervisor.bootstrap import create_unless_exists, load_crds, wait_until_served
from lab.tools import PAUSE_IMAGE
from schemas.kubernetes.objects import Resource
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists

Object = dict[str, Any]

NAMESPACE: Final = "kubevirt"
COMPONENTS: Final = ("virt-api", "virt-controller", "virt-handler", "virt-operator")

_OPEN: Final = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _definition(resource: Resource[Object], *short: str) -> Object:
    singular = resource.kind.lower()
    names = {"plural": resource.plural, "singular": singular, "kind": resource.kind, "shortNames": list(short)}
    schema = {"type": "object", "properties": {"spec": _OPEN, "status": _OPEN}}
    version = {"name": resource.version, "served": True, "storage": True, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{resource.group}"},
        "spec": {
            "group": resource.group,
            "scope": "Namespaced",
            "names": names,
            "versions": [{**version, "schema": {"openAPIV3Schema": schema}}],
        },
    }


def definitions(behaviour: Behaviour) -> list[Object]:
    """Return the CRDs; that of VMIs has only the fields of `status.interfaces` that the version knows."""
    found = load_crds()
    for crd in found:
        if crd["metadata"]["name"] == "virtualmachineinstances.kubevirt.io":
            schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            fields = schema["properties"]["status"]["properties"]["interfaces"]["items"]["properties"]
            for name in {"podInterfaceName", "linkState"} - behaviour.entry_fields:
                fields.pop(name, None)
    return [*found, _definition(MIGRATIONS, "vmim", "vmims"), _definition(PREFERENCES, "vmpref", "vmprefs")]


def kubevirt_object(methods: Sequence[str], gates: Sequence[str]) -> Object:
    """Return the KubeVirt object without its status.

    :param methods: workload update methods.
    :param gates: feature gates.
    """
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "KubeVirt",
        "metadata": {"name": "kubevirt", "namespace": NAMESPACE},
        "spec": {
            "certificateRotateStrategy": {},
            "configuration": {
                "developerConfiguration": {"featureGates": list(gates), "useEmulation": True},
                "vmRolloutStrategy": "LiveUpdate",
            },
            "customizeComponents": {},
            "imagePullPolicy": "IfNotPresent",
            "workloadUpdateStrategy": {"workloadUpdateMethods": list(methods)},
        },
    }


def kubevirt_status(behaviour: Behaviour) -> Object:
    """Return the status that virt-operator leaves."""
    version = f"v{behaviour.release}"
    return {
        "observedKubeVirtVersion": version,
        "operatorVersion": version,
        "targetKubeVirtVersion": version,
        "outdatedVirtualMachineInstanceWorkloads": 0,
        "phase": "Deployed",
    }


async def install(
    kube: Kube, behaviour: Behaviour, methods: Sequence[str] = (), gates: Sequence[str] = (), *, node: str = ""
) -> None:
    """Create the objects that do not exist yet, and return once their APIs are served.

    :param node: the played node of the components' pods; empty if a scheduler and a kubelet run them.
    :raises KubeError: the API server rejected a request or did not answer.
    """
    found = definitions(behaviour)
    await create_unless_exists(kube, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for crd in found:
        await create_unless_exists(kube, crd)
    for crd in found:
        await wait_until_served(kube, crd)
    try:
        await kube.create(INSTALLATIONS, NAMESPACE, kubevirt_object(methods, gates))
    except AlreadyExists:
        pass
    else:
        status = {"status": kubevirt_status(behaviour)}
        await kube.merge_patch(INSTALLATIONS, NAMESPACE, "kubevirt", status, subresource="status")
    for name in COMPONENTS:
        await _create_component(kube, name, node)


async def _create_component(kube: Kube, name: str, node: str) -> None:
    # Not the namespace's default account, which the controller manager makes a little later.
    account = {"name": name.replace("virt-", "kubevirt-"), "namespace": NAMESPACE}
    await create_unless_exists(kube, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    placed = {"nodeName": node} if node else {"hostNetwork": True, "automountServiceAccountToken": False}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-0", "namespace": NAMESPACE, "labels": {"kubevirt.io": name}},
        "spec": {**placed, "serviceAccountName": account["name"], "containers": [{"name": name, "image": PAUSE_IMAGE}]},
    }
    try:
        await kube.create(PODS, NAMESPACE, pod)
    except AlreadyExists:
        return
    if node:
        await kube.merge_patch(PODS, NAMESPACE, f"{name}-0", {"status": {"phase": "Running"}}, subresource="status")
