"""What was attached to each sandbox, on disk: one record per sandbox that outlives the daemon.

A record is written before a plugin is executed (``adding``) and again after it (``added``), so that whatever moment the
daemon dies at, DEL finds everything that may exist: those made at sandbox creation and those plugged at run time alike.
A call does not wait for the disk: its record stands in ``<id>.unsettled`` at once, in memory (``/run``), which outlives
the process, and in ``<id>.json`` a few milliseconds later, synced, which outlives a loss of power. Pod annotations stay
the truth for users; this is the node's own memory. Not here: when an attachment may go, see
:mod:`services.multus.plan`.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec
from structlog.typing import FilteringBoundLogger

from schemas import cni
from services.common import faults
from services.multus.call import PodId, valid_sandbox_id
from services.multus.conflist import Attributes, Network, parse
from services.multus.disk import replace
from services.multus.errors import CniError
from services.multus.locks import Locks


class Owner(StrEnum):
    """What an attachment came by.

    The cluster network, ``defaultNetworks`` (or the further ``delegates``), the auxiliary chain, the pod's annotation,
    or ``/delegate``.
    """

    CLUSTER = "cluster"
    DEFAULT = "default"
    AUXILIARY = "auxiliary"
    NETWORKS = "networks"
    DELEGATE = "delegate"


class State(StrEnum):
    """How far an attachment has come."""

    ADDING = "adding"
    ADDED = "added"


class Attachment(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One attachment of a sandbox.

    :ivar network: ``namespace/nad``, or the CNI network's name. :ivar config: the CNI configuration as it was run.
    :ivar network_name: stands in where the configuration names no network; ``cni_version`` likewise.
    :ivar runtime: ``runtimeConfig`` by capability. :ivar fingerprint: of configuration and attributes.
    :ivar ifindex: of the link in the sandbox; ``0`` while it is being added, or where there was none.
    :ivar kind: of that link (``veth``, …). :ivar mac: :ivar mtu: as the plugin left them.
    :ivar device_info: of a device plugin's device.
    """

    ifname: str
    network: str
    owner: Owner
    config: str
    network_name: str
    cni_version: str
    fingerprint: str
    state: State = State.ADDING
    runtime: dict[str, Any] = {}
    cni_args: dict[str, Any] = {}
    result: cni.CniResult | None = None
    ifindex: int = 0
    kind: str | None = None
    mac: str | None = None
    mtu: int | None = None
    device_info: dict[str, Any] | None = None

    def parsed(self) -> Network:
        """The configuration.

        :raises CniError: it cannot be read (any more).
        """
        return parse(self.config, name=self.network_name, version=self.cni_version)

    def attributes(self) -> Attributes:
        """What was asked beside it."""
        return Attributes(self.runtime, self.cni_args)


class Sandbox(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The record of a sandbox: attachments in the order they were made.

    :ivar netns: path of the network namespace. :ivar released: the runtime has asked for DEL of the whole sandbox.
    :ivar adopted: made by multus-cni, whose files about it go with the attachments.
    """

    sandbox_id: str
    netns: str
    namespace: str
    pod: str
    pod_uid: str
    attachments: tuple[Attachment, ...] = ()
    released: bool = False
    adopted: bool = False
    schema: int = 1

    @property
    def pod_id(self) -> PodId:
        """The pod it belongs to."""
        return PodId(self.namespace, self.pod, self.pod_uid)

    def find(self, ifname: str) -> Attachment | None:
        """The attachment under an interface name."""
        return next((attachment for attachment in self.attachments if attachment.ifname == ifname), None)

    def with_(self, attachment: Attachment) -> "Sandbox":
        """With this attachment, in place of one of the same interface name."""
        others = [a if a.ifname != attachment.ifname else attachment for a in self.attachments]
        if self.find(attachment.ifname) is None:
            others.append(attachment)
        return msgspec.structs.replace(self, attachments=tuple(others))

    def without(self, ifname: str) -> "Sandbox":
        """Without the attachment of that interface name."""
        left = tuple(attachment for attachment in self.attachments if attachment.ifname != ifname)
        return msgspec.structs.replace(self, attachments=left)


SETTLED: Final = ".json"
UNSETTLED: Final = ".unsettled"
SETTLE_AFTER: Final = 0.02
"""Seconds between a record and its copy on the disk: the call that is answered meanwhile goes first, and what it writes
in several steps is synced once."""


class Records:
    """The records of a node, below ``<cniDir>/sandboxes``, and one lock per sandbox.

    :param unsettled: directory of records that are not on the disk yet, best in memory; ``None``: beside the others.
    :param lock_timeout: seconds to wait for another call on the same sandbox.
    """

    def __init__(
        self,
        cni_dir: str | Path,
        *,
        log: FilteringBoundLogger,
        unsettled: Path | None = None,
        lock_timeout: float = 90.0,
    ) -> None:
        self._folder = Path(cni_dir) / "sandboxes"
        self._unsettled = unsettled if unsettled is not None else self._folder
        self._log = log
        self._locks = Locks(lock_timeout)
        self._newest: dict[str, bytes | None] = {}
        self._waiting: set[str] = set()
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._decoder = msgspec.json.Decoder(Sandbox)
        for folder in (self._folder, self._unsettled):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for cut_off in folder.glob(".*.tmp"):
                cut_off.unlink(missing_ok=True)

    def locked(self, sandbox_id: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold a sandbox: its calls come one after the other."""
        return self._locks.one(sandbox_id)

    def all_locked(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold all sandboxes, for GC."""
        return self._locks.all()

    def read(self, sandbox_id: str) -> Sandbox | None:
        """The record of a sandbox. A damaged file is put aside, logged, and counts as absent.

        :raises CniError: code 5, it cannot be read.
        """
        if sandbox_id in self._newest:
            # The files may show an older one for the moment that a worker thread takes to replace it.
            newest = self._newest[sandbox_id]
            return self._decoder.decode(newest) if newest is not None else None
        for suffix in (UNSETTLED, SETTLED):
            path = self._path(sandbox_id, suffix)
            with _classified(f"the record of sandbox {sandbox_id} cannot be read"):
                try:
                    return self._decoder.decode(path.read_bytes())
                except FileNotFoundError:
                    continue
                except msgspec.DecodeError as error:
                    aside = path.with_name(f"{path.name}.damaged")
                    self._log.error("sandbox record is damaged; it is put aside", path=str(aside), error=str(error))
                    path.replace(aside)
        return None

    def write(self, sandbox: Sandbox) -> None:
        """Write a record; one without attachments is removed.

        :raises CniError: code 5, it cannot be written: what was recorded before stands.
        """
        sandbox_id = sandbox.sandbox_id
        data = msgspec.json.encode(sandbox) if sandbox.attachments else None
        settled, unsettled = self._path(sandbox_id, SETTLED), self._path(sandbox_id, UNSETTLED)
        with _classified(f"the record of sandbox {sandbox_id} cannot be written"):
            if data is not None:
                replace(unsettled, data)
            else:
                # In this order: whoever looks in between, after a kill, finds the newer of the two.
                settled.unlink(missing_ok=True)
                unsettled.unlink(missing_ok=True)
        self._settle_soon(sandbox_id, data)

    def settle(self, sandbox_id: str) -> None:
        """Bring to the disk what stands in memory only: an earlier process, or a full disk, has left it there.

        :raises CniError: code 5, it cannot be read.
        """
        if sandbox_id not in self._settling and self._path(sandbox_id, UNSETTLED).exists():
            sandbox = self.read(sandbox_id)
            if sandbox is not None:
                self._settle_soon(sandbox_id, msgspec.json.encode(sandbox))

    async def settled(self) -> None:
        """Wait until everything that was written is on the disk."""
        while self._settling:
            await asyncio.gather(*self._settling.values())

    def ids(self) -> list[str]:
        """The sandboxes that have a record."""
        names = (Path(name) for folder in (self._folder, self._unsettled) for name in os.listdir(folder))
        stems = {name.stem for name in names if name.suffix in (SETTLED, UNSETTLED)}
        return sorted(stem for stem in stems if valid_sandbox_id(stem))

    def changed_at(self, sandbox_id: str) -> float | None:
        """When a record was last written, in seconds since the epoch; ``None`` when there is none."""
        for suffix in (UNSETTLED, SETTLED):
            try:
                return self._path(sandbox_id, suffix).stat().st_mtime
            except FileNotFoundError:
                continue
        return None

    def _settle_soon(self, sandbox_id: str, data: bytes | None) -> None:
        self._newest[sandbox_id] = data
        self._waiting.add(sandbox_id)
        if sandbox_id not in self._settling:
            self._settling[sandbox_id] = asyncio.create_task(self._settle(sandbox_id), name=f"settle {sandbox_id}")

    async def _settle(self, sandbox_id: str) -> None:
        """Put the newest record of a sandbox on the disk. Synced in a worker thread: the disk cannot be awaited."""
        settled, unsettled = self._path(sandbox_id, SETTLED), self._path(sandbox_id, UNSETTLED)
        try:
            await asyncio.sleep(SETTLE_AFTER)
            while sandbox_id in self._waiting:
                self._waiting.discard(sandbox_id)
                data = self._newest[sandbox_id]
                if data is None:
                    settled.unlink(missing_ok=True)
                    continue
                with faults.step("multus.record-on-disk"):
                    await asyncio.to_thread(replace, settled, data, synced=True)
                if sandbox_id not in self._waiting:
                    unsettled.unlink(missing_ok=True)
        except OSError as error:
            self._log.error("sandbox record is not on the disk", path=str(settled), error=str(error))
        finally:
            # In the task itself, not when the loop gets to a callback: a record written in between would wait for ever.
            self._waiting.discard(sandbox_id)
            del self._newest[sandbox_id], self._settling[sandbox_id]

    def _path(self, sandbox_id: str, suffix: str) -> Path:
        if not valid_sandbox_id(sandbox_id):
            raise CniError(cni.Code.INVALID_ENVIRONMENT, f"{sandbox_id!r} is not a container id")
        return (self._unsettled if suffix == UNSETTLED else self._folder) / f"{sandbox_id}{suffix}"


@contextlib.contextmanager
def _classified(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CniError(cni.Code.IO_FAILURE, f"{what}: {error}") from error
