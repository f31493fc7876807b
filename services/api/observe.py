"""Observe the objects of one request, live: VM, VMI, NAD and acting pod. Nothing is cached.

A SubjectAccessReview shows whether the user may use a NAD of another namespace, and beside KubeVirt whether they may
update the VM, whose template the request changes. The Kubernetes API server has authorized the subresource itself
before it forwards the request.
Next: :mod:`services.api.plan`.
"""

import asyncio
import datetime
import uuid
from typing import Any, TypeVar

import msgspec

from schemas.inputs import Edge, InputDecoder, RejectedInput
from schemas.kubernetes.kubevirt import CLUSTER_PREFERENCES, PREFERENCES
from schemas.kubernetes.objects import (
    NADS,
    VMIS,
    VMS,
    NetworkAttachmentDefinition,
    Pod,
    Resource,
    VirtualMachine,
    VirtualMachineInstance,
)
from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from services.api.front_proxy import UserIdentity
from services.api.plan import Observed, RequestTarget
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.surroundings.judge import find_attacher_problem
from services.common.domain.nic import qualified_nad
from services.common.domain.operations import find_acting_pod
from services.common.kube.cache.vmi_watch import read_pods
from services.common.kube.client import Kube
from services.common.kube.errors import BadApiResponse, NotFound
from services.common.kube.surroundings import read_attachers
from services.common.telemetry.propagation import traceparent_of

T = TypeVar("T")

REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class _ReviewStatus(msgspec.Struct, frozen=True):
    allowed: bool = False
    denied: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


_review = InputDecoder(Edge.KUBE, _Review)


class ClusterSettings(msgspec.Struct, frozen=True):
    """The settings of the whole cluster that the answer to a request depends on.

    :ivar owned_by_hotnic: whether hotnic, not KubeVirt, owns the VMs.
    :ivar default_binding: the binding of the primary network (KubeVirt's ``pod: {}``) of a VM that lists no interface.
    :ivar beside: what the KubeVirt that owns the VMs can do; ``None`` where hotnic owns them.
    """

    owned_by_hotnic: bool
    default_binding: str
    beside: Capabilities | None = None


async def observe(
    kube: Kube,
    cluster: ClusterSettings,
    target: RequestTarget,
    namespace: str,
    name: str,
    options: AddInterfaceOptions | RemoveInterfaceOptions,
    caller: UserIdentity,
    *,
    allow_eviction: bool = False,
) -> Observed:
    """Return the objects that the answer to a request depends on; ``None`` for an object that does not exist.

    :param cluster: the cluster's current settings.
    :param target: the kind of object that the request changes.
    :param options: the body of the request.
    :param caller: the user of the request.
    :param allow_eviction: whether the user accepts that KubeVirt shuts the VM down.
    :raises KubeError: the API server does not answer, or it refuses a call.
    """
    beside = None if cluster.owned_by_hotnic else cluster.beside
    of_vm = beside is not None and target is RequestTarget.VM
    # In parallel, so that they take the time of one read (ADR 17).
    vm, vmi, nad, nad_allowed, vm_allowed = await asyncio.gather(
        _get_vm(kube, target, namespace, name, options, beside),
        _get_vmi(kube, namespace, name),
        _get_nad(kube, namespace, options),
        _is_nad_allowed(kube, namespace, options, caller),
        _may_update_vm(kube, caller, namespace, name, needed=of_vm),
    )
    pod, model, served = await asyncio.gather(
        _find_pod(kube, vmi, options.name),
        _read_preferred_model(kube, vm, namespace, needed=of_vm and isinstance(options, AddInterfaceOptions)),
        _is_served(kube, vmi, needed=of_vm),
    )
    return Observed(
        target=target,
        namespace=namespace,
        name=name,
        options=options,
        vm=vm,
        vmi=vmi,
        pod=pod,
        nad=nad,
        nad_allowed=nad_allowed,
        user=caller.user,
        owned_by_hotnic=cluster.owned_by_hotnic,
        default_binding=cluster.default_binding,
        new_id=str(uuid.uuid4()),
        now=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        traceparent=traceparent_of(),
        beside=beside,
        vm_allowed=vm_allowed,
        preferred_model=model,
        served=served,
        allow_eviction=allow_eviction,
    )


async def _get(kube: Kube, resource: Resource[T], namespace: str | None, name: str) -> T | None:
    try:
        return await kube.get(resource, namespace, name)
    except NotFound:
        return None


async def _get_vm(
    kube: Kube,
    target: RequestTarget,
    namespace: str,
    name: str,
    options: AddInterfaceOptions | RemoveInterfaceOptions,
    beside: Capabilities | None,
) -> VirtualMachine | None:
    # A request to add an interface to a VMI needs the VM, too: it is refused while the VM's template unplugs that name.
    # Beside KubeVirt every request goes to the VM.
    if target is not RequestTarget.VM and not isinstance(options, AddInterfaceOptions) and beside is None:
        return None
    return await _get(kube, VMS, namespace, name)


async def _get_vmi(kube: Kube, namespace: str, name: str) -> VirtualMachineInstance | None:
    return await _get(kube, VMIS, namespace, name)


async def _get_nad(
    kube: Kube, namespace: str, options: AddInterfaceOptions | RemoveInterfaceOptions
) -> NetworkAttachmentDefinition | None:
    if not isinstance(options, AddInterfaceOptions):
        return None
    nad_namespace, _, nad_name = qualified_nad(options.network_attachment_definition_name, namespace).partition("/")
    return await _get(kube, NADS, nad_namespace, nad_name)


async def _is_nad_allowed(
    kube: Kube, namespace: str, options: AddInterfaceOptions | RemoveInterfaceOptions, caller: UserIdentity
) -> bool:
    """Return whether the user may use the NAD: any in the VM's namespace, and others that they may read."""
    if not isinstance(options, AddInterfaceOptions):
        return True
    nad_namespace, _, nad_name = qualified_nad(options.network_attachment_definition_name, namespace).partition("/")
    return nad_namespace == namespace or await may_read_nad(kube, caller, nad_namespace, nad_name)


async def may_read_nad(kube: Kube, caller: UserIdentity, namespace: str, name: str) -> bool:
    """Return whether the user may read a NAD, which is the permission to use it.

    :param caller: the user of the request.
    :raises KubeError: the API server does not answer, or the api may not create reviews.
    """
    return await _is_allowed(kube, caller, "get", NADS, namespace, name)


async def _may_update_vm(kube: Kube, caller: UserIdentity, namespace: str, name: str, *, needed: bool) -> bool:
    return not needed or await _is_allowed(kube, caller, "update", VMS, namespace, name)


async def _is_allowed(
    kube: Kube, caller: UserIdentity, verb: str, resource: Resource[Any], namespace: str, name: str
) -> bool:
    attributes = {"verb": verb, "group": resource.group, "version": resource.version, "resource": resource.plural}
    spec: dict[str, Any] = {
        "user": caller.user,
        "uid": caller.uid,
        "groups": list(caller.groups),
        "extra": {key: list(values) for key, values in caller.extra.items()},
        "resourceAttributes": {**attributes, "namespace": namespace, "name": name},
    }
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    # A review that fails raises: that is an error, not a permission (ADR 26).
    answer = await kube.request("POST", REVIEWS, body=body, span="kube create subjectaccessreviews")
    try:
        status = _review.decode(answer.body).status
    except RejectedInput as error:
        raise BadApiResponse(f"cannot decode SubjectAccessReview: {error}") from error
    return status.allowed and not status.denied


async def _read_preferred_model(kube: Kube, vm: VirtualMachine | None, namespace: str, *, needed: bool) -> str:
    """Return the interface model of the VM's preference; empty when it names none, or does not exist."""
    preference = vm.spec.preference if vm is not None and needed else None
    if preference is None or not preference.name:
        return ""
    resource = PREFERENCES if preference.kind.lower() == PREFERENCES.kind.lower() else CLUSTER_PREFERENCES
    found = await _get(kube, resource, namespace if resource.namespaced else None, preference.name)
    return found.spec.devices.preferred_interface_model if found is not None else ""


async def _is_served(kube: Kube, vmi: VirtualMachineInstance | None, *, needed: bool) -> bool:
    """Return whether somebody attaches networks to running pods on the VMI's node."""
    if not needed or vmi is None or not vmi.status.node_name:
        return False
    return find_attacher_problem(await read_attachers(kube, vmi.status.node_name)) is None


async def _find_pod(kube: Kube, vmi: VirtualMachineInstance | None, name: str) -> Pod | None:
    # Without an interface of that name the answer does not depend on the pod.
    if vmi is None or not any(item.get("name") == name for item in vmi.spec.domain.devices.interfaces or ()):
        return None
    return find_acting_pod(vmi, await read_pods(kube, vmi.metadata))
