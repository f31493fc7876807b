"""The uplinks of a further node: each bridge that a NAD names is joined with the first node's bridge of that name.

In a cluster, bridges of several nodes are joined by the nodes' NICs and a switch. Here the first node's bridge is the
switch, and a veth pair takes the place of a NIC: VLAN tags are neither added nor removed. `bridges_of` decides,
`commands` says how; links are never removed, because they end with the lab. Next: `kubelet.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from typing import Any, Final

from lab.node.resources import Key
from schemas.kubernetes.objects import NetworkAttachmentDefinition
from services.common.reconcile import Attempt, Retry
from services.common.telemetry.logs import Log

DEADLINE: Final = 30.0
"""Seconds that the commands for one bridge may take; they take 0.05."""

LINK_NAME: Final = re.compile(r"[!-$&-.0-9;-~]{1,15}")
DEFAULT_BRIDGE: Final = "cni0"
"""The bridge of the plugin `bridge` if its configuration names none: the pods' own network, which is not joined."""


def bridges_of(config: str) -> set[str]:
    """Return the bridges that a CNI configuration names; none if it cannot be read, which is for multus to report."""
    try:
        parsed: Any = json.loads(config)
    except ValueError:
        return set()
    plugins = parsed.get("plugins", [parsed]) if isinstance(parsed, dict) else []
    named = {
        str(plugin.get("bridge", DEFAULT_BRIDGE))
        for plugin in (plugins if isinstance(plugins, list) else [])
        if isinstance(plugin, dict) and plugin.get("type") == "bridge"
    }
    return {name for name in named - {DEFAULT_BRIDGE} if LINK_NAME.fullmatch(name)}


def uplink(bridge: str) -> str:
    """Return the name of the uplink of a bridge: not that of a plugin's veth, as no NIC of a node has one."""
    return f"up-{hashlib.sha256(bridge.encode()).hexdigest()[:8]}"


def commands(bridge: str, node: str, first: str) -> str:
    """Return the shell script that joins a bridge of this network namespace with the first node's.

    It changes nothing the second time, and a CNI plugin may create either bridge meanwhile.

    :param node: name of this node.
    :param first: path of the first node's network namespace.
    """
    name, here, there = shlex.quote(bridge), uplink(bridge), f"{node}-{uplink(bridge)[3:]}"
    lines = ["set -e"]
    for enter in ("", f"nsenter --net={shlex.quote(first)} "):
        lines += [
            f"{enter}ip link add name {name} type bridge 2>/dev/null || {enter}ip link show dev {name} >/dev/null",
            f"{enter}ip link set dev {name} up",
        ]
    lines += [
        f"ip link show dev {here} >/dev/null 2>&1 ||",
        f"  ip link add name {here} type veth peer name {there} netns {shlex.quote(first)}",
        f"ip link set dev {here} master {name} up",
        f"nsenter --net={shlex.quote(first)} ip link set dev {there} master {name} up",
    ]
    return "\n".join(lines)


class Uplinks:
    """Joins the bridges of this node with those of the first one.

    :param cached: returns a NAD as last seen.
    :param first: path of the first node's network namespace.
    :param deadline: :data:`DEADLINE`.
    """

    def __init__(
        self,
        cached: Callable[[str, str], NetworkAttachmentDefinition | None],
        node: str,
        first: str,
        log: Log,
        *,
        deadline: float = DEADLINE,
    ) -> None:
        self._cached = cached
        self._node = node
        self._first = first
        self._log = log
        self._deadline = deadline
        self._joined: set[str] = set()
        # Several NADs may name one bridge.
        self._joining = asyncio.Lock()

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Join the bridges that the NAD of `key` names, unless this was done before.

        :raises Retry: a command failed, or did not end in time and was killed.
        """
        nad = self._cached(*key)
        async with self._joining:
            for bridge in sorted(bridges_of(nad.spec.config) - self._joined if nad is not None else ()):
                await self._join(bridge)

    async def _join(self, bridge: str) -> None:
        script = commands(bridge, self._node, self._first)
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", script, stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        try:
            async with asyncio.timeout(self._deadline):
                _, errors = await process.communicate()
        except TimeoutError:
            raise Retry("BridgeNotJoined", f"{bridge}: the commands did not end within {self._deadline:g} s") from None
        finally:
            if process.returncode is None:
                # The whole group: the shell waits for a command that hangs.
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode != 0:
            raise Retry("BridgeNotJoined", f"{bridge}: {errors.decode(errors='replace').strip()}")
        self._joined.add(bridge)
        self._log.info("bridge joined", bridge=bridge, uplink=uplink(bridge))
