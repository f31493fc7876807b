"""A cluster at rest beside KubeVirt: many VMs, each with a VMI and a launcher pod as they were recorded."""

import asyncio
import copy
import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec

from lab.kubevirt.installation import install
from lab.kubevirt.objects import launcher_pod, network_status, pod_address, running_pod_status, vmi_of
from lab.kubevirt.versions import behaviour_of
from lab.node.objects import now
from lab.node.resources import PODS, VMIS, VMS
from schemas.bus.hotplug_status import BUCKET
from schemas.kubernetes.kubevirt import NODE_LABEL
from schemas.kubernetes.networks import NETWORK_STATUS
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key
from schemas.stages import OperationKind
from services.common.kube.client import Kube
from services.common.telemetry import Telemetry
from services.controller.role import Periods
from tests.support.lab.kubevirt import vm_without
from tests.support.lab.observing import ObservingController, observing_controller
from tests.support.recorded_kubevirt import recorded

Object = dict[str, Any]

VERSION, MOMENT, NODE = "1.9", "v1.9.0-a-plugged", "kvnode1"
PARALLEL = 16
"""Number of VMs that are created at the same time."""


class RestMeasured(msgspec.Struct, frozen=True):
    """What happened at rest.

    :ivar writes: number of objects that were written, by the resource version of the API server.
    :ivar messages: number of messages that were published, and of values that were put into the bucket.
    :ivar cpu_seconds: CPU time of this process, which has the controller and no API server.
    """

    writes: int
    messages: int
    cpu_seconds: float


async def create_running_vms(kube: Kube, count: int) -> None:
    """Create VMs with their VMIs and launcher pods; every second one has the entry of a finished plug.

    :param kube: the client of KubeVirt's own account.
    """
    await install(kube, behaviour_of(VERSION))
    allowed = asyncio.Semaphore(PARALLEL)

    async def create(number: int) -> None:
        async with allowed:
            await create_running_vm(kube, f"vm{number}", plugged=number % 2 == 0)

    await asyncio.gather(*(create(number) for number in range(count)))


async def create_running_vm(kube: Kube, name: str, *, plugged: bool, node: str = NODE) -> None:
    """Create a VM with its VMI and launcher pod.

    :param plugged: whether it has the entry of a finished plug.
    """
    behaviour, moment = behaviour_of(VERSION), recorded(MOMENT)
    vm = vm_without(MOMENT)
    vm["metadata"]["name"] = name
    vm = await kube.create(VMS, "default", vm)
    vmi = await kube.create(VMIS, "default", vmi_of(vm, behaviour))
    pod = launcher_pod(vmi, behaviour, node=node)
    # Of the address only; the API server chooses another UID.
    pod["metadata"]["uid"] = vmi["metadata"]["uid"]
    pod["metadata"]["annotations"][NETWORK_STATUS] = network_status(pod)
    pod = await kube.create(PODS, "default", pod)
    running = {"status": running_pod_status(pod_address(pod), now())}
    await kube.merge_patch(PODS, "default", pod["metadata"]["name"], running, subresource="status")
    status = copy.deepcopy(moment["vmi"]["status"])
    status |= {"nodeName": node, "activePods": {pod["metadata"]["uid"]: node}}
    for interface in status["interfaces"]:
        # Its own, as that of every VM of a network.
        interface["mac"] = mac_of(f"{name}/{interface['name']}")
    uid = vm["metadata"]["uid"]
    entry = Operation(uid, OperationKind.PLUG, "blue", requested_at=now(), vm=uid, network="default/net1")
    annotations = {operation_key("blue"): encode_annotation(entry)} if plugged else {}
    metadata = {"annotations": annotations, "labels": {NODE_LABEL: node}}
    await kube.merge_patch(VMIS, "default", name, {"metadata": metadata, "status": status})


def mac_of(text: str) -> str:
    """Return a MAC that is always the same for a text."""
    return ":".join(["02", *(f"{byte:02x}" for byte in hashlib.sha256(text.encode()).digest()[:5])])


async def measure_rest(
    kubeconfig: Path, count: int, seconds: float, telemetry: Telemetry, periods: Periods
) -> RestMeasured:
    """Run a controller until it has read everything, then for some seconds in which nothing changes.

    :param kubeconfig: of an API server with the VMs of :func:`create_running_vms`.
    """
    async with observing_controller(kubeconfig, telemetry, periods) as controller:
        bucket = controller.bus.broker.buckets[BUCKET]
        async for _ in bucket.watch():
            if len(bucket.entries()) == count:
                break
        await controller.idle()
        before, cpu = await _state(controller), time.process_time()
        # That nothing happens has no event to wait for.
        await asyncio.sleep(seconds)
        cpu = time.process_time() - cpu
        after = await _state(controller)
    return RestMeasured(after[0] - before[0], after[1] - before[1], cpu)


async def _state(controller: ObservingController) -> tuple[int, int]:
    """Return the resource version of the API server, which each write of any object moves, and that of the bus."""
    listing = await controller.kube.list(VMS, "default")
    values = sum(entry.revision for entry in controller.bus.broker.buckets[BUCKET].entries())
    return int(listing.resource_version), len(controller.bus.published) + values
