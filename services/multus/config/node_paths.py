"""Which files of the node a network may have its plugins write: none of hotnic's own, and none of the system's.

Plugins run as root in the node's root, at paths that the author of a network writes. ``host-local`` makes the directory
``<dataDir>/<network name>`` and files in it that are named by addresses; others append to a log file. This is no
boundary between tenants: two networks of one name share their leases, wherever these are.
Next: :mod:`services.common.domain.plugin_types`, the plugins that a network may name.
"""

import os
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas import cni
from schemas.inputs import printable
from schemas.kubernetes.networks import MAX_QUOTE
from services.common.node.paths import resolve_under

# Plugins in Go take keys in any case.
_DATA_DIR: Final = "datadir"
_LOG_FILE: Final = re.compile(r"log[-_]?(file|path|dir)")
"""What is in the key of a log file: ``logFile``, ``log_file_path`` (Calico), ``pluginLogFile`` (AWS), ``log-file``
(Cilium)."""
_USUAL: Final = "/var/lib/cni/networks"
MAX_PATHS: Final = 32
"""Different paths that a network may name: each is looked up on the node."""
SYSTEM: Final = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/root", "/sbin", "/sys", "/usr"),
    *("/opt/cni/bin", "/run/containerd", "/run/crio", "/run/docker", "/run/k3s", "/run/multus", "/run/netns"),
    *("/run/kubevirt", "/run/kubevirt-libvirt-runtimes", "/run/kubevirt-private", "/run/systemd"),
    *("/var/lib/containerd", "/var/lib/containers", "/var/lib/docker", "/var/lib/etcd", "/var/lib/k0s"),
    *("/var/lib/kubelet", "/var/lib/kubevirt", "/var/lib/rancher", "/var/snap"),
)
"""Directories of the system, of container runtimes and of distributions of Kubernetes. No IPAM plugin has its data
there by default."""


@dataclass(frozen=True)
class NodePaths:
    """The directories of the node that networks may and may not name.

    :ivar own: hotnic's directories, and those of CNI configurations and plugins; never allowed.
    :ivar data_dirs: a ``dataDir`` is below one of these; empty: anywhere but in :data:`SYSTEM`.
    :ivar root: where plugins have their root; ``None``: in the daemon's own.
    """

    own: tuple[str, ...]
    data_dirs: tuple[str, ...] = ()
    root: Path | None = None

    def find_refused(self, plugins: Iterable[Mapping[str, Any]], name: str) -> str:
        """Return which path of a network is not allowed, and why; empty if all are.

        :param plugins: the configurations of the network's plugins.
        :param name: the network's name.
        """
        fields, names = _paths_and_names(plugins, name)
        if not fields:
            return ""
        if len({value for _, value, _ in fields}) > MAX_PATHS or sum("/" in one for one in names) > MAX_PATHS:
            return f"a network with more than {MAX_PATHS} paths {cni.NOT_ALLOWED}"
        own, system, allowed = ([*map(self._resolve, listed)] for listed in (self.own, SYSTEM, self.data_dirs))
        for field, value, is_directory in fields:
            refused = f"{field} {printable(value, MAX_QUOTE)!r} {cni.NOT_ALLOWED}"
            try:
                found = self._resolve(value)
                written = {found}
                for one in names if is_directory else ():
                    joined = os.path.normpath(f"{found.rstrip('/')}/{one.lstrip('/')}")
                    # An inner plugin can have a name of its own, which nobody has checked.
                    written.add(self._resolve(joined) if "/" in one else joined)
            except (OSError, ValueError) as error:
                return f"{refused}: it cannot be looked up on the node: {error}"
            listed = is_directory and bool(allowed)
            if listed and not all(_below(path, allowed) for path in written):
                return f"{refused}: the administrator allows {', '.join(self.data_dirs)}"
            foreign = own if listed else [*own, *system]
            if folder := next(filter(None, (_below(path, foreign) for path in written)), ""):
                remedy = f"leave it out, or name one such as {_USUAL}" if is_directory else "name another one"
                return f"{refused}: {folder} is none of a network's; {remedy}"
        return ""

    def _resolve(self, path: str) -> str:
        """Return a path of the node without links.

        :raises OSError: it has too many links.
        """
        # A plugin starts in its root.
        absolute = f"/{path}"
        if self.root is None or self.root == Path("/"):
            return os.path.realpath(absolute)
        return str("/" / resolve_under(self.root, absolute).relative_to(self.root))


def _below(path: str, folders: Iterable[str]) -> str:
    """Return the first of the folders that is the path or has it inside; empty if none."""
    return next((folder for folder in folders if path == folder or path.startswith(f"{folder.rstrip('/')}/")), "")


def _paths_and_names(plugins: Iterable[Mapping[str, Any]], name: str) -> tuple[list[tuple[str, str, bool]], set[str]]:
    """Return the paths with their fields and whether each is a directory; and all names, at any depth."""
    fields: list[tuple[str, str, bool]] = []
    names = {name}
    waiting: deque[tuple[str, Any]] = deque(("", plugin) for plugin in plugins)
    while waiting:
        where, value = waiting.popleft()
        if isinstance(value, list):
            waiting += ((where, inner) for inner in value)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                field, lower = f"{where}{key}", key.lower()
                if isinstance(inner, str):
                    if lower == "name":
                        names.add(inner)
                    elif inner and (lower == _DATA_DIR or _LOG_FILE.search(lower)):
                        fields.append((field, inner, lower == _DATA_DIR))
                else:
                    waiting.append((f"{field}.", inner))
    return fields, names
