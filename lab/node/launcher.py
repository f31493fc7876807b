"""The guests of this node: start QEMU in a pod's network namespace, wait for the guest's boot, stop it.

This replaces virt-launcher. The primary NIC is on QEMU's user networking; secondary NICs are not handled here,
because hotnic's handler plugs them over QMP. The file `guest.json` beside a guest's sockets identifies the guest, for
`hotnic lab console` and for this process after a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final, get_args

import msgspec

from lab.guest.console import Ready
from lab.guest.qemu import BOOT_DEADLINE, BootNic, GuestSpec
from lab.layout import GuestKind
from lab.node.cri import PodRuntime, RuntimeCallError
from lab.node.guest_process import SOCKETS, UNKNOWN_EXIT, GuestProcess, GuestStartError
from lab.node.objects import Object, cores, memory_mib
from lab.node.resources import Key
from lab.tools import LabTools
from schemas.kubernetes.objects import VmiSpec
from services.common.reconcile import Reject, Retry
from services.common.telemetry.logs import Log

GUEST_ANNOTATION: Final = "lab.hotnic.io/guest"
"""Annotation of a VMI, taken over from its VM's template: `qemu` or `double`; it overrides the lab's default."""


@dataclass(frozen=True, slots=True)
class GuestRecord:
    """Identifies a guest; stored in `guest.json`."""

    namespace: str
    name: str
    uid: str
    """UID of the VMI; also the name of the guest's folder."""
    pod: str
    pod_uid: str
    pid: int
    mac: str
    """MAC of the primary NIC."""


@dataclass(slots=True)
class _TrackedGuest:
    record: GuestRecord
    process: GuestProcess | None
    booted: bool = False
    stopping: bool = False
    watcher: asyncio.Task[None] | None = None


class Launcher:
    """All guests of this node, by the UID of their launcher pod.

    :param changed: called with the keys of VMI and pod when a guest has booted or ended.
    """

    def __init__(
        self,
        runtime: PodRuntime,
        tools: LabTools,
        folder: Path,
        changed: Callable[[Key, Key], None],
        log: Log,
        *,
        guests: GuestKind = "qemu",
    ) -> None:
        self._runtime = runtime
        self._tools = tools
        self._folder = folder
        self._changed = changed
        self._log = log
        self._kind: GuestKind = guests
        self._guests: dict[str, _TrackedGuest] = {}

    async def adopt(self) -> None:
        """Take over the guests that an earlier process started."""
        for path in sorted(self._folder.glob("*/guest.json")):
            try:
                record = GuestRecord(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError) as error:
                self._log.warning("guest record unreadable", path=str(path), error=str(error))
                continue
            entry = _TrackedGuest(record, None)
            # Also if the guest has ended meanwhile: its pod then fails and gets no second guest.
            self._guests[record.pod_uid] = entry
            entry.process = await GuestProcess.adopt(path.parent, record.pid, partial(self._ended, entry))
            if entry.process is not None:
                entry.booted = any(isinstance(event, Ready) for event in entry.process.console.events)
                entry.watcher = asyncio.create_task(self._watch(entry, entry.process))
            self._log.info("guest adopted" if entry.process else "guest has ended", vmi=record.name, pid=record.pid)

    async def ensure(self, vmi: Object, pod: Object) -> None:
        """Start the guest of `vmi` in `pod` unless it was started before.

        :raises Retry: the sandbox is not ready or QEMU did not start.
        :raises Reject: the VMI asks for something that the lab does not support.
        """
        meta, pod_meta = vmi["metadata"], pod["metadata"]
        if pod_meta["uid"] in self._guests:
            return
        try:
            spec = guest_spec(vmi, self._tools, self._folder / meta["uid"], self._kind)
        except (ValueError, msgspec.ValidationError) as error:
            raise Reject("UnsupportedMachine", str(error)) from error
        netns = await self._netns(pod_meta["uid"])
        record = GuestRecord(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            pod=pod_meta["name"],
            pod_uid=pod_meta["uid"],
            pid=0,
            mac=spec.nics[0].mac if spec.nics else "",
        )
        entry = _TrackedGuest(record, None)
        try:
            # Only the network namespace is the pod's: the guest's sockets are in the lab's own file system.
            process = await GuestProcess.start(spec, ("nsenter", f"--net={netns}", "--"), partial(self._ended, entry))
        except GuestStartError as error:
            raise Retry("GuestNotStarted", str(error), after=1.0) from error
        entry.process = process
        # The process id is known only now; the callback above needs the entry before.
        entry.record = GuestRecord(**{**asdict(record), "pid": process.pid})
        self._guests[pod_meta["uid"]] = entry
        write_record(spec.folder / "guest.json", entry.record)
        entry.watcher = asyncio.create_task(self._watch(entry, process))
        self._log.info("guest started", vmi=record.name, pid=process.pid, netns=netns)

    async def stop(self, pod_uid: str) -> None:
        """Stop the guest of a pod and return once it has ended."""
        entry = self._guests.get(pod_uid)
        if entry is None:
            return
        # Its end must not be reported as a guest that ended by itself.
        entry.stopping = True
        if entry.watcher is not None:
            entry.watcher.cancel()
        if entry.process is not None:
            await entry.process.stop()
        self._guests.pop(pod_uid, None)
        remove_files(self._folder / entry.record.uid)
        self._log.info("guest stopped", vmi=entry.record.name)

    async def stop_watching(self) -> None:
        """Stop watching the guests; they continue to run."""
        for entry in self._guests.values():
            if entry.watcher is not None:
                entry.watcher.cancel()
            if entry.process is not None:
                await entry.process.stop_watching()

    def pods(self) -> list[Key]:
        """Return the pods of all guests."""
        return [(entry.record.namespace, entry.record.pod) for entry in self._guests.values()]

    def guests_of(self, pod: Key) -> list[str]:
        """Return the UIDs of the pods of that name that have a guest; an earlier pod may have had the same name."""
        records = [entry.record for entry in self._guests.values()]
        return [record.pod_uid for record in records if (record.namespace, record.pod) == pod]

    def running(self, pod_uid: str) -> bool:
        """Return whether the pod's guest runs."""
        entry = self._guests.get(pod_uid)
        return entry is not None and entry.process is not None and not entry.process.ended.is_set()

    def booted(self, pod_uid: str) -> bool:
        """Return whether the pod's guest has reported on its console that it has booted."""
        entry = self._guests.get(pod_uid)
        return entry is not None and entry.booted

    def exit_code(self, pod_uid: str) -> int | None:
        """Return the exit code of a guest that ended by itself, otherwise None."""
        entry = self._guests.get(pod_uid)
        if entry is None or entry.stopping:
            return None
        return UNKNOWN_EXIT if entry.process is None else entry.process.code

    async def _netns(self, pod_uid: str) -> str:
        try:
            for sandbox in await self._runtime.list_sandboxes(pod_uid):
                if sandbox.ready:
                    return (await self._runtime.sandbox_status(sandbox.id)).netns
        except RuntimeCallError as error:
            raise Retry("RuntimeNotReady", str(error)) from error
        raise Retry("NoSandbox", f"pod {pod_uid} has no ready sandbox")

    async def _watch(self, entry: _TrackedGuest, process: GuestProcess) -> None:
        try:
            ready = await process.console.wait_ready(BOOT_DEADLINE)
        except (TimeoutError, ConnectionError) as error:
            # It continues to boot.
            self._log.warning("guest not booted", vmi=entry.record.name, error=str(error) or "no report on the console")
            return
        entry.booted = True
        self._log.info("guest booted", vmi=entry.record.name, guest_seconds=ready.guest_time)
        self._notify(entry)

    def _ended(self, entry: _TrackedGuest) -> None:
        if not entry.stopping:
            self._notify(entry)

    def _notify(self, entry: _TrackedGuest) -> None:
        record = entry.record
        self._changed((record.namespace, record.name), (record.namespace, record.pod))


def guest_spec(vmi: Object, tools: LabTools, folder: Path, guests: GuestKind = "qemu") -> GuestSpec:
    """Return the specification of the guest for `vmi`.

    :raises ValueError: a quantity or the guest annotation is invalid.
    :raises msgspec.ValidationError: its networks or interfaces are malformed.
    """
    meta = vmi["metadata"]
    kind = meta.get("annotations", {}).get(GUEST_ANNOTATION, guests)
    if kind not in get_args(GuestKind):
        raise ValueError(f"annotation {GUEST_ANNOTATION} is {kind!r}: set it to qemu or double")
    return GuestSpec.with_tools(
        tools,
        name=f"{meta['namespace']}_{meta['name']}",
        uid=meta["uid"],
        folder=folder,
        nics=boot_nics(vmi),
        memory_mib=memory_mib(vmi),
        cores=cores(vmi),
        double=kind == "double",
    )


def boot_nics(vmi: Object) -> list[BootNic]:
    """Return the NIC on the pod network: the spec's, or `default`, which KubeVirt adds to a VMI without interfaces."""
    spec = msgspec.convert(vmi.get("spec", {}), VmiSpec)
    on_pod = {network.name for network in spec.network_items() if network.pod is not None}
    interfaces = spec.interface_items()
    nics = [BootNic(i.name, i.mac_address or derived_mac(vmi)) for i in interfaces if i.name in on_pod]
    devices = vmi.get("spec", {}).get("domain", {}).get("devices", {})
    if not interfaces and devices.get("autoattachPodInterface") is not False:
        nics.append(BootNic("default", derived_mac(vmi)))
    return nics


def derived_mac(vmi: Object) -> str:
    """Return a locally administered MAC that is derived from the VMI's UID."""
    digest = hashlib.sha256(vmi["metadata"]["uid"].encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))


def write_record(path: Path, record: GuestRecord) -> None:
    """Write a guest record atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(record)) + "\n")
    temporary.replace(path)


def remove_files(folder: Path) -> None:
    """Remove record and sockets of an ended guest; its logs stay until the lab is stopped."""
    for name in ("guest.json", *SOCKETS):
        (folder / name).unlink(missing_ok=True)
