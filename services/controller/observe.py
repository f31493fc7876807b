"""What the controller looks at: a VM, its VMI and the pod that acts for it.

Next: :mod:`services.controller.plan`.
"""

import datetime
from collections.abc import Iterable

from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from services.common.domain.operations import acting_pod
from services.common.kube.cached_reader import CachedReader
from services.controller.plan.actions import Observed


async def observe(
    namespace: str,
    name: str,
    vms: CachedReader[VirtualMachine],
    vmis: CachedReader[VirtualMachineInstance],
    pods: CachedReader[Pod],
    cached_pods: Iterable[Pod],
    enabled: bool,
) -> Observed | None:
    """Look at a VM and its VMI; ``None`` when both are gone.

    :param enabled: whether NICs may be hot-plugged.
    :raises KubeError: the API server does not answer.
    """
    vm = await vms.read(namespace, name)
    vmi = await vmis.read(namespace, name)
    if vm is None and vmi is None:
        return None
    pod = acting_pod(vmi, cached_pods) if vmi is not None else None
    if pod is not None:
        pod = await pods.read(pod.metadata.namespace, pod.metadata.name)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Observed(vmi=vmi, pod=pod, vm=vm, enabled=enabled, now=now)
