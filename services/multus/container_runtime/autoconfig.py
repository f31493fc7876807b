"""The CNI configuration that makes the runtime call the shim.

``00-multus.conf`` sorts first in the runtime's directory and names the shim. The primary CNI configuration becomes the
cluster network. ``multusConfigFile`` may name a finished configuration, which is copied instead. The file stays when
the daemon stops: without it, pods created meanwhile would silently get the primary network only; with it, they wait.
Next: :mod:`services.multus.container_runtime.shim`.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.inputs import Edge
from schemas.multus import CONF_NAME, SHIM_LOG_NAME, SHIM_NAME
from services.common.node.files import FileTooLarge, file_names, is_file, read_bounded, replace_file
from services.common.telemetry.logs import Log
from services.multus.cni import conflist
from services.multus.cni.errors import CniError
from services.multus.config.settings import Config

NETWORK_NAME: Final = "multus-cni-network"
UPDATE_INTERVAL: Final = 1.0
"""Seconds between checks of the primary configuration; a check lists one small directory."""

LOG_KEYS: Final = ("logFile", "logLevel", "logToStderr")
"""The keys of the runtime's configuration that configure the shim's log; they are upstream's."""
_OURS: Final = "00-"
"""Prefix of multus' own file, upstream's or hotnic's; it must not become its own cluster network."""


def choose_primary(names: list[str], master: str | None) -> str | None:
    """Return the file name of the primary CNI configuration.

    :param names: the file names in the configuration directory.
    :param master: the configured file name; ``None``: the first configuration that is not multus' own.
    :returns: the file name; ``None`` when there is no such file.
    """
    if master:
        return master if master in names else None
    # As upstream: the first by name, and no `.json`.
    candidates = sorted(name for name in names if name.endswith((".conf", ".conflist")) and not name.startswith(_OURS))
    return candidates[0] if candidates else None


def runtime_configuration(config: Config, primary_path: str, primary_text: str) -> dict[str, Any]:
    """Build the content of ``00-multus.conf``.

    :param config: the daemon's configuration.
    :param primary_path: path of the primary CNI configuration.
    :param primary_text: its text.
    :raises CniError: the primary CNI configuration is invalid.
    """
    network = conflist.parse(primary_text, name="primary", edge=Edge.FILE)
    made: dict[str, Any] = {
        # The shim converts, and it does not speak earlier versions.
        "cniVersion": config.cni_version or (network.version if network.at_least("0.3.0") else "0.3.1"),
        "name": network.name if config.override_name else config.name or NETWORK_NAME,
        "type": config.type or SHIM_NAME,
        "clusterNetwork": config.cluster_network or primary_path,
        "daemonSocketDir": config.shim_socket_dir,
        **config.shim_log,
    }
    # The runtime passes `runtimeConfig` only for capabilities that this configuration declares.
    capabilities = sorted(network.capabilities() | config.capabilities)
    if capabilities:
        made["capabilities"] = dict.fromkeys(capabilities, True)
    return made


class Autoconfig:
    """Keeps ``00-multus.conf`` up to date with the primary CNI configuration.

    :param config: the daemon's configuration.
    :param log: the daemon's log.
    :param changed: called with (whether the file is valid, the problem) when the problem changes.
    :ivar problem: why there is no valid file now; empty when there is one.
    """

    def __init__(self, config: Config, log: Log, changed: Callable[[bool, str], None]) -> None:
        self._config = config
        self._log = log
        self._changed = changed
        self.problem = "not checked yet"

    async def run(self) -> None:
        """Update the file at a fixed interval, until cancelled."""
        # The file is not removed at the end: pods created meanwhile would lose their networks (multus-cni#1527).
        while True:
            self.update()
            await asyncio.sleep(UPDATE_INTERVAL)

    def update(self) -> None:
        """Update the file once and report a change of the problem."""
        try:
            problem = self._update_file()
        except (OSError, UnicodeDecodeError, CniError) as error:
            problem = str(error)
        if problem != self.problem:
            self.problem = problem
            self._changed(not problem, problem)

    def _update_file(self) -> str:
        ready = self._config.readiness_file
        if ready is not None and not ready.exists():
            # An existing file stays: pods created meanwhile wait for the readiness file in the daemon.
            return f"waiting for readiness indicator file {ready}"
        # Upstream's daemon ends after it has copied this file (multus-cni#1366).
        if self._config.config_file is not None:
            source = self._config.config_file
            text = read_bounded(source)
            self._write_shim_log(conflist.decode_object(text, Edge.FILE))
            self._write(self._config.conf_dir / source.name, text.rstrip(b"\n"), source)
            return ""
        folder = self._config.autoconfig_dir
        name = choose_primary(file_names(folder), self._config.master)
        if name is None:
            expected = self._config.master or "one beside multus' own"
            return f"no primary CNI configuration in {folder}: waiting for {expected}"
        path = folder / name
        document = runtime_configuration(self._config, str(path), read_bounded(path).decode())
        self._write_shim_log(document)
        made = msgspec.json.format(msgspec.json.encode(document), indent=2)
        self._write(self._config.conf_dir / CONF_NAME, made, path)
        return ""

    def _write_shim_log(self, document: dict[str, Any]) -> None:
        """Write the log keys of the runtime's configuration beside the shim, which takes them from there alone."""
        target = self._config.installed_plugins / SHIM_LOG_NAME
        keys = {key: document[key] for key in LOG_KEYS if key in document}
        if not keys:
            # Not tried where there is none: the directory may be read-only.
            if is_file(target):
                target.unlink(missing_ok=True)
        elif _content(target) != (made := msgspec.json.encode(keys)):
            replace_file(target, made + b"\n")

    def _write(self, target: Path, made: bytes, source: Path) -> None:
        # The content is compared every time because a multus-cni that shuts down removes or rewrites the file.
        if _content(target) != made:
            replace_file(target, made + b"\n", synced=True)
            self._log.info("configuration for the runtime written", path=str(target), source=str(source))


def _content(path: Path) -> bytes | None:
    try:
        return read_bounded(path).rstrip(b"\n")
    # What is too large, or a directory, is not the content that is written in its place.
    except (FileNotFoundError, IsADirectoryError, FileTooLarge):
        return None
