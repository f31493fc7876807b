"""The guests of this node: starts QEMU in its pod's network namespace, follows its boot, ends it.

What virt-launcher is on a real cluster. The primary NIC is on QEMU's user networking; secondary NICs are none of
its business, the product plugs them over the guest's monitor. A card file `guest.json` beside the sockets says who
the guest is: the lab's console finds it there, and so does this process after a restart.
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

from schemas.kube import VmiSpec
from services.common.logs import Log
from services.common.reconcile import Reject, Retry
from services.lab.guest.console import Ready
from services.lab.guest.qemu import BootNic, GuestSpec
from services.lab.layout import Guests
from services.lab.node.cri import PodRuntime, RuntimeFailureError
from services.lab.node.machine import SOCKETS, UNKNOWN_EXIT, Machine, MachineError
from services.lab.node.objects import Object, cores, memory_mib
from services.lab.node.resources import Key
from services.lab.tools import Tools

GUEST_ANNOTATION: Final = "lab.hotnic.io/guest"
"""On a VMI (by its VM's template): `qemu` or `double`, whatever the lab's guests are otherwise."""

BOOT_DEADLINE: Final = 120.0
"""Seconds after which a guest that said nothing is reported in the log; it goes on booting."""


@dataclass(frozen=True, slots=True)
class Card:
    """Who a guest is."""

    namespace: str
    name: str
    uid: str
    """Of the VMI; also the folder's name."""
    pod: str
    pod_uid: str
    pid: int
    mac: str
    """Of the primary NIC."""


@dataclass(slots=True)
class _Entry:
    card: Card
    machine: Machine | None
    booted: bool = False
    stopping: bool = False
    watcher: asyncio.Task[None] | None = None


class Launcher:
    """All guests, by the UID of their launcher pod; `changed` is told the keys of VMI and pod."""

    def __init__(
        self,
        runtime: PodRuntime,
        tools: Tools,
        folder: Path,
        changed: Callable[[Key, Key], None],
        log: Log,
        *,
        guests: Guests = "qemu",
    ) -> None:
        self._runtime = runtime
        self._tools = tools
        self._folder = folder
        self._changed = changed
        self._log = log
        self._kind: Guests = guests
        self._guests: dict[str, _Entry] = {}

    async def adopt(self) -> None:
        """Take over the guests that an earlier process started."""
        for path in sorted(self._folder.glob("*/guest.json")):
            try:
                card = Card(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError) as error:
                self._log.warning("unreadable guest card", path=str(path), error=str(error))
                continue
            entry = _Entry(card, None)
            self._guests[card.pod_uid] = entry
            entry.machine = await Machine.adopt(path.parent, card.pid, partial(self._ended, entry))
            if entry.machine is not None:
                entry.booted = any(isinstance(event, Ready) for event in entry.machine.console.events)
                entry.watcher = asyncio.create_task(self._watch(entry, entry.machine))
            self._log.info("guest adopted" if entry.machine else "guest has ended", vmi=card.name, pid=card.pid)

    async def ensure(self, vmi: Object, pod: Object) -> None:
        """Start the guest of `vmi` in `pod` unless it was started before.

        :raises Retry: the sandbox or QEMU is not willing. :raises Reject: the VMI cannot be run as it is.
        """
        meta, pod_meta = vmi["metadata"], pod["metadata"]
        if pod_meta["uid"] in self._guests:
            return
        try:
            spec = guest_spec(vmi, self._tools, self._folder / meta["uid"], self._kind)
        except (ValueError, msgspec.ValidationError) as error:
            raise Reject("UnsupportedMachine", str(error)) from error
        netns = await self._netns(pod_meta["uid"])
        card = Card(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            pod=pod_meta["name"],
            pod_uid=pod_meta["uid"],
            pid=0,
            mac=spec.nics[0].mac if spec.nics else "",
        )
        entry = _Entry(card, None)
        try:
            machine = await Machine.start(spec, ("nsenter", f"--net={netns}", "--"), partial(self._ended, entry))
        except MachineError as error:
            raise Retry("GuestNotStarted", str(error), after=1.0) from error
        entry.machine = machine
        entry.card = Card(**{**asdict(card), "pid": machine.pid})
        self._guests[pod_meta["uid"]] = entry
        write_card(spec.folder / "guest.json", entry.card)
        entry.watcher = asyncio.create_task(self._watch(entry, machine))
        self._log.info("guest started", vmi=card.name, pid=machine.pid, netns=netns)

    async def stop(self, pod_uid: str) -> None:
        """End the guest of a pod; returns once it is gone."""
        entry = self._guests.get(pod_uid)
        if entry is None:
            return
        entry.stopping = True
        if entry.watcher is not None:
            entry.watcher.cancel()
        if entry.machine is not None:
            await entry.machine.stop()
        self._guests.pop(pod_uid, None)
        discard(self._folder / entry.card.uid)
        self._log.info("guest stopped", vmi=entry.card.name)

    async def release(self) -> None:
        """Let go of all guests without ending them."""
        for entry in self._guests.values():
            if entry.watcher is not None:
                entry.watcher.cancel()
            if entry.machine is not None:
                await entry.machine.release()

    def running(self, pod_uid: str) -> bool:
        """Return whether the pod's guest runs."""
        entry = self._guests.get(pod_uid)
        return entry is not None and entry.machine is not None and not entry.machine.ended.is_set()

    def booted(self, pod_uid: str) -> bool:
        """Return whether the pod's guest has said on its console that it is up."""
        entry = self._guests.get(pod_uid)
        return entry is not None and entry.booted

    def exit_code(self, pod_uid: str) -> int | None:
        """Return how the pod's guest ended by itself, None while it has not."""
        entry = self._guests.get(pod_uid)
        if entry is None or entry.stopping:
            return None
        return UNKNOWN_EXIT if entry.machine is None else entry.machine.code

    async def _netns(self, pod_uid: str) -> str:
        try:
            for sandbox in await self._runtime.sandboxes(pod_uid):
                if sandbox.ready:
                    return (await self._runtime.look(sandbox.id)).netns
        except RuntimeFailureError as error:
            raise Retry("RuntimeNotReady", str(error)) from error
        raise Retry("NoSandbox", f"pod {pod_uid} has no ready sandbox")

    async def _watch(self, entry: _Entry, machine: Machine) -> None:
        try:
            ready = await machine.console.wait_ready(BOOT_DEADLINE)
        except (TimeoutError, ConnectionError) as error:
            self._log.warning("guest not up", vmi=entry.card.name, error=str(error) or "it said nothing")
            return
        entry.booted = True
        self._log.info("guest up", vmi=entry.card.name, guest_seconds=ready.guest_time)
        self._tell(entry)

    def _ended(self, entry: _Entry) -> None:
        if not entry.stopping:
            self._tell(entry)

    def _tell(self, entry: _Entry) -> None:
        card = entry.card
        self._changed((card.namespace, card.name), (card.namespace, card.pod))


def guest_spec(vmi: Object, tools: Tools, folder: Path, guests: Guests = "qemu") -> GuestSpec:
    """Return the machine that `vmi` asks for.

    :raises ValueError: a quantity cannot be read. :raises msgspec.ValidationError: its networks are malformed.
    """
    meta = vmi["metadata"]
    kind = meta.get("annotations", {}).get(GUEST_ANNOTATION, guests)
    if kind not in get_args(Guests):
        raise ValueError(f"annotation {GUEST_ANNOTATION} is {kind!r}: qemu and double are known")
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
    """Return the NIC on the pod network: the spec's, or `default` as KubeVirt adds it to a VMI that names none."""
    spec = msgspec.convert(vmi.get("spec", {}), VmiSpec)
    on_pod = {network.name for network in spec.network_items() if network.pod is not None}
    interfaces = spec.interface_items()
    nics = [BootNic(i.name, i.mac_address or derived_mac(vmi)) for i in interfaces if i.name in on_pod]
    devices = vmi.get("spec", {}).get("domain", {}).get("devices", {})
    if not interfaces and devices.get("autoattachPodInterface") is not False:
        nics.append(BootNic("default", derived_mac(vmi)))
    return nics


def derived_mac(vmi: Object) -> str:
    """Return a locally administered MAC that stays the same for this VMI."""
    digest = hashlib.sha256(vmi["metadata"]["uid"].encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))


def write_card(path: Path, card: Card) -> None:
    """Write the card, whole or not at all."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(asdict(card)) + "\n")
    fresh.replace(path)


def discard(folder: Path) -> None:
    """Remove card and sockets of an ended guest; its logs stay until the lab goes down."""
    for name in ("guest.json", *SOCKETS):
        (folder / name).unlink(missing_ok=True)
