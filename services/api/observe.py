"""What the api looks at before it decides: the VM or VMI, the NAD and the acting pod, live.

Next: :mod:`services.api.plan`.
"""

import asyncio
import datetime
import uuid
from typing import TypeVar

import msgspec

from schemas.kube import (
    CREATED_BY_LABEL,
    NADS,
    PODS,
    VMIS,
    VMS,
    NetworkAttachmentDefinition,
    Pod,
    Resource,
    VirtualMachine,
    VirtualMachineInstance,
)
from schemas.options import AddInterfaceOptions, RemoveInterfaceOptions
from services.api.access import may_use
from services.api.front_proxy import Identity
from services.api.plan import Observed, Target
from services.common.domain.attachments import nad_reference
from services.common.domain.operations import acting_pod
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound
from services.common.telemetry.propagation import traceparent_of

T = TypeVar("T")


class Cluster(msgspec.Struct, frozen=True):
    """What holds for the whole cluster while one request is answered.

    :ivar owned: whether hotnic, not KubeVirt, drives the NICs. :ivar default_binding: of an unsaid pod network.
    """

    owned: bool = True
    default_binding: str = "masquerade"


async def observe(
    kube: Kube,
    cluster: Cluster,
    target: Target,
    namespace: str,
    name: str,
    options: AddInterfaceOptions | RemoveInterfaceOptions,
    caller: Identity,
) -> Observed:
    """Look at everything that a request touches; what does not exist is ``None``.

    :param caller: who asks.
    :raises KubeError: the API server does not answer, or refuses.
    """
    vm, vmi, nad, usable = await asyncio.gather(
        _vm(kube, target, namespace, name, options),
        _vmi(kube, namespace, name),
        _nad(kube, namespace, options),
        _usable(kube, namespace, options, caller),
    )
    return Observed(
        target=target,
        namespace=namespace,
        name=name,
        options=options,
        vm=vm,
        vmi=vmi,
        pod=await _pod(kube, vmi) if vmi is not None and _named(vmi, options.name) else None,
        nad=nad,
        usable=usable,
        user=caller.user,
        owned=cluster.owned,
        default_binding=cluster.default_binding,
        fresh_id=str(uuid.uuid4()),
        now=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        traceparent=traceparent_of(),
    )


async def _found(kube: Kube, resource: Resource[T], namespace: str, name: str) -> T | None:
    try:
        return await kube.get(resource, namespace, name)
    except NotFound:
        return None


async def _vm(
    kube: Kube, target: Target, namespace: str, name: str, options: AddInterfaceOptions | RemoveInterfaceOptions
) -> VirtualMachine | None:
    # To a VMI a NIC is added only while its VM is not about to unplug one of that name.
    if target is not Target.VM and not isinstance(options, AddInterfaceOptions):
        return None
    return await _found(kube, VMS, namespace, name)


async def _vmi(kube: Kube, namespace: str, name: str) -> VirtualMachineInstance | None:
    return await _found(kube, VMIS, namespace, name)


async def _nad(
    kube: Kube, namespace: str, options: AddInterfaceOptions | RemoveInterfaceOptions
) -> NetworkAttachmentDefinition | None:
    if not isinstance(options, AddInterfaceOptions):
        return None
    nad_namespace, nad_name = nad_reference(options.network_attachment_definition_name, namespace)
    return await _found(kube, NADS, nad_namespace, nad_name)


async def _usable(
    kube: Kube, namespace: str, options: AddInterfaceOptions | RemoveInterfaceOptions, caller: Identity
) -> bool:
    """Who may change a VM may use the networks beside it; any other has its own guard."""
    if not isinstance(options, AddInterfaceOptions):
        return True
    nad_namespace, nad_name = nad_reference(options.network_attachment_definition_name, namespace)
    return nad_namespace == namespace or await may_use(kube, caller, nad_namespace, nad_name)


def _named(vmi: VirtualMachineInstance, name: str) -> bool:
    """Only a request for a NIC that is there needs the pod, so only that one pays for it."""
    return any(item.get("name") == name for item in vmi.spec.domain.devices.interfaces or ())


async def _pod(kube: Kube, vmi: VirtualMachineInstance) -> Pod | None:
    pods = await kube.list(PODS, vmi.metadata.namespace, labels=f"{CREATED_BY_LABEL}={vmi.metadata.uid}")
    return acting_pod(vmi, pods.items)
