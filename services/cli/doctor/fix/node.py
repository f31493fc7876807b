"""Change this node: delete a link in a pod, remove a record or a lease. Each subject is read again right before.

Requires root on the node. What must hold is in the change; a subject that is different now is left alone.
Next: :mod:`services.cli.doctor.fix.rounds`.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.cli.doctor.collect import node_files
from services.cli.doctor.collect.node import has_multus, used_addresses
from services.cli.doctor.collect.node_files import NodeSettings
from services.cli.doctor.fix.changes import LeaseRemoval, LinkRemoval, NodeChange, RecordRemoval
from services.cli.doctor.snapshot import NotVisible
from services.common.netlink.errors import LinkMissing, NetlinkFailure, NetnsGone
from services.common.netlink.pool import NetnsPool

LOCK_POLL = 0.05
"""Seconds between two attempts at the lock of host-local."""


class SubjectChanged(Exception):
    """The subject of a change is not as it was examined."""


class NodeChangeFailed(Exception):
    """The node refused a change."""


async def apply_change(change: NodeChange, paths: NodeSettings) -> None:
    """Make a change.

    :raises SubjectChanged: the subject is different now, or in use; nothing was changed.
    :raises NodeChangeFailed: the node refuses the change.
    """
    pool = NetnsPool(paths.host_root)
    try:
        match change:
            case LinkRemoval():
                await _delete_link(change, paths, pool)
            case RecordRemoval():
                await _remove_record(change, paths)
            case LeaseRemoval():
                await _remove_lease(change, paths, pool)
    except (NetnsGone, LinkMissing) as error:
        raise SubjectChanged(error.message) from error
    except NetlinkFailure as error:
        raise NodeChangeFailed(error.message) from error
    except FileNotFoundError as error:
        raise SubjectChanged(f"{error.filename} does not exist any more") from error
    except OSError as error:
        raise NodeChangeFailed(f"{error.filename or 'the node'}: {error.strerror or error}") from error
    finally:
        pool.close()


async def _delete_link(change: LinkRemoval, paths: NodeSettings, pool: NetnsPool) -> None:
    netns = await pool.open(change.netns)
    link = await netns.link(change.index)
    if link is None or (link.name, link.kind) != (change.name, change.kind):
        raise SubjectChanged(f"link {change.name} is not the same any more")
    processes = await asyncio.to_thread(node_files.processes_in, paths, change.netns)
    if isinstance(processes, NotVisible):
        raise SubjectChanged(processes.message)
    if change.tap in await asyncio.to_thread(node_files.taps_held, paths, processes):
        raise SubjectChanged(f"a process holds {change.tap} open")
    await netns.delete(change.index)


async def _remove_record(change: RecordRemoval, paths: NodeSettings) -> None:
    # The daemon may have been started since, and has its records in memory.
    if await asyncio.to_thread(has_multus, paths):
        raise SubjectChanged("hotnic's multus daemon runs on this node again")
    files = [Path(file) for file in change.files]
    if max(file.stat().st_mtime for file in files) != change.changed_at:
        raise SubjectChanged(f"the record of sandbox {change.sandbox} has been written since")
    for file in files:
        file.unlink()


async def _remove_lease(change: LeaseRemoval, paths: NodeSettings, pool: NetnsPool) -> None:
    file = paths.host(change.file)
    async with _locked(file.parent):
        same = node_files.modified_at(file) == change.changed_at
        if not same or node_files.read_lease(file) != (change.container, change.link):
            raise SubjectChanged(f"{change.file} has been written since")
        addresses = await used_addresses(pool, paths)
        if isinstance(addresses, NotVisible):
            raise NodeChangeFailed(addresses.message)
        if change.ip in addresses:
            raise SubjectChanged(f"a link on this node has the address {change.ip}")
        file.unlink()


@asynccontextmanager
async def _locked(folder: Path) -> AsyncIterator[None]:
    """Hold the lock that host-local takes for a network; the caller has a deadline."""
    # A link would have a file made wherever it leads.
    lock = os.open(folder / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_POLL)
        yield
    finally:
        os.close(lock)
