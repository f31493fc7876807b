"""What a node's files tell: multus' records, ``host-local``'s leases, namespaces, and the taps that processes hold.

The kernel names a tap in the ``fdinfo`` of each descriptor that has it open, so a guest's backends can be seen
without its monitor. Next: :mod:`services.cli.monitor`, which asks a guest.
"""

import ipaddress
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from schemas import cni
from services.common.domain.invariants.world import AttachmentRecord, IpamLease, NotVisible, SandboxRecords
from services.common.domain.pod_nic import network_status
from services.common.netlink.access import under
from services.common.netlink.errors import NetnsGone
from services.handler.guest.drivers import DriverSetting

LEASES = "/var/lib/cni/networks"
"""``host-local``'s directory where a network names no other."""

NAMESPACES = "/run/netns"
_MADE_BY_A_RUNTIME = "cni-"


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Where things are on the node, and how its guests are reached; named as the services' settings."""

    cri_socket: str = "/run/containerd/containerd.sock"
    cni_state_dir: str = "/var/lib/cni/multus"
    qmp_socket: str = "/run/hotnic/guests/{uid}/qmp.sock"
    host_root: str = "/"
    guest_driver: DriverSetting = "auto"

    def host(self, path: str) -> Path:
        """A path of the node as seen from here."""
        return under(Path(self.host_root), path)


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
    released: bool = False


class Recorded(msgspec.Struct, frozen=True):
    """A record, and the directories other than the usual one in which its leases are."""

    record: SandboxRecords
    lease_dirs: frozenset[str]


_sandbox = msgspec.json.Decoder(_Sandbox)


def records(paths: Paths) -> tuple[Recorded, ...] | NotVisible:
    """The multus daemon's records: the unsettled one of a sandbox is the newer one."""
    folder = Path(paths.cni_state_dir) / "sandboxes"
    newest: dict[str, Path] = {}
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix == ".unsettled" or (path.suffix == ".json" and path.stem not in newest):
                newest[path.stem] = path
        found = []
        for path in newest.values():
            try:
                found.append(_recorded(_sandbox.decode(path.read_bytes())))
            except FileNotFoundError:
                continue
    except (OSError, ValueError) as error:
        return NotVisible(f"multus' records in {folder} cannot be read: {error}")
    return tuple(found)


def _recorded(sandbox: _Sandbox) -> Recorded:
    plugins = [_plugin(attachment.config) for attachment in sandbox.attachments]
    attached = (_attached(one, plugin) for one, plugin in zip(sandbox.attachments, plugins, strict=True))
    folders = {_ipam(plugin).get("dataDir") for plugin in plugins}
    return Recorded(
        SandboxRecords(
            sandbox=sandbox.sandbox_id,
            netns=sandbox.netns,
            pod=f"{sandbox.namespace}/{sandbox.pod}",
            pod_uid=sandbox.pod_uid,
            attached=tuple(attached),
            released=sandbox.released,
        ),
        frozenset(folder for folder in folders if isinstance(folder, str) and folder),
    )


def _attached(one: _Attachment, plugin: dict[str, Any]) -> AttachmentRecord:
    status = network_status(one.network, one.ifname, one.result or cni.CniResult())
    return AttachmentRecord(
        link=one.ifname,
        network=one.network,
        finished=one.state == "added",
        ips=tuple(status.ips or ()),
        mac=(one.mac or "").lower(),
        ifindex=one.ifindex,
        kind=one.kind,
        # The plugin's own default.
        bridge=str(plugin.get("bridge") or "cni0") if plugin.get("type") == "bridge" else None,
        leased=_ipam(plugin).get("type") == "host-local",
    )


def _plugin(config: str) -> dict[str, Any]:
    """The plugin of a configuration that makes the link: the first of a list."""
    try:
        document = msgspec.json.decode(config, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
    plugins = document.get("plugins")
    first = plugins[0] if isinstance(plugins, list) and plugins else document
    return first if isinstance(first, dict) else {}


def _ipam(plugin: dict[str, Any]) -> dict[str, Any]:
    ipam = plugin.get("ipam")
    return ipam if isinstance(ipam, dict) else {}


def leases(paths: Paths, further: Iterable[str]) -> tuple[IpamLease, ...] | NotVisible:
    """What ``host-local`` keeps, in its usual directory and in these."""
    found: list[IpamLease] = []
    for folder in sorted({LEASES, *further}):
        try:
            for network in paths.host(folder).iterdir():
                found += _leases_of(network)
        except FileNotFoundError:
            continue
        except OSError as error:
            return NotVisible(f"host-local's leases in {folder} cannot be read: {error}")
    return tuple(found)


def _leases_of(network: Path) -> Iterator[IpamLease]:
    for file in sorted(network.iterdir()) if network.is_dir() else ():
        try:
            ip = str(ipaddress.ip_address(file.name))
            container, _, link = file.read_text().partition("\n")
        except (ValueError, FileNotFoundError):
            continue
        yield IpamLease(network.name, ip, container.strip(), link.strip())


def namespace_paths(paths: Paths) -> list[str]:
    """Where runtimes have made network namespaces; those of people have other names."""
    try:
        names = os.listdir(paths.host(NAMESPACES))
    except FileNotFoundError:
        return []
    return [f"{NAMESPACES}/{name}" for name in sorted(names) if name.startswith(_MADE_BY_A_RUNTIME)]


def identity(paths: Paths, path: str) -> tuple[int, int] | None:
    """What tells one namespace from another; ``None`` when there is none."""
    try:
        found = paths.host(path).stat()
    except (OSError, NetnsGone):
        return None
    return found.st_dev, found.st_ino


def processes_in(paths: Paths, netns: str) -> list[str] | NotVisible:
    """The processes in a network namespace."""
    wanted = identity(paths, netns)
    if wanted is None:
        return NotVisible(f"there is no network namespace at {netns}")
    return [
        pid
        for pid in os.listdir(paths.host("/proc"))
        if pid.isdigit() and identity(paths, f"/proc/{pid}/ns/net") == wanted
    ]


def taps_held(paths: Paths, processes: Iterable[str]) -> frozenset[str]:
    """The taps that these processes have open."""
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
