"""Reads files of a node: multus records, ``host-local`` leases, network namespaces, and taps that processes hold open.

The kernel writes a tap's name into the ``fdinfo`` of each descriptor that has it open. So the taps of a guest can be
read without a connection to QEMU. Next: :mod:`services.cli.doctor.collect.guest`, which connects to the guest.
"""

import ipaddress
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from schemas import cni
from schemas.inputs import Edge, RejectedInput, rejecting
from schemas.multus import MAX_RECORD_BYTES
from services.cli.doctor.snapshot import AttachmentRecord, IpamLease, NotVisible, SandboxRecords
from services.common.domain.pod_nic import build_network_status
from services.common.guest.drivers import DriverSetting
from services.common.node.files import file_names, read_bounded
from services.common.node.paths import resolve_under

LEASES = "/var/lib/cni/networks"
"""``host-local``'s default directory."""
MAX_LEASE_BYTES = 4096
"""A lease is a container id and a link name."""

NAMESPACES = "/run/netns"
_MADE_BY_A_RUNTIME = "cni-"
"""containerd names a network namespace `cni-<uuid>`."""


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Paths on the node and the guest driver, with the names of the roles' settings.

    :ivar host_process: a process in the node's own network namespace; process 1, unless nodes share its PID namespace.
    """

    cri_socket: str | None = None
    cni_state_dir: str = "/var/lib/cni/multus"
    socket_dir: str = "/run/multus"
    qmp_socket: str = "/run/hotnic/guests/{uid}/qmp.sock"
    host_root: str = "/"
    host_process: str = "/proc/1"
    guest_driver: DriverSetting = "auto"

    def host(self, path: str) -> Path:
        """Return a path of the node as this process sees it."""
        return resolve_under(Path(self.host_root), path)


class _Attachment(msgspec.Struct, frozen=True, rename="camel"):
    ifname: str
    network: str
    config: str = "{}"
    state: str = "adding"
    result: cni.CniResult | None = None
    ifindex: int = 0
    kind: str | None = None
    mac: str | None = None


class _Sandbox(msgspec.Struct, frozen=True, rename="camel"):
    sandbox_id: str
    netns: str
    namespace: str
    pod: str
    pod_uid: str
    attachments: tuple[_Attachment, ...] = ()
    # Named `released` in the files.
    deletion_requested: bool = msgspec.field(default=False, name="released")


class RecordAndLeaseDirs(msgspec.Struct, frozen=True):
    """A sandbox's record and the directories of its leases, other than the default one."""

    record: SandboxRecords
    lease_dirs: frozenset[str]


_sandbox = msgspec.json.Decoder(_Sandbox)


def read_records(paths: NodeSettings) -> tuple[RecordAndLeaseDirs, ...] | NotVisible:
    """Return the multus daemon's records.

    The daemon writes a record to ``<id>.unsettled`` below its socket's directory, and a moment later to ``<id>.json``
    on disk. While both exist, the unsettled one is the newer one.
    """
    unsettled, settled = Path(paths.socket_dir) / "records", Path(paths.cni_state_dir) / "sandboxes"
    found = []
    try:
        # Without a daemon since the node has started there are no unsettled records. They are listed first: a record
        # that is settled meanwhile is then found on disk.
        names = {*(file_names(unsettled) if unsettled.is_dir() else ()), *file_names(settled)}
        suffixes = (".unsettled", ".json")
        for sandbox in sorted({Path(name).stem for name in names if Path(name).suffix in suffixes}):
            files = unsettled / f"{sandbox}.unsettled", settled / f"{sandbox}.json"
            record = _newest(*files)
            if record is not None:
                found.append(_recorded(record, files))
    except (OSError, ValueError) as error:
        return NotVisible(f"cannot read the multus daemon's records in {settled} and {unsettled}: {error}")
    return tuple(found)


def modified_at(file: Path) -> float | None:
    """Return when a file was last written, in seconds since the epoch; ``None`` when there is none."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return None


def _newest(*files: Path) -> _Sandbox | None:
    """Return the record in the first of the files that exists; ``None`` when it was removed meanwhile."""
    for file in files:
        with suppress(FileNotFoundError, IsADirectoryError):
            data = read_bounded(file, MAX_RECORD_BYTES)
            with rejecting(Edge.FILE):
                return _sandbox.decode(data)
    return None


def _recorded(sandbox: _Sandbox, files: Iterable[Path]) -> RecordAndLeaseDirs:
    times = {file: changed_at for file in files if (changed_at := modified_at(file)) is not None}
    plugins = [_plugin(attachment.config) for attachment in sandbox.attachments]
    attached = (_attached(one, plugin) for one, plugin in zip(sandbox.attachments, plugins, strict=True))
    folders = {_ipam(plugin).get("dataDir") for plugin in plugins}
    return RecordAndLeaseDirs(
        SandboxRecords(
            sandbox=sandbox.sandbox_id,
            netns=sandbox.netns,
            pod=f"{sandbox.namespace}/{sandbox.pod}",
            pod_uid=sandbox.pod_uid,
            attached=tuple(attached),
            deletion_requested=sandbox.deletion_requested,
            files=tuple(map(str, times)),
            changed_at=max(times.values(), default=0.0),
        ),
        frozenset(folder for folder in folders if isinstance(folder, str) and folder),
    )


def _attached(one: _Attachment, plugin: dict[str, Any]) -> AttachmentRecord:
    status = build_network_status(one.network, one.ifname, one.result or cni.CniResult())
    return AttachmentRecord(
        link=one.ifname,
        network=one.network,
        finished=one.state == "added",
        ips=tuple(status.ips or ()),
        mac=(one.mac or "").lower(),
        ifindex=one.ifindex,
        kind=one.kind,
        # "cni0" is the default of the bridge plugin.
        bridge=str(plugin.get("bridge") or "cni0") if plugin.get("type") == "bridge" else None,
        leased=_ipam(plugin).get("type") == "host-local",
    )


def _plugin(config: str) -> dict[str, Any]:
    """Return the plugin of a CNI configuration that creates the link: the first one of a list."""
    try:
        with rejecting(Edge.FILE):
            document = msgspec.json.decode(config, type=dict[str, Any])
    except RejectedInput:
        return {}
    plugins = document.get("plugins")
    first = plugins[0] if isinstance(plugins, list) and plugins else document
    return first if isinstance(first, dict) else {}


def _ipam(plugin: dict[str, Any]) -> dict[str, Any]:
    ipam = plugin.get("ipam")
    return ipam if isinstance(ipam, dict) else {}


def read_leases(paths: NodeSettings, further: Iterable[str]) -> tuple[IpamLease, ...] | NotVisible:
    """Return ``host-local``'s leases, in its default directory and in further ones."""
    found: list[IpamLease] = []
    for folder in sorted({LEASES, *further}):
        try:
            for network in paths.host(folder).iterdir():
                found += _leases_of(network, f"{folder.rstrip('/')}/{network.name}")
        except FileNotFoundError:
            continue
        except OSError as error:
            return NotVisible(f"cannot read host-local's leases in {folder}: {error}")
    return tuple(found)


def _leases_of(network: Path, folder: str) -> Iterator[IpamLease]:
    for file in sorted(network.iterdir()) if network.is_dir() else ():
        try:
            ip = str(ipaddress.ip_address(file.name))
            changed_at = file.stat().st_mtime
            container, link = read_lease(file)
        except (ValueError, FileNotFoundError):
            # A lock file, or a lease that was released meanwhile.
            continue
        yield IpamLease(network.name, ip, container, link, f"{folder}/{file.name}", changed_at)


def read_lease(file: Path) -> tuple[str, str]:
    """Return container id and link name of a lease.

    :raises ValueError: it is no text.
    :raises OSError: it cannot be read, or is larger than a lease.
    """
    return parse_lease(read_bounded(file, MAX_LEASE_BYTES).decode())


def parse_lease(text: str) -> tuple[str, str]:
    """Return container id and link name of a lease: in ``host-local``'s format one on each line."""
    container, _, link = text.partition("\n")
    return container.strip(), link.strip()


def runtime_netns_paths(paths: NodeSettings) -> list[str]:
    """Return the paths of the network namespaces that container runtimes created; those of `ip netns` are skipped."""
    try:
        names = os.listdir(paths.host(NAMESPACES))
    except FileNotFoundError:
        return []
    return [f"{NAMESPACES}/{name}" for name in sorted(names) if name.startswith(_MADE_BY_A_RUNTIME)]


def netns_identity(paths: NodeSettings, path: str) -> tuple[int, int] | None:
    """Return the device and inode of a namespace file, which identify it; ``None`` when there is none."""
    try:
        found = paths.host(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def all_netns_paths(paths: NodeSettings) -> dict[tuple[int, int], list[str]]:
    """Return the network namespaces of the node that a process is in, or that have a name, with all their paths."""
    found: dict[tuple[int, int], list[str]] = {}
    names = paths.host(NAMESPACES)
    candidates = [f"{NAMESPACES}/{name}" for name in (os.listdir(names) if names.is_dir() else ())]
    candidates += [f"/proc/{pid}/ns/net" for pid in os.listdir(paths.host("/proc")) if pid.isdigit()]
    for path in candidates:
        identity = netns_identity(paths, path)
        if identity is not None:
            found.setdefault(identity, []).append(path)
    return found


def processes_in(paths: NodeSettings, netns: str) -> list[str] | NotVisible:
    """Return the ids of the processes in a network namespace."""
    wanted = netns_identity(paths, netns)
    if wanted is None:
        return NotVisible(f"there is no network namespace at {netns}")
    return [
        pid
        for pid in os.listdir(paths.host("/proc"))
        if pid.isdigit() and netns_identity(paths, f"/proc/{pid}/ns/net") == wanted
    ]


def taps_held(paths: NodeSettings, processes: Iterable[str]) -> frozenset[str]:
    """Return the names of the taps that processes hold open."""
    found: set[str] = set()
    for pid in processes:
        folder = paths.host(f"/proc/{pid}/fdinfo")
        try:
            for fd in os.listdir(folder):
                found |= _taps_of((folder / fd).read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return frozenset(found)


def _taps_of(fdinfo: str) -> set[str]:
    lines = (line.partition(":") for line in fdinfo.splitlines())
    return {value.strip() for key, _, value in lines if key == "iff" and value.strip()}
