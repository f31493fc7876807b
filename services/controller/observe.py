"""Observe a VM, its VMI and the VMI's acting pod for one reconcile, and parse each of them once.

Next: :mod:`services.controller.plan`.
"""

import datetime
from collections.abc import Callable, Iterable

import msgspec

from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from services.common.domain.nic import VmiNics, parse_nics
from services.common.domain.operations import find_acting_pod
from services.common.domain.template import TemplateInterfaces, parse_template
from services.common.kube.cache.cached_reader import CachedReader
from services.controller.plan.actions import Observed


class Readers(msgspec.Struct, frozen=True):
    """The readers of the controller's objects. After a patch of an object, its reader expects the patched version.

    :ivar vms: the reader of VMs.
    :ivar vmis: the reader of VMIs.
    :ivar pods: the reader of launcher pods.
    """

    vms: CachedReader[VirtualMachine]
    vmis: CachedReader[VirtualMachineInstance]
    pods: CachedReader[Pod]


async def observe(
    namespace: str, name: str, readers: Readers, pods_of: Callable[[str], Iterable[Pod]], enabled: bool
) -> Observed | None:
    """Return a VM, its VMI and the acting pod; ``None`` when neither VM nor VMI exists.

    :param pods_of: returns the launcher pods in the cache of the VMI with a UID, among which the acting pod is found.
    :param enabled: whether NICs may be hot-plugged.
    :raises KubeError: a live read is needed and the API server does not answer.
    """
    vm = await readers.vms.read(namespace, name)
    vmi = await readers.vmis.read(namespace, name)
    if vm is None and vmi is None:
        return None
    pod = find_acting_pod(vmi, pods_of(vmi.metadata.uid)) if vmi is not None else None
    if pod is not None:
        # The cached pod may be older than the version that the last event or patch named.
        pod = await readers.pods.read(pod.metadata.namespace, pod.metadata.name)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return parse_objects(vm, vmi, pod, enabled=enabled, now=now, refused_interfaces=frozenset(), one_at_a_time=False)


def parse_objects(
    vm: VirtualMachine | None,
    vmi: VirtualMachineInstance | None,
    pod: Pod | None,
    *,
    enabled: bool,
    now: str,
    refused_interfaces: frozenset[str],
    one_at_a_time: bool,
) -> Observed:
    """Return the observation of these objects; its parameters are the fields of :class:`Observed`."""
    nics, malformed = _parse_nics(vmi, pod)
    return Observed(
        vm=vm,
        vmi=vmi,
        pod=pod,
        template=_parse_template(vm),
        nics=nics,
        malformed=malformed,
        enabled=enabled,
        now=now,
        refused_interfaces=refused_interfaces,
        one_at_a_time=one_at_a_time,
    )


def with_vm(observed: Observed, vm: VirtualMachine) -> Observed:
    """Return the observation with the VM as it was written."""
    return msgspec.structs.replace(observed, vm=vm, template=_parse_template(vm))


def with_vmi(observed: Observed, vmi: VirtualMachineInstance) -> Observed:
    """Return the observation with the VMI as it was written."""
    nics, malformed = _parse_nics(vmi, observed.pod)
    return msgspec.structs.replace(observed, vmi=vmi, nics=nics, malformed=malformed)


def _parse_template(vm: VirtualMachine | None) -> TemplateInterfaces | None:
    try:
        return parse_template(vm) if vm is not None else None
    # A malformed template stops only what depends on it; the plan warns about it.
    except ValueError:
        return None


def _parse_nics(vmi: VirtualMachineInstance | None, pod: Pod | None) -> tuple[VmiNics | None, str]:
    if vmi is None:
        return None, ""
    try:
        return parse_nics(vmi, pod), ""
    except ValueError as error:
        return None, f"{vmi.metadata.namespace}/{vmi.metadata.name}: {error}"
