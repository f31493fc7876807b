"""A rollout of the daemon on a node where pods start and end all the time: each pod gets all its networks.

Upstream fault multus-cni#1527: pods that start while the daemon is replaced get the primary network alone.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from tests.support.kube.node_kube import PODS
from tests.support.node import netns as namespaces
from tests.support.node.cni import leases
from tests.support.node.multus_daemon import cni_environment
from tests.support.node.multus_process import MultusNode, multus_node, until

AT_ONCE = 3
"""Pods that start or end at the same time."""


@pytest.fixture
async def node(tmp_path: Path, plugins: Path, host_bridges: None) -> AsyncIterator[MultusNode]:
    async with multus_node(tmp_path, plugins) as found:
        yield found


class Pods:
    """Starts and ends pods one after another, as a kubelet does.

    :ivar starting: the pods whose ADD has begun and not ended.
    :ivar started: how many pods have started.
    :ivar last: set to end; the pods that exist are deleted first.
    """

    def __init__(self, node: MultusNode) -> None:
        self.node = node
        self.starting: set[int] = set()
        self.started = 0
        self.last = False
        self._numbers = itertools.count()

    async def keep_starting(self) -> None:
        """Start and end pods until `last` is set; every call must succeed."""
        while not self.last:
            number = next(self._numbers)
            pod = f"pod{number}"
            metadata = {"uid": f"uid{number}", "annotations": {NETWORKS: "blue"}}
            self.node.kube.put(PODS, "default", pod, metadata=metadata, spec={}, status={})
            path = self.node.folder / f"ns{number}"
            await asyncio.to_thread(namespaces.add, path)
            try:
                self.starting.add(number)
                await self.call("ADD", number, path)
                self.starting.remove(number)
                status = json.loads(self.node.kube.annotations(PODS, "default", pod)[NETWORK_STATUS])
                assert [network["name"] for network in status] == ["pods", "default/blue"]
                self.started += 1
                await self.call("DEL", number, path)
            finally:
                await asyncio.to_thread(namespaces.remove, path)

    async def until_started(self, more: int) -> None:
        """Wait until so many more pods have started."""
        wanted = self.started + more
        await until(lambda: self.started >= wanted)

    async def call(self, command: str, number: int, netns: Path) -> None:
        """Execute the shim for a pod, which must succeed."""
        environ = cni_environment(command, netns, f"sandbox{number:03}")
        environ["CNI_ARGS"] = (
            f"K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod{number};K8S_POD_UID=uid{number};IgnoreUnknown=1"
        )
        status, answer = await self.node.shim(command, netns, environ=environ)
        assert status == 0, answer


async def test_pods_start_and_end_while_the_daemon_is_replaced(node: MultusNode) -> None:
    pods = Pods(node)
    # A call that fails ends the group, so that its error is the test's.
    async with asyncio.TaskGroup() as group:
        async with node.daemon():
            for _ in range(AT_ONCE):
                group.create_task(pods.keep_starting())
            await pods.until_started(AT_ONCE)
        # The daemon has ended whatever the pods did, as at a rollout.
        for _ in range(2):
            # A DEL succeeds without a daemon, so that in the end all pods wait for the next one in their ADD.
            await until(lambda: len(pods.starting) == AT_ONCE)
            async with node.daemon():
                await pods.until_started(2 * AT_ONCE)
        await until(lambda: len(pods.starting) == AT_ONCE)
        pods.last = True
        async with node.daemon():
            # Pods that were deleted without a daemon leave nothing either.
            await until(lambda: not pods.starting and leases(node.folder) == leases(node.folder, "pods") == [])
