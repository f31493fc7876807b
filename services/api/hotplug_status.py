"""The ladder of one VMI as the api serves it: stages from live objects, times and reasons from the bucket.

Without the bus it answers as well, ``degraded: bus``. Whoever doubts the bucket may see what it holds besides.
Next: :mod:`services.api.watch`, the same as a stream.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import aclosing

import msgspec

from schemas.encoding import StatusKey
from schemas.hotplug_status import (
    BUCKET,
    HotplugStatus,
    InterfaceHotplugStatus,
    StatusEntry,
    StoredEntry,
    as_json,
    entry_of,
    hotplug_status,
)
from schemas.kube import CREATED_BY_LABEL, PODS, VMIS, VMS, VirtualMachine
from schemas.names import interface_hash
from services.common.bus.protocol import Bus, BusUnavailable
from services.common.domain.hotplug_status import fold
from services.common.domain.stage_history import known_of, with_history
from services.common.http.server import StatusError
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound
from services.common.kube.vmi_watch import WatchedVmi

BUS = "bus"
BUS_DEADLINE = 1.0
"""Seconds that an answer waits for the bucket."""


async def look(kube: Kube, namespace: str, name: str) -> WatchedVmi:
    """Look at the VMI and what it is told from, live.

    :raises KubeError: the API server does not answer, or there is no VMI.
    """
    vmi, vm = await asyncio.gather(kube.get(VMIS, namespace, name), _vm(kube, namespace, name))
    pods = await kube.list(PODS, namespace, labels=f"{CREATED_BY_LABEL}={vmi.metadata.uid}")
    return WatchedVmi(vmi, pods.items, vm)


async def read(kube: Kube, bus: Bus, namespace: str, name: str, *, stored: bool = False) -> HotplugStatus:
    """The ladder of a VMI, live.

    :param stored: show all that the bucket holds for it, too.
    :raises StatusError: the VMI cannot be read. :raises KubeError: the API server does not answer, or there is no VMI.
    """
    seen = await look(kube, namespace, name)
    nic_statuses = folded(seen)
    if not stored:
        return answer(seen, nic_statuses, await _entries(bus, namespace, name, nic_statuses))
    held = await _held(bus, namespace, name)
    if held is None:
        return answer(seen, nic_statuses, None)
    prefix = prefix_of(namespace, name)
    entries = {f"{prefix}{one.hash}": one.entry for one in held if one.entry is not None}
    return msgspec.structs.replace(answer(seen, nic_statuses, entries), stored=held)


def folded(seen: WatchedVmi) -> list[InterfaceHotplugStatus]:
    """The rungs as objects have them.

    :raises StatusError: 500; spec or annotations cannot be read.
    """
    assert seen.vmi is not None
    try:
        return fold(seen.vmi, seen.pod, seen.vm)
    except ValueError as error:
        raise StatusError(500, "InternalError", f"{seen.vmi.metadata.name} cannot be read: {error}") from error


def answer(
    seen: WatchedVmi, nic_statuses: list[InterfaceHotplugStatus], entries: Mapping[str, StatusEntry] | None
) -> HotplugStatus:
    """Objects and bucket together.

    :param entries: by key; ``None`` when the bus is away.
    """
    assert seen.vmi is not None
    meta, pod_uid = seen.vmi.metadata, seen.pod.metadata.uid if seen.pod is not None else ""
    shown = []
    for nic_status in nic_statuses:
        entry = (entries or {}).get(key_of(meta.namespace, meta.name, nic_status))
        history = known_of(entry, nic_status, meta.uid, pod_uid)
        shown.append(with_history(nic_status, history) if history is not None else nic_status)
    degraded = BUS if entries is None else None
    digest = hashlib.sha256(as_json((meta.uid, shown, degraded))).hexdigest()[:16]
    return hotplug_status(meta.namespace, meta.name, digest, tuple(shown), degraded)


def key_of(namespace: str, name: str, nic_status: InterfaceHotplugStatus) -> str:
    """The key of a rung in the bucket."""
    return str(StatusKey(namespace, name, interface_hash(nic_status.interface)))


def prefix_of(namespace: str, name: str) -> str:
    """What the keys of a VMI's rungs begin with."""
    return str(StatusKey(namespace, name, "x")).removesuffix("x")


async def _vm(kube: Kube, namespace: str, name: str) -> VirtualMachine | None:
    try:
        return await kube.get(VMS, namespace, name)
    except NotFound:
        return None


async def _entries(
    bus: Bus, namespace: str, name: str, nic_statuses: list[InterfaceHotplugStatus]
) -> dict[str, StatusEntry] | None:
    if not bus.connected:
        return None
    bucket = bus.kv(BUCKET)
    keys = [key_of(namespace, name, nic_status) for nic_status in nic_statuses]
    try:
        async with asyncio.timeout(BUS_DEADLINE):
            found = await asyncio.gather(*(bucket.get(key) for key in keys))
    except (BusUnavailable, TimeoutError):
        return None
    entries = {entry.key: entry_of(entry.value) for entry in found if entry is not None}
    return {key: entry for key, entry in entries.items() if entry is not None}


async def _held(bus: Bus, namespace: str, name: str) -> tuple[StoredEntry, ...] | None:
    """All that the bucket holds for a VMI, whether or not an interface of it is there; ``None``: the bus is away."""
    if not bus.connected:
        return None
    prefix = prefix_of(namespace, name)
    held = []
    try:
        async with asyncio.timeout(BUS_DEADLINE), aclosing(bus.kv(BUCKET).watch(f"{prefix}>")) as found:
            async for item in found:
                if item is None:
                    break
                if item.value is not None:
                    held.append(StoredEntry(item.key.removeprefix(prefix), entry_of(item.value)))
    except (BusUnavailable, TimeoutError):
        return None
    return tuple(sorted(held, key=lambda one: one.hash))
