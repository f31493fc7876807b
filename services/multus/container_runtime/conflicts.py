"""Refuse to start beside another multus on the node: upstream's daemon, or thin Multus.

Two of them would write one configuration in turns, and attach each pod twice. A ``00-multus.conf`` that upstream's
daemon has left behind is no conflict: it is replaced, and its pods are adopted.
Next: :mod:`services.multus.container_runtime.autoconfig`.
"""

import asyncio
from typing import Final

from schemas.multus import CONF_NAME, SHIM_NAME, SOCKET_NAME
from services.common.node.cni_conf import PluginTypes, read_plugin_types
from services.common.node.daemon_socket import DaemonKind, probe_daemon
from services.common.runtime.process import StartRefused
from services.multus.config.settings import Config

THIN: Final = "multus"
UPSTREAM_SHIM: Final = "multus-shim"


async def refuse_conflicts(config: Config) -> None:
    """Check the node for another multus.

    :param config: the merged configuration.
    :raises StartRefused: there is one.
    :raises OSError: the directory of configurations cannot be read.
    """
    daemon = await asyncio.to_thread(probe_daemon, config.socket_dir / SOCKET_NAME)
    types = await asyncio.to_thread(read_plugin_types, config.conf_dir)
    if conflict := find_conflict(config, types, daemon):
        raise StartRefused(conflict)


def find_conflict(config: Config, types: PluginTypes, daemon: DaemonKind) -> str:
    """Return what is in the way of this daemon; empty if nothing is. Pure.

    :param config: the merged configuration.
    :param types: the plugin types of each configuration of the runtime.
    :param daemon: who serves this daemon's socket.
    """
    if daemon is DaemonKind.OTHER:
        return (
            f"another multus daemon serves {config.socket_dir / SOCKET_NAME}; remove its DaemonSet (upstream's is "
            "kube-multus-ds), and this daemon takes over its pods"
        )
    own = {SHIM_NAME, config.type}
    for name, plugins in types.items():
        path = config.conf_dir / name
        if THIN in plugins and THIN not in own:
            return (
                f"thin Multus is configured on this node: {path} calls the plugin {THIN}; remove its DaemonSet "
                f"(upstream's is kube-multus-ds) and delete {path}"
            )
        if UPSTREAM_SHIM in plugins and UPSTREAM_SHIM not in own and name != CONF_NAME:
            return (
                f"upstream's multus is configured on this node: {path} calls the plugin {UPSTREAM_SHIM}; remove its "
                f"DaemonSet and delete {path}"
            )
    return ""
