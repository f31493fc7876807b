"""What a fresh cluster of the lab holds before anyone works on it: namespaces, CRDs, the api role's registration.

On a real cluster an installer does this. `run` creates the objects in an order that leaves nothing half known:
namespaces and CRDs, then the Service and Endpoints that the aggregated APIs point at, then these. `run_samples`
adds the sample network and VM and waits for the guest. Certificates come before, from `credentials.py`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from schemas.kube import VMIS
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists, KubeError, NotFound
from services.common.telemetry import configure
from services.lab.apiserver import pki
from services.lab.credentials import NAMESPACE
from services.lab.layout import API_PORT, ROLES, Layout

Object = dict[str, Any]

AGGREGATED: Final = (
    ("subresources.hotnic.io", "v1"),
    ("subresources.kubevirt.io", "v1"),
    ("subresources.kubevirt.io", "v1alpha3"),
)
COLLECTIONS: Final = {
    "Namespace": "/api/v1/namespaces",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "Endpoints": "/api/v1/namespaces/{namespace}/endpoints",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "APIService": "/apis/apiregistration.k8s.io/v1/apiservices",
    "NetworkAttachmentDefinition": ("/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions"),
    "VirtualMachine": "/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachines",
}
"""Where each kind is created."""

ESTABLISHED: Final = 10.0
"""Seconds a CRD may take until its API is served."""

POLL: Final = 0.05
"""Seconds between two looks at an object."""


class SampleError(Exception):
    """The sample VM did not come up."""


def manifests() -> Path:
    """Return the folder of Kubernetes manifests: beside the packages in a checkout, inside this one in a wheel."""
    checkout = Path(__file__).resolve().parents[2] / "k8s"
    return checkout if checkout.is_dir() else Path(__file__).resolve().parent / "k8s"


def load(paths: Iterable[Path]) -> list[Object]:
    """Return the objects of YAML files."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [obj for path in paths for obj in yaml.load_all(path.read_text(), loader) if obj]


def crds() -> list[Object]:
    """Return the CRDs that stand in for KubeVirt's and multus' own."""
    return load(sorted((manifests() / "crds").glob("*.yaml")))


def samples() -> list[Object]:
    """Return the sample network and the sample VM."""
    return load(manifests() / "examples" / name for name in ("nad-bridge.yaml", "vm.yaml"))


def registration(ca_bundle: bytes, port: int = API_PORT) -> list[Object]:
    """Return what makes the api role an aggregated API: Service, Endpoints, APIServices."""
    meta = {"name": "hotnic-api", "namespace": NAMESPACE}
    ports = [{"name": "https", "port": 443, "targetPort": port, "protocol": "TCP"}]
    subsets = [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]
    services: list[Object] = [
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{version}.{group}"},
            "spec": {
                "group": group,
                "version": version,
                "groupPriorityMinimum": 1000,
                "versionPriority": 15,
                "caBundle": base64.b64encode(ca_bundle).decode(),
                "service": {"name": "hotnic-api", "namespace": NAMESPACE, "port": 443},
            },
        }
        for group, version in AGGREGATED
    ]
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": subsets},
        *services,
    ]


def namespaces() -> list[Object]:
    """Return the namespaces and service accounts of the product."""
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


async def run(layout: Layout) -> None:
    """Create everything that must stand before the roles start; what exists already stays as it is.

    :raises KubeError: the apiserver refused or did not answer.
    :raises TimeoutError: a CRD was not served in time.
    """
    async with connected(layout) as kube:
        definitions = crds()
        for obj in (*namespaces(), *definitions):
            await create(kube, obj)
        async with asyncio.timeout(ESTABLISHED):
            for definition in definitions:
                await served(kube, definition)
        for obj in registration(pki.ca_file(layout.apiserver).read_bytes()):
            await create(kube, obj)


async def run_samples(layout: Layout) -> None:
    """Create the sample network and VM and return once its guest is up.

    :raises SampleError: the VM ended instead.
    :raises KubeError: the apiserver refused or did not answer.
    """
    async with connected(layout) as kube:
        objects = samples()
        for obj in objects:
            await create(kube, obj)
        for vm in (obj for obj in objects if obj["kind"] == "VirtualMachine"):
            await guest_up(kube, vm["metadata"].get("namespace", "default"), vm["metadata"]["name"])


async def guest_up(kube: Kube, namespace: str, name: str) -> None:
    """Return once the VMI says Ready; raises SampleError when it ended instead."""
    while True:
        try:
            vmi = await kube.get(VMIS, namespace, name)
        except NotFound:
            await asyncio.sleep(POLL)
            continue
        if any(c.type == "Ready" and c.status == "True" for c in vmi.status.conditions):
            return
        if vmi.status.phase in ("Failed", "Succeeded"):
            raise SampleError(f"VM {namespace}/{name} ended before its guest was up (phase {vmi.status.phase})")
        await asyncio.sleep(POLL)


@contextlib.asynccontextmanager
async def connected(layout: Layout) -> AsyncIterator[Kube]:
    """Yield a client with the administrator's rights."""
    telemetry = configure("lab", environ={})
    kube = await Kube.connect(
        kubeconfig=str(layout.kubeconfig), telemetry=telemetry, user_agent="hotnic-lab-supervisor"
    )
    try:
        yield kube
    finally:
        await kube.close()
        telemetry.shutdown()


async def create(kube: Kube, obj: Object) -> None:
    """Create `obj` unless it exists."""
    path = COLLECTIONS[obj["kind"]].format(namespace=obj["metadata"].get("namespace", "default"))
    try:
        await kube.request("POST", path, body=json.dumps(obj).encode(), content_type="application/json")
    except AlreadyExists:
        return


async def served(kube: Kube, definition: Object) -> None:
    """Return once the API of a CRD answers."""
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
