"""Register the Node object at start and send its heartbeats afterwards.

Its status shows the machine's true values (kernel, runtime, memory) where they exist. Next: `kubelet.py`.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Mapping
from typing import Final

from lab.node.objects import Object, now, with_conditions
from lab.node.resources import NODES
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists, KubeError
from services.common.telemetry.logs import Log

HEARTBEAT_INTERVAL: Final = 60.0
"""Seconds between two heartbeats; a kubelet without leases writes its status every five minutes at most."""


def node_labels(name: str) -> dict[str, str]:
    """Return the labels that every kubelet sets on its node, and KubeVirt's `schedulable`."""
    return {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64" if platform.machine() == "x86_64" else platform.machine(),
        "kubevirt.io/schedulable": "true",
    }


def node_object(name: str) -> Object:
    """Return the Node object of a node, without its status."""
    metadata = {"name": name, "labels": node_labels(name)}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}}


def node_status(name: str, runtime_version: str, present: Object, time: str) -> Object:
    """Return the node's status.

    :param present: the status so far, for transition times.
    :param time: the time of this heartbeat.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    capacity = {"cpu": str(os.cpu_count() or 1), "memory": f"{memory}Ki", "pods": "110"}
    conditions = with_conditions(
        present.get("conditions") or [],
        {
            "MemoryPressure": (False, "KubeletHasSufficientMemory"),
            "DiskPressure": (False, "KubeletHasNoDiskPressure"),
            "PIDPressure": (False, "KubeletHasSufficientPID"),
            "Ready": (True, "KubeletReady"),
        },
        time,
    )
    return {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
        "capacity": capacity,
        "allocatable": capacity,
        "conditions": [{**condition, "lastHeartbeatTime": time} for condition in conditions],
        "nodeInfo": {
            "architecture": "amd64" if platform.machine() == "x86_64" else platform.machine(),
            "operatingSystem": "linux",
            "kernelVersion": platform.release(),
            "osImage": os_image(read_os_release()),
            "containerRuntimeVersion": runtime_version,
            "kubeletVersion": "hotnic-lab",
            "kubeProxyVersion": "",
            "machineID": "",
            "systemUUID": "",
            "bootID": "",
        },
    }


def read_os_release() -> Mapping[str, str]:
    """Return the content of /etc/os-release; empty when there is none."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def os_image(release: Mapping[str, str]) -> str:
    """Return the name of the operating system that a node shows."""
    return release.get("PRETTY_NAME") or release.get("NAME") or "Linux"


class Registration:
    """Maintains the Node object of `name`."""

    def __init__(self, kube: Kube, name: str, runtime_version: str, log: Log) -> None:
        self._kube = kube
        self._name = name
        self._runtime_version = runtime_version
        self._log = log

    async def register(self) -> None:
        """Create the Node object unless it exists, and write its status.

        :raises KubeError: the API server rejected a request or did not answer.
        """
        try:
            await self._kube.create(NODES, None, node_object(self._name))
        except AlreadyExists:
            self._log.info("node already registered", node=self._name)
        await self.update_status()

    async def update_status(self) -> None:
        """Write the node's status.

        :raises KubeError: the API server rejected it or did not answer.
        """
        node = await self._kube.get(NODES, None, self._name)
        status = node_status(self._name, self._runtime_version, node.get("status", {}), now())
        await self._kube.merge_patch(NODES, None, self._name, {"status": status}, subresource="status")

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL)
            try:
                await self.update_status()
            except KubeError as error:
                self._log.warning("heartbeat failed", error=str(error))
