"""Create the objects of a new lab cluster: namespaces, CRDs and the registration of the api role.

On a real cluster an installer does this. `create_objects` creates namespaces and CRDs first, then the Service and
Endpoints of the aggregated APIs, then the APIServices that refer to them, so that no object refers to a missing one.
`create_samples` adds the sample network and VM and waits for the guest. `lab.supervisor.credentials` issues all
credentials before any of this runs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Collection, Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from lab.apiserver.identity import pki
from lab.layout import API_PORT, ROLES, Layout
from lab.supervisor.credentials.certificates import NAMESPACE
from lab.tools import PAUSE_IMAGE
from schemas.kubernetes.kubevirt import KUBEVIRTS
from schemas.kubernetes.objects import VMIS
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists, KubeError, NotFound
from services.common.telemetry import configure

Object = dict[str, Any]

KUBEVIRT_GROUP: Final = "subresources.kubevirt.io"
AGGREGATED: Final = (
    ("subresources.hotnic.io", "v1"),
    (KUBEVIRT_GROUP, "v1"),
    (KUBEVIRT_GROUP, "v1alpha3"),
)
COLLECTIONS: Final = {
    "Namespace": "/api/v1/namespaces",
    "Node": "/api/v1/nodes",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "Endpoints": "/api/v1/namespaces/{namespace}/endpoints",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
    "PriorityLevelConfiguration": "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations",
    "FlowSchema": "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas",
    "APIService": "/apis/apiregistration.k8s.io/v1/apiservices",
    "NetworkAttachmentDefinition": ("/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions"),
    "VirtualMachine": "/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachines",
}
"""The collection in which each kind is created."""

CRD_DEADLINE: Final = 10.0
"""Seconds a CRD may take until its API is served."""

POLL_INTERVAL: Final = 0.05
"""Seconds between two reads of an object."""

CRDS: Final = Path(__file__).resolve().parents[1] / "manifests" / "crds"
"""Definitions with the names and subresources of KubeVirt's and Multus' own: in a checkout a link to the chart's."""

EXAMPLES: Final = CRDS.with_name("examples")
"""The example manifests: a link to `k8s/examples` in a checkout, the files in a wheel."""


class SampleError(Exception):
    """The VMI of the sample VM ended before its guest had booted."""


def load(paths: Iterable[Path]) -> list[Object]:
    """Return the objects in YAML files."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    # libyaml's loader is several times as fast, but PyYAML may have been built without it.
    return [obj for path in paths for obj in yaml.load_all(path.read_text(), loader) if obj]


def load_crds() -> list[Object]:
    """Return minimal CRDs with the names of KubeVirt's and Multus' own."""
    return load(sorted(CRDS.glob("*.yaml")))


def load_samples() -> list[Object]:
    """Return the sample network and the sample VM."""
    return load(EXAMPLES / name for name in ("nad-bridge.yaml", "vm.yaml"))


def api_registration(
    ca_bundle: bytes, host: str = "127.0.0.1", port: int = API_PORT, *, beside: bool = False
) -> list[Object]:
    """Return the objects that register the api role as an aggregated API server: its Service and the APIServices.

    :param ca_bundle: PEM certificates that verify the api role's serving certificate.
    :param host: IPv4 address on which the api role listens, or a name that the API server can resolve.
    :param port: the port on which the api role listens.
    :param beside: whether KubeVirt runs; the group of its own API is then left to it.
    """
    is_address = host.replace(".", "").isdigit()
    service_port = 443 if is_address else port
    registrations: list[Object] = [
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{version}.{group}"},
            "spec": {
                "group": group,
                "version": version,
                # The priorities of KubeVirt's own APIServices.
                "groupPriorityMinimum": 1000,
                "versionPriority": 15,
                "caBundle": base64.b64encode(ca_bundle).decode(),
                "service": {"name": "hotnic-api", "namespace": NAMESPACE, "port": service_port},
            },
        }
        for group, version in AGGREGATED
        if not (beside and group == KUBEVIRT_GROUP)
    ]
    return [*(_service_at_address(host, port) if is_address else _service_at_name(host, port)), *registrations]


def _service_at_address(address: str, port: int) -> list[Object]:
    meta = {"name": "hotnic-api", "namespace": NAMESPACE}
    ports = [{"name": "https", "port": 443, "targetPort": port, "protocol": "TCP"}]
    # The real API server refuses loopback addresses in Endpoints; there a Service of type ExternalName is needed.
    subsets = [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": subsets},
    ]


def _service_at_name(name: str, port: int) -> list[Object]:
    # An address would change whenever the container of the api role is created again.
    spec = {"type": "ExternalName", "externalName": name, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}
    meta = {"name": "hotnic-api", "namespace": NAMESPACE}
    return [{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}]


def namespaces() -> list[Object]:
    """Return hotnic's namespace and the service accounts of its roles."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        *(
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": f"hotnic-{role}", "namespace": NAMESPACE},
            }
            for role in ROLES
        ),
    ]


def networks_pod() -> Object:
    """Return a pod that is found as the one of the networks role, which is a process here.

    Beside KubeVirt, a pod of that label shows that the node attaches networks to running pods.
    """
    labels = {"app.kubernetes.io/name": "hotnic", "app.kubernetes.io/component": "networks"}
    container = {"name": "networks", "image": PAUSE_IMAGE}
    # As networks does: a pod that mounts nothing of its node is none.
    volumes = [{"name": "run", "hostPath": {"path": "/run"}}]
    # Not the namespace's default account, which the controller manager makes a little later.
    account = {"serviceAccountName": "hotnic-networks", "automountServiceAccountToken": False}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hotnic-networks", "namespace": NAMESPACE, "labels": labels},
        "spec": {"hostNetwork": True, **account, "containers": [container], "volumes": volumes},
    }


async def create_objects(layout: Layout, api_host: str = "127.0.0.1", *, beside: Collection[str] | None = None) -> None:
    """Create the objects that the roles need before they start; leave objects that exist unchanged.

    :param api_host: address or name of the api role, as the API server reaches it.
    :param beside: the roles that run beside KubeVirt; None where hotnic owns the VMs.
    :raises KubeError: the API server rejected a request or did not answer.
    :raises TimeoutError: the API of a CRD was not served within `CRD_DEADLINE` seconds.
    """
    async with admin_client(layout.kubeconfig) as kube:
        for obj in namespaces():
            await create_unless_exists(kube, obj)
        await create_definitions(kube)
        ca_bundle = pki.ca_file(layout.apiserver).read_bytes()
        for obj in api_registration(ca_bundle, api_host, beside=beside is not None):
            await create_unless_exists(kube, obj)
        if beside is not None and "networks" in beside:
            await create_unless_exists(kube, networks_pod())


async def create_only_definitions(kubeconfig: Path) -> None:
    """Create the CRDs, and nothing of hotnic.

    :param kubeconfig: the administrator's.
    :raises KubeError: the API server rejected a request or did not answer.
    :raises TimeoutError: an API was not served within `CRD_DEADLINE` seconds.
    """
    async with admin_client(kubeconfig) as kube:
        await create_definitions(kube)


async def create_definitions(kube: Kube) -> None:
    """Create the CRDs that do not exist, and return once their APIs are served.

    :raises KubeError: the API server rejected a request or did not answer.
    :raises TimeoutError: an API was not served within `CRD_DEADLINE` seconds.
    """
    definitions = load_crds()
    for obj in definitions:
        await create_unless_exists(kube, obj)
    # A CRD is served only after it is established; requests for its objects get 404 until then.
    async with asyncio.timeout(CRD_DEADLINE):
        for definition in definitions:
            await wait_until_served(kube, definition)


async def wait_for_kubevirt(kubeconfig: Path) -> None:
    """Return once the KubeVirt object says that KubeVirt is deployed.

    :param kubeconfig: the administrator's.
    """
    async with admin_client(kubeconfig) as kube:
        while True:
            # Until the CRD is served: 404, and then 429 while kube-apiserver prepares its storage.
            with contextlib.suppress(KubeError):
                if any(item.status.observed_kube_virt_version for item in (await kube.list(KUBEVIRTS)).items):
                    return
            await asyncio.sleep(POLL_INTERVAL)


async def create_samples(kubeconfig: Path) -> None:
    """Create the sample network and VM and return once the guest has booted.

    :param kubeconfig: the administrator's.
    :raises SampleError: the VMI ended before the guest had booted.
    :raises KubeError: the API server rejected a request or did not answer.
    """
    async with admin_client(kubeconfig) as kube:
        objects = load_samples()
        for obj in objects:
            await create_unless_exists(kube, obj)
        for vm in (obj for obj in objects if obj["kind"] == "VirtualMachine"):
            await wait_for_guest(kube, vm["metadata"].get("namespace", "default"), vm["metadata"]["name"])


async def wait_for_guest(kube: Kube, namespace: str, name: str) -> None:
    """Return once the VMI is Ready.

    :raises SampleError: the VMI ended first.
    """
    while True:
        try:
            vmi = await kube.get(VMIS, namespace, name)
        except NotFound:
            await asyncio.sleep(POLL_INTERVAL)
            continue
        if any(c.type == "Ready" and c.status == "True" for c in vmi.status.conditions):
            return
        if vmi.status.phase in ("Failed", "Succeeded"):
            raise SampleError(
                f"guest of VM {namespace}/{name} did not boot: its VMI ended in phase {vmi.status.phase}; "
                "see the logs of node"
            )
        await asyncio.sleep(POLL_INTERVAL)


@contextlib.asynccontextmanager
async def admin_client(kubeconfig: Path) -> AsyncIterator[Kube]:
    """Yield a client with the credentials in `kubeconfig`."""
    # The supervisor writes no traces, whatever the caller's environment configures.
    telemetry = configure("lab", environ={})
    kube = await Kube.connect(kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="hotnic-lab-supervisor")
    try:
        yield kube
    finally:
        await kube.close()
        telemetry.shutdown()


async def create_unless_exists(kube: Kube, obj: Object) -> None:
    """Create `obj` unless it exists.

    :raises KubeError: the API server rejected it or did not answer.
    """
    path = COLLECTIONS[obj["kind"]].format(namespace=obj["metadata"].get("namespace", "default"))
    try:
        await kube.request("POST", path, body=json.dumps(obj).encode(), content_type="application/json")
    except AlreadyExists:
        return


async def wait_until_served(kube: Kube, definition: Object) -> None:
    """Return once the API server serves the resource of a CRD.

    :raises KubeError: it answered with another error than 404.
    """
    spec = definition["spec"]
    path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
    while True:
        try:
            await kube.request("GET", path, query={"limit": "1"})
        except KubeError as error:
            if error.status != 404:
                raise
            await asyncio.sleep(0.01)
        else:
            return
