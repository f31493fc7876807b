"""Read the hot-plug status of one VMI: stages from live objects, times and reasons from the bucket.

Without the bus the status has no times and reports ``degraded: bus``. On request it includes the bucket's own entries,
which ``hotnic doctor`` compares with the objects.
Next: :mod:`services.api.hotplug_status.watch`, which streams the status.
"""

import asyncio
import datetime
import hashlib
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial

import msgspec

from schemas.bus.encoding import StatusKey
from schemas.bus.hotplug_status import (
    BUCKET,
    HotplugStatus,
    InterfaceHotplugStatus,
    StatusEntry,
    StoredEntry,
    decode_entry,
    encode_json,
    new_hotplug_status,
)
from schemas.kubernetes.objects import VMIS, VMS, StatusCause, StatusDetails, VirtualMachine
from schemas.names import interface_hash
from services.common.bus.protocol import Bus, BusUnavailable
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ, Surroundings
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.domain.status.stage_history import matching_history, with_history
from services.common.http.server import StatusError
from services.common.kube.cache.vmi_watch import WatchedVmi, read_pods
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound
from services.common.kube.surroundings import derive_with_surroundings

DEGRADED_BUS = "bus"
"""The value of ``degraded`` while the bucket cannot be read."""
BUS_DEADLINE = 1.0
"""Seconds that a response waits for the bucket."""


async def observe_vmi(kube: Kube, namespace: str, name: str) -> WatchedVmi:
    """Return the VMI, its pods and the VM of its name, live.

    :raises KubeError: the API server does not answer, or the VMI does not exist.
    """
    vmi, vm = await asyncio.gather(kube.get(VMIS, namespace, name), _get_vm(kube, namespace, name))
    # Listed by the VMI's UID, so not in parallel with the VMI.
    return WatchedVmi(vmi, await read_pods(kube, vmi.metadata), vm)


async def read_hotplug_status(
    kube: Kube, bus: Bus, beside: Capabilities | None, namespace: str, name: str, *, stored: bool = False
) -> HotplugStatus:
    """Return the hot-plug status of a VMI.

    :param beside: what the KubeVirt that owns the VMs can do; ``None`` where hotnic owns them.
    :param stored: include the bucket's entries of the VMI.
    :raises StatusError: the VMI or an annotation of its pod cannot be parsed.
    :raises KubeError: the API server does not answer, or the VMI does not exist.
    """
    observed = await observe_vmi(kube, namespace, name)
    nic_statuses = await derive_from_cluster(kube, observed, beside)
    if not stored:
        return build_hotplug_status(observed, nic_statuses, await _read_entries(bus, namespace, name, nic_statuses))
    stored_entries = await _read_stored(bus, namespace, name)
    if stored_entries is None:
        return build_hotplug_status(observed, nic_statuses, None)
    prefix = bucket_prefix(namespace, name)
    entries = {
        f"{prefix}{stored_entry.hash}": stored_entry.entry
        for stored_entry in stored_entries
        if stored_entry.entry is not None
    }
    return msgspec.structs.replace(build_hotplug_status(observed, nic_statuses, entries), stored=stored_entries)


async def derive_from_cluster(
    kube: Kube, observed: WatchedVmi, beside: Capabilities | None
) -> list[InterfaceHotplugStatus]:
    """Return the status of each interface, derived from objects; beside KubeVirt also from those around the VM.

    :param beside: as for :func:`read_hotplug_status`.
    :raises StatusError: 422; a spec or an annotation cannot be parsed.
    """
    assert observed.vmi is not None
    derive = partial(derive_vmi_statuses, observed, beside)
    return await derive_with_surroundings(kube, derive, observed.vmi, observed.pods, beside)


def derive_vmi_statuses(
    observed: WatchedVmi, beside: Capabilities | None, around: Surroundings = NOTHING_READ
) -> list[InterfaceHotplugStatus]:
    """Return the status of each interface, derived from objects only.

    :param beside: as for :func:`read_hotplug_status`.
    :param around: what stands around the VM.
    :raises StatusError: 422; a spec or an annotation cannot be parsed.
    """
    assert observed.vmi is not None
    now = datetime.datetime.now(datetime.UTC).isoformat()
    try:
        return derive_statuses(parse_nics(observed.vmi, observed.pod), observed.vm, beside, now, around)
    except ValueError as error:
        meta = observed.vmi.metadata
        message = f"the interfaces of VMI {meta.namespace}/{meta.name} cannot be read: {error}"
        # For the reason `Invalid` kubectl prints only the causes, not the message.
        causes = [StatusCause("FieldValueInvalid", message)]
        details = StatusDetails(name=meta.name, kind="virtualmachineinstance", causes=causes)
        raise StatusError(422, "Invalid", message, details) from error


def build_hotplug_status(
    observed: WatchedVmi, nic_statuses: list[InterfaceHotplugStatus], entries: Mapping[str, StatusEntry] | None
) -> HotplugStatus:
    """Return the hot-plug status: statuses derived from objects, completed by the bucket's entries.

    :param nic_statuses: derived from objects.
    :param entries: the bucket's entries by key; ``None`` when the bus is unavailable.
    """
    assert observed.vmi is not None
    meta, pod_uid = observed.vmi.metadata, observed.pod.metadata.uid if observed.pod is not None else ""
    shown = []
    for nic_status in nic_statuses:
        entry = (entries or {}).get(bucket_key(meta.namespace, meta.name, nic_status))
        # The entry may be of an earlier VMI, pod or operation.
        history = matching_history(entry, nic_status, meta.uid, pod_uid)
        shown.append(with_history(nic_status, history) if history is not None else nic_status)
    # The digest becomes the `resourceVersion`: a client that resumes a watch with it gets a line only after a change.
    degraded = DEGRADED_BUS if entries is None else None
    digest = hashlib.sha256(encode_json((meta.uid, shown, degraded))).hexdigest()[:16]
    return new_hotplug_status(meta.namespace, meta.name, digest, tuple(shown), degraded)


def bucket_key(namespace: str, name: str, nic_status: InterfaceHotplugStatus) -> str:
    """Return the bucket's key of an interface."""
    return str(StatusKey(namespace, name, interface_hash(nic_status.interface)))


def bucket_prefix(namespace: str, name: str) -> str:
    """Return the common prefix of a VMI's keys in the bucket."""
    # `x` replaces the hash, because a token must not be empty.
    return str(StatusKey(namespace, name, "x")).removesuffix("x")


async def _get_vm(kube: Kube, namespace: str, name: str) -> VirtualMachine | None:
    try:
        return await kube.get(VMS, namespace, name)
    except NotFound:
        return None


async def _read_entries(
    bus: Bus, namespace: str, name: str, nic_statuses: list[InterfaceHotplugStatus]
) -> dict[str, StatusEntry] | None:
    if not bus.connected:
        return None
    bucket = bus.kv(BUCKET)
    keys = [bucket_key(namespace, name, nic_status) for nic_status in nic_statuses]
    try:
        async with asyncio.timeout(BUS_DEADLINE):
            found = await asyncio.gather(*(bucket.get(key) for key in keys))
    except (BusUnavailable, TimeoutError):
        return None
    entries = {entry.key: decode_entry(entry.value) for entry in found if entry is not None}
    return {key: entry for key, entry in entries.items() if entry is not None}


async def _read_stored(bus: Bus, namespace: str, name: str) -> tuple[StoredEntry, ...] | None:
    """Return the bucket's entries of a VMI, also those of interfaces that no longer exist.

    :return: sorted by the interface's hash; ``None`` when the bus is unavailable.
    """
    if not bus.connected:
        return None
    prefix = bucket_prefix(namespace, name)
    stored_entries: dict[str, StoredEntry] = {}
    try:
        async with asyncio.timeout(BUS_DEADLINE), aclosing(bus.kv(BUCKET).watch(f"{prefix}>")) as found:
            async for item in found:
                # `None` follows the last entry that existed when the watch began.
                if item is None:
                    break
                # A key that is written meanwhile comes twice.
                stored_entries.pop(item.key, None)
                if item.value is not None:
                    stored = StoredEntry(item.key.removeprefix(prefix), decode_entry(item.value))
                    stored_entries[item.key] = stored
    except (BusUnavailable, TimeoutError):
        return None
    return tuple(sorted(stored_entries.values(), key=lambda stored_entry: stored_entry.hash))
