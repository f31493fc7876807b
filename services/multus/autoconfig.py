"""The configuration that makes the runtime call multus: found beside the node's primary CNI and kept current.

``00-multus.conf`` stands first in the runtime's directory and names the shim; the primary's configuration becomes the
cluster network; ``multusConfigFile`` may name a finished one, which is copied. It stays when the daemon stops: without
it, pods made meanwhile would silently get the primary network only, with it they wait. Pure parts first, then the loop
that watches. The shim's file is installed here too.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from structlog.typing import FilteringBoundLogger

from services.multus import conflist
from services.multus.disk import replace
from services.multus.errors import CniError
from services.multus.settings import Config

CONF_NAME: Final = "00-multus.conf"
SHIM_NAME: Final = "hotnic-multus"
NETWORK_NAME: Final = "multus-cni-network"
LOOK_EVERY: Final = 1.0
"""Seconds between looks at the primary configuration; a look is one listing of a small directory."""

_OURS: Final = "00-"


def primary(names: list[str], master: str | None) -> str | None:
    """The file name of the primary CNI configuration: the one named, else the first in order that is not multus'."""
    if master:
        return master if master in names else None
    candidates = sorted(name for name in names if name.endswith((".conf", ".conflist")) and not name.startswith(_OURS))
    return candidates[0] if candidates else None


def document(config: Config, primary_path: str, primary_text: str) -> dict[str, Any]:
    """The content of ``00-multus.conf``.

    :raises CniError: the primary configuration is none.
    """
    network = conflist.parse(primary_text, name="primary")
    made: dict[str, Any] = {
        "cniVersion": config.cni_version or network.version,
        "name": network.name if config.override_name else config.name or NETWORK_NAME,
        "type": config.type or SHIM_NAME,
        "clusterNetwork": config.cluster_network or primary_path,
        "daemonSocketDir": config.shim_socket_dir,
        **config.shim_log,
    }
    capabilities = sorted(network.capabilities() | config.capabilities)
    if capabilities:
        made["capabilities"] = dict.fromkeys(capabilities, True)
    return made


class Autoconfig:
    """Keeps ``00-multus.conf`` in step with the primary configuration.

    :ivar problem: why there is none now; empty when there is one.
    """

    def __init__(self, config: Config, log: FilteringBoundLogger, changed: Callable[[bool, str], None]) -> None:
        self._config = config
        self._log = log
        self._changed = changed
        self.problem = "not looked yet"

    async def run(self) -> None:
        """Look, write when something has changed, look again; until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY)

    def look(self) -> None:
        """Bring the file up to date once."""
        try:
            problem = self._update()
        except (OSError, CniError) as error:
            problem = str(error)
        if problem != self.problem:
            self.problem = problem
            self._changed(not problem, problem)

    def _update(self) -> str:
        ready = self._config.readiness_file
        if ready is not None and not ready.exists():
            # What has been written stays: pods made meanwhile wait for the file in the daemon.
            return f"readiness indicator file {ready} is awaited"
        if self._config.config_file is not None:
            source = self._config.config_file
            text = source.read_bytes()
            conflist.top_level(text)
            self._write(self._config.conf_dir / source.name, text.rstrip(b"\n"), source)
            return ""
        folder = self._config.autoconfig_dir
        name = primary(os.listdir(folder), self._config.master)
        if name is None:
            wanted = self._config.master or "one beside multus' own"
            return f"no primary CNI configuration in {folder}: {wanted} is awaited"
        path = folder / name
        made = msgspec.json.format(msgspec.json.encode(document(self._config, str(path), path.read_text())), indent=2)
        self._write(self._config.conf_dir / CONF_NAME, made, path)
        return ""

    def _write(self, target: Path, made: bytes, source: Path) -> None:
        # Looked at each time: a multus-cni on its way out does not have the last word.
        if _content(target) != made:
            replace(target, made + b"\n", synced=True)
            self._log.info("configuration for the runtime written", path=str(target), source=str(source))


def install_shim(source: Path, bin_dir: Path) -> Path:
    """Put the shim among the CNI plugins, whole at every moment: running instances keep the file they started.

    :raises OSError: the directory is not there or not writable.
    """
    target = bin_dir / SHIM_NAME
    data = source.read_bytes()
    try:
        if target.read_bytes() == data and os.access(target, os.X_OK):
            return target
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    replace(target, data, mode=0o755, synced=True)
    return target


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes().rstrip(b"\n")
    except FileNotFoundError:
        return None
