"""Remove what the plan names from a node, and report what was removed and what was left.

Nothing here is recursive, so nothing goes that the plan did not name.
"""

import errno
import time
from collections.abc import Callable

import msgspec

from schemas.multus import CONF_NAME
from services.cli.node.observe import NodeDirectories, observe
from services.cli.node.plan import CleaningPlan, NodeItem, plan
from services.common.node.daemon_socket import DaemonKind

POLL_INTERVAL = 0.2
"""Seconds between two looks at a daemon that still runs."""


class CleaningReport(msgspec.Struct, frozen=True):
    """What was done on a node.

    :ivar removed: what was removed, or would be.
    :ivar left: what stays, and why.
    :ivar failed: what could not be removed, and why; a later attempt may remove it.
    :ivar dry_run: whether nothing was changed.
    :ivar refused: why the node calls the shim until somebody has changed what is not hotnic's; empty if it does not.
    :ivar later: why a later attempt removes more, although nothing failed; empty if it does not.
    """

    removed: tuple[NodeItem, ...]
    left: tuple[NodeItem, ...]
    failed: tuple[NodeItem, ...]
    dry_run: bool
    refused: str = ""
    later: str = ""


def clean(
    paths: NodeDirectories,
    *,
    dry_run: bool,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> CleaningReport:
    """Remove hotnic's files from a node.

    :param dry_run: change nothing.
    :param timeout: seconds to wait for a daemon that still runs.
    :raises OSError: a directory cannot be read.
    """
    deadline = clock() + timeout
    while True:
        node = observe(paths)
        found = plan(node)
        if dry_run or not found.blocked or clock() >= deadline:
            break
        # The daemon of a DaemonSet that was just deleted finishes its calls.
        sleep(POLL_INTERVAL)
    if found.blocked:
        # A daemon that does not answer may be a node's problem, not a DaemonSet that still exists.
        silent = " (it does not answer)" if node.daemon is DaemonKind.SILENT else ""
        return CleaningReport((), (), (NodeItem(paths.socket_dir, f"{found.blocked}{silent}"),), dry_run)
    return _dry(found) if dry_run else _apply(paths, found)


def _dry(found: CleaningPlan) -> CleaningReport:
    return CleaningReport(found.remove, found.left, (), True, found.refused, found.later)


def _apply(paths: NodeDirectories, found: CleaningPlan) -> CleaningReport:
    removed: list[NodeItem] = []
    left, failed = list(found.left), list[NodeItem]()
    for index, item in enumerate(found.remove):
        path = paths.entry(item.path)
        try:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            if path.name == CONF_NAME:
                # The runtime goes on to call the shim, so nothing that the shim needs may go.
                failed.append(NodeItem(item.path, error.strerror or str(error)))
                left += [
                    NodeItem(rest.path, f"needed as long as {item.path} is there") for rest in found.remove[index + 1 :]
                ]
                break
            if error.errno == errno.EBUSY:
                left.append(NodeItem(item.path, "empty, but mounted into a container"))
            else:
                failed.append(NodeItem(item.path, error.strerror or str(error)))
        else:
            removed.append(item)
    return CleaningReport(tuple(removed), tuple(left), tuple(failed), False, found.refused, found.later)
