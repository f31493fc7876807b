"""The ladder of a VM for its user: by hotnic's api, and where that does not answer, folded from objects.

What objects alone cannot tell (times, attempts, an event's reason) is then unknown. Next: :mod:`services.cli.status`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from urllib.parse import quote

import msgspec

from schemas.hotplug_status import LIST_VERSION, HotplugStatus, HotplugStatusEvent, InterfaceHotplugStatus, StoredEntry
from schemas.kube import VMS, Pod, VirtualMachine, VirtualMachineInstance
from services.cli.cluster import find_pod, or_none
from services.cli.errors import Failed
from services.common.domain.hotplug_status import fold
from services.common.domain.invariants.world import NotVisible
from services.common.kube.client import Kube
from services.common.kube.errors import BadApiAnswer, Forbidden, KubeError
from services.common.kube.vmi_watch import WatchedVmi, watch_vmi
from services.common.logs import logger

API = "api"
AGAIN = 5.0
IDLE = 65.0
"""Seconds of silence after which a stream counts as dead; the api ends one before."""
STORED_DEADLINE = 5.0
NO_BUS = "hotnic's api cannot reach the bus"


class Shown(msgspec.Struct, frozen=True):
    """What there is to show. :ivar degraded: ``bus`` or ``api``: why times may be missing; :ivar why: in words."""

    nic_statuses: tuple[InterfaceHotplugStatus, ...]
    degraded: str | None = None
    why: str = ""


async def read(kube: Kube, vmi: VirtualMachineInstance) -> Shown:
    """The ladder now.

    :raises Failed: the objects cannot be read. :raises KubeError: the API server does not answer.
    """
    try:
        answer = await kube.request("GET", _path(vmi), span="kube get interfaces")
        return _of(msgspec.json.decode(answer.body, type=HotplugStatus))
    except (KubeError, msgspec.DecodeError) as error:
        pod = await find_pod(kube, vmi)
        vm = None
        with suppress(Forbidden):
            vm = await or_none(kube.get(VMS, vmi.metadata.namespace, vmi.metadata.name))
        return _folded(WatchedVmi(vmi, [pod] if pod is not None else [], vm), str(error))


async def stored(kube: Kube, vmi: VirtualMachineInstance) -> tuple[StoredEntry, ...] | NotVisible:
    """What the bus keeps of the ladder, whatever objects say; only hotnic's api shows it.

    :raises KubeError: it does not.
    """
    answer = await kube.request(
        "GET", _path(vmi), query={"stored": "true"}, timeout=STORED_DEADLINE, span="kube get interfaces"
    )
    try:
        found = msgspec.json.decode(answer.body, type=HotplugStatus)
    except msgspec.DecodeError as error:
        return NotVisible(f"hotnic's api shows something else: {error}")
    if found.stored is None:
        return NotVisible(NO_BUS if found.degraded else "hotnic's api is an earlier one, which does not show it")
    return found.stored


async def follow(
    kube: Kube, vmi: VirtualMachineInstance, show: Callable[[Shown], None], *, again: float = AGAIN
) -> None:
    """Show the ladder now and whenever it is another, until the VMI is gone.

    :param again: seconds until an api that did not answer is asked again.
    :raises Failed: the objects cannot be read. :raises KubeError: the API server refuses.
    """
    last: Shown | None = None

    def differs(found: Shown) -> None:
        nonlocal last
        if last is None or (found.nic_statuses, found.degraded) != (last.nic_statuses, last.degraded):
            last = found
            show(found)

    version = ""
    while True:
        try:
            async for event in _stream(kube, vmi, version):
                version = event.object.metadata.get("resourceVersion", "")
                if event.type == "DELETED":
                    return
                if event.type != "BOOKMARK":
                    differs(_of(event.object))
        except (KubeError, msgspec.DecodeError) as error:
            version = ""
            if await _by_objects(kube, vmi, differs, str(error), again):
                return


async def _stream(kube: Kube, vmi: VirtualMachineInstance, version: str) -> AsyncIterator[HotplugStatusEvent]:
    rest, ended = b"", False
    query = {"watch": "true"} | ({"resourceVersion": version} if version else {})
    async with kube.stream(_path(vmi), query, idle=IDLE) as chunks:
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                event = msgspec.json.decode(line, type=HotplugStatusEvent)
                ended = event.type == "BOOKMARK"
                yield event
    if not ended:
        raise BadApiAnswer("the stream was cut off")


async def _by_objects(
    kube: Kube, vmi: VirtualMachineInstance, show: Callable[[Shown], None], why: str, again: float
) -> bool:
    """Follow objects for a while; returns whether the VMI is gone."""
    log = logger("cli", "critical")
    try:
        with_vm = await or_none(kube.get(VMS, vmi.metadata.namespace, vmi.metadata.name)) is not None
    except Forbidden:
        with_vm = False
    with suppress(TimeoutError):
        async with asyncio.timeout(again), watch_vmi(kube, vmi.metadata, with_vm=with_vm, log=log) as watched:
            await watched.synced()
            while True:
                watched.changed.clear()
                seen = watched.look()
                if seen.vmi is None:
                    return True
                show(_folded(seen, why))
                await watched.changed.wait()
    return False


def folded(
    vmi: VirtualMachineInstance, pod: Pod | None, vm: VirtualMachine | None = None
) -> list[InterfaceHotplugStatus]:
    """The ladder from objects alone.

    :raises Failed: the objects cannot be read.
    """
    try:
        return fold(vmi, pod, vm)
    except ValueError as error:
        raise Failed(f"{vmi.metadata.namespace}/{vmi.metadata.name} cannot be read: {error}") from error


def _folded(seen: WatchedVmi, why: str) -> Shown:
    assert seen.vmi is not None
    return Shown(tuple(folded(seen.vmi, seen.pod, seen.vm)), API, why)


def _of(hotplug_status: HotplugStatus) -> Shown:
    return Shown(hotplug_status.items, hotplug_status.degraded, NO_BUS if hotplug_status.degraded else "")


def _path(vmi: VirtualMachineInstance) -> str:
    namespace, name = (quote(part, safe="") for part in (vmi.metadata.namespace, vmi.metadata.name))
    return f"/apis/{LIST_VERSION}/namespaces/{namespace}/virtualmachineinstances/{name}/interfaces"
