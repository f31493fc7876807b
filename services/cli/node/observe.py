"""Read what there is of hotnic on a node, without a daemon. Next: :mod:`services.cli.node.plan`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from schemas.inputs import Edge, RejectedInput, rejecting
from schemas.multus import CONF_NAME, MAX_RECORD_BYTES, SHIM_LOG_NAME, SHIM_NAME, SOCKET_NAME
from services.cli.node.plan import ObservedNode, RecordedLink, RecordedSandbox
from services.common.node.cni_conf import read_plugin_types
from services.common.node.daemon_socket import probe_daemon
from services.common.node.files import is_file, read_bounded, temporary_files
from services.common.node.paths import resolve_under

CRIO_SOCKET: Final = "/run/crio/crio.sock"
_RECORDS: Final = "records"
_SANDBOXES: Final = "sandboxes"
_RECORD_SUFFIXES: Final = (".json", ".unsettled", ".damaged", ".tmp")


class NodeDirectories(msgspec.Struct, frozen=True, kw_only=True):
    """The directories on a node; all but the first are the node's own paths.

    :ivar host_root: where the node's file system is mounted.
    """

    host_root: str = "/"
    cni_conf_dir: str = "/etc/cni/net.d"
    cni_bin_dir: str = "/opt/cni/bin"
    state_dir: str = "/var/lib/cni/multus"
    socket_dir: str = "/run/multus"

    def seen(self, path: str) -> Path:
        """Return a path of the node as this process sees it, with the node's links resolved.

        :raises OSError: the path has too many links.
        """
        return resolve_under(Path(self.host_root), path)

    def entry(self, path: str) -> Path:
        """Return a path of the node as this process sees it; a link at its end stays a link.

        :raises OSError: the path has too many links.
        """
        folder, _, name = path.rpartition("/")
        return self.seen(folder or "/") / name


class _Record(msgspec.Struct, frozen=True):
    namespace: str
    pod: str
    netns: str = ""
    attachments: tuple[RecordedLink, ...] = ()


_record = msgspec.json.Decoder(_Record)


def observe(paths: NodeDirectories) -> ObservedNode:
    """Return the state of the node.

    :raises OSError: a directory cannot be read.
    """
    socket_dir, state_dir, bin_dir = (
        path.rstrip("/") for path in (paths.socket_dir, paths.state_dir, paths.cni_bin_dir)
    )
    unsettled, settled = f"{socket_dir}/{_RECORDS}", f"{state_dir}/{_SANDBOXES}"
    conf_dir, shim = paths.cni_conf_dir.rstrip("/"), f"{bin_dir}/{SHIM_NAME}"
    unfinished = [
        f"{folder}/{path.name}"
        for folder, name in ((conf_dir, CONF_NAME), (bin_dir, SHIM_NAME))
        for path in temporary_files(paths.seen(folder) / name)
    ]
    in_unsettled, in_settled = _names(paths.seen(unsettled)), _names(paths.seen(settled))
    in_socket_dir, in_state_dir = _names(paths.seen(socket_dir)), _names(paths.seen(state_dir))
    unsettled_records, settled_records = (
        _records(paths, unsettled, in_unsettled),
        _records(paths, settled, in_settled),
    )
    socket_file = [f"{socket_dir}/{SOCKET_NAME}"] if is_file(paths.seen(socket_dir) / SOCKET_NAME) else []
    own = {_RECORDS, *([SOCKET_NAME] if socket_file else [])}
    foreign = [
        *(f"{unsettled}/{name}" for name in in_unsettled if f"{unsettled}/{name}" not in unsettled_records),
        *(f"{settled}/{name}" for name in in_settled if f"{settled}/{name}" not in settled_records),
        *(f"{socket_dir}/{name}" for name in in_socket_dir if name not in own),
        *(f"{state_dir}/{name}" for name in in_state_dir if name != _SANDBOXES),
    ]
    return ObservedNode(
        daemon=probe_daemon(paths.seen(f"{socket_dir}/{SOCKET_NAME}")),
        conf_dir=conf_dir,
        plugin_types=read_plugin_types(paths.seen(conf_dir), lambda path: paths.seen(f"{conf_dir}/{path.name}")),
        shim_log=f"{bin_dir}/{SHIM_LOG_NAME}" if is_file(paths.seen(bin_dir) / SHIM_LOG_NAME) else "",
        shim=shim if is_file(paths.seen(bin_dir) / SHIM_NAME) else "",
        unfinished=tuple(unfinished),
        socket_files=(*socket_file, *unsettled_records),
        record_files=tuple(settled_records),
        directories=tuple(path for path in (unsettled, socket_dir, settled, state_dir) if paths.seen(path).is_dir()),
        foreign=tuple(foreign),
        sandboxes=_sandboxes(paths, [*settled_records, *unsettled_records]),
        crio=paths.seen(CRIO_SOCKET).exists(),
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _records(paths: NodeDirectories, folder: str, names: Iterable[str]) -> list[str]:
    found = (f"{folder}/{name}" for name in names if name.endswith(_RECORD_SUFFIXES))
    return [path for path in found if not paths.entry(path).is_dir()]


def _sandboxes(paths: NodeDirectories, records: Iterable[str]) -> tuple[RecordedSandbox, ...]:
    """Return the recorded sandboxes; an unsettled record is newer and comes last."""
    found: dict[str, RecordedSandbox] = {}
    files: dict[str, tuple[str, ...]] = {}
    for path in records:
        name = Path(path)
        if name.suffix not in (".json", ".unsettled"):
            continue
        try:
            data = read_bounded(paths.seen(path), MAX_RECORD_BYTES)
            with rejecting(Edge.FILE):
                record = _record.decode(data)
        # A record that cannot be read says nothing about a pod, and is removed with the others.
        except (OSError, RejectedInput):
            continue
        alive = bool(record.netns) and paths.seen(record.netns).exists()
        files[name.stem] = (*files.get(name.stem, ()), path)
        found[name.stem] = RecordedSandbox(
            f"{record.namespace}/{record.pod}", alive, record.attachments, files[name.stem]
        )
    return tuple(found.values())
