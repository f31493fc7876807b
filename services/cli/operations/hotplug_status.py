"""Reads the hot-plug status of a VM from hotnic's api, or derives it from objects when the api does not answer.

Objects have no times, attempts and reasons of failures; these are unknown then. The warning events of an interface show
why its operation does not complete. Next: :mod:`services.cli.commands.status`.
"""

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec

from schemas.bus.hotplug_status import LIST_VERSION, HotplugStatus, HotplugStatusEvent, InterfaceHotplugStatus
from schemas.kubernetes.objects import EVENTS, PODS, VMS, Pod, VirtualMachine, VirtualMachineInstance
from services.cli.cluster import get_or_none, pod_selector
from services.cli.errors import CommandFailed
from services.cli.operations.owner import find_owner
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ, Surroundings
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.domain.status.kubernetes_events import is_about_interface
from services.common.kube.cache.vmi_watch import WatchedVmi, watch_vmi
from services.common.kube.client import Kube
from services.common.kube.errors import BadApiResponse, Forbidden, KubeError
from services.common.kube.surroundings import derive_with_surroundings
from services.common.telemetry.logs import logger

DEGRADED_API = "api"
"""Value of :attr:`StatusView.degraded` when hotnic's api does not answer."""
API_RETRY_DELAY = 5.0
"""Seconds until the next request to an api that did not answer."""
STREAM_DEADLINE = 65.0
"""Seconds until a watch counts as broken; the api ends each watch before."""
NO_NATS = "hotnic's api is not connected to NATS"
MAX_MESSAGES = 3
"""Warning events to show of an interface."""


class StatusView(msgspec.Struct, frozen=True):
    """The hot-plug status as shown to the user.

    :ivar degraded: ``bus`` or ``api``, whichever does not answer; times may be missing then.
    :ivar cause: why it is degraded, as text.
    """

    nic_statuses: tuple[InterfaceHotplugStatus, ...]
    degraded: str | None = None
    cause: str = ""


async def read_status(kube: Kube, vmi: VirtualMachineInstance) -> StatusView:
    """Return the current hot-plug status.

    :raises CommandFailed: the objects are malformed.
    :raises KubeError: the API server does not answer.
    """
    try:
        response = await kube.request("GET", status_path(vmi), span="kube get interfaces")
        return _view_of_api(msgspec.json.decode(response.body, type=HotplugStatus))
    except (KubeError, msgspec.DecodeError) as error:
        pods = (await kube.list(PODS, vmi.metadata.namespace, labels=pod_selector(vmi))).items
        vm = None
        with suppress(Forbidden):
            vm = await get_or_none(kube.get(VMS, vmi.metadata.namespace, vmi.metadata.name))
        watched_vmi = WatchedVmi(vmi, pods, vm)
        return await _view_of_objects(kube, watched_vmi, await find_owner(kube), str(error))


async def follow_status(
    kube: Kube, vmi: VirtualMachineInstance, show: Callable[[StatusView], None], *, retry_delay: float = API_RETRY_DELAY
) -> None:
    """Show the hot-plug status now and at each change, until the VMI is deleted.

    :param show: called with each status that differs from the one before.
    :param retry_delay: seconds until the next request to an api that did not answer.
    :raises CommandFailed: the objects are malformed.
    :raises KubeError: the API server refuses a request.
    """
    last: StatusView | None = None

    def show_if_changed(view: StatusView) -> None:
        nonlocal last
        if last is None or (view.nic_statuses, view.degraded) != (last.nic_statuses, last.degraded):
            last = view
            show(view)

    version = ""
    while True:
        try:
            async for event in _stream(kube, vmi, version):
                version = event.object.metadata.get("resourceVersion", "")
                if event.type == "DELETED":
                    return
                if event.type != "BOOKMARK":
                    show_if_changed(_view_of_api(event.object))
        except (KubeError, msgspec.DecodeError) as error:
            # Changes may be shown from the objects now, so the next stream has to begin with the whole status.
            version = ""
            if await _follow_objects(kube, vmi, show_if_changed, str(error), retry_delay):
                return


async def _stream(kube: Kube, vmi: VirtualMachineInstance, version: str) -> AsyncIterator[HotplugStatusEvent]:
    rest, ended = b"", False
    query = {"watch": "true"} | ({"resourceVersion": version} if version else {})
    async with kube.stream(status_path(vmi), query, timeout=STREAM_DEADLINE) as chunks:
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                event = msgspec.json.decode(line, type=HotplugStatusEvent)
                ended = event.type == "BOOKMARK"
                yield event
    if not ended:
        # The api ends each watch with a bookmark.
        raise BadApiResponse("the watch was cut off")


async def _follow_objects(
    kube: Kube, vmi: VirtualMachineInstance, show: Callable[[StatusView], None], cause: str, retry_delay: float
) -> bool:
    """Follow the objects for ``retry_delay`` seconds and return whether the VMI is deleted."""
    log = logger("cli", "critical")
    try:
        with_vm = await get_or_none(kube.get(VMS, vmi.metadata.namespace, vmi.metadata.name)) is not None
    except Forbidden:
        with_vm = False
    beside = await find_owner(kube)
    with suppress(TimeoutError):
        async with asyncio.timeout(retry_delay), watch_vmi(kube, vmi.metadata, with_vm=with_vm, log=log) as watched:
            await watched.wait_synced()
            while True:
                watched.changed.clear()
                watched_vmi = watched.read()
                if watched_vmi.vmi is None:
                    return True
                show(await _view_of_objects(kube, watched_vmi, beside, cause))
                await watched.changed.wait()
    return False


def status_of_objects(
    vmi: VirtualMachineInstance,
    pod: Pod | None,
    vm: VirtualMachine | None = None,
    beside: Capabilities | None = None,
    around: Surroundings = NOTHING_READ,
) -> list[InterfaceHotplugStatus]:
    """Return the hot-plug status derived from objects.

    :param beside: what the KubeVirt that owns the VMs can do; ``None`` where hotnic owns them.
    :param around: what stands around the VM beside KubeVirt.
    :raises CommandFailed: the objects are malformed.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat()
    try:
        return derive_statuses(parse_nics(vmi, pod), vm, beside, now, around)
    except ValueError as error:
        raise CommandFailed(f"cannot parse {vmi.metadata.namespace}/{vmi.metadata.name}: {error}") from error


async def _view_of_objects(kube: Kube, watched_vmi: WatchedVmi, beside: Capabilities | None, cause: str) -> StatusView:
    vmi, pod, vm = watched_vmi.vmi, watched_vmi.pod, watched_vmi.vm
    assert vmi is not None
    derive = partial(status_of_objects, vmi, pod, vm, beside)
    found = await derive_with_surroundings(kube, derive, vmi, watched_vmi.pods, beside)
    return StatusView(tuple(found), DEGRADED_API, cause)


def _view_of_api(hotplug_status: HotplugStatus) -> StatusView:
    return StatusView(hotplug_status.items, hotplug_status.degraded, NO_NATS if hotplug_status.degraded else "")


def status_path(vmi: VirtualMachineInstance) -> str:
    """Return the path of a VM's hot-plug status in hotnic's api."""
    namespace, name = (quote(part, safe="") for part in (vmi.metadata.namespace, vmi.metadata.name))
    return f"/apis/{LIST_VERSION}/namespaces/{namespace}/virtualmachineinstances/{name}/interfaces"


async def read_warnings(kube: Kube, vmi: VirtualMachineInstance, interface: str) -> list[str]:
    """Return the latest warning events about an interface, oldest first; empty when they cannot be listed.

    They are on the VMI, on its pods, and on its VM, where the controller records why a change is refused. Kubernetes
    deletes events after an hour, and the user may not be allowed to list them.
    """
    owners = [owner.uid for owner in vmi.metadata.owner_references if owner.kind == VMS.kind]
    found: list[dict[str, Any]] = []
    try:
        pods = await kube.list(PODS, vmi.metadata.namespace, labels=pod_selector(vmi))
        for uid in (vmi.metadata.uid, *(pod.metadata.uid for pod in pods.items), *owners):
            fields = f"involvedObject.uid={uid},type=Warning"
            found += (await kube.list(EVENTS, vmi.metadata.namespace, fields=fields)).items
    except KubeError:
        return []
    return messages_about(found, interface)


def messages_about(events: list[dict[str, Any]], interface: str) -> list[str]:
    """Return reason and message of the latest events that name an interface or its pod interface."""
    found = [event for event in events if is_about_interface(str(event.get("message")), interface)]
    found.sort(key=lambda event: str(event.get("lastTimestamp")))
    return [f"{event.get('reason')}: {event.get('message')}" for event in found[-MAX_MESSAGES:]]
