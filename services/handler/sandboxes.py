"""The sandboxes of the node's pods: their network namespaces, SELinux labels and DNS resolvers, cached by pod.

Next: :mod:`services.handler.observe`, which reads the links in a sandbox.
"""

import asyncio
from collections.abc import Iterable

from schemas.kubernetes.objects import Pod
from services.common.cri.client import CriClient
from services.common.cri.sandbox import Sandbox
from services.common.netlink.errors import classify_path_error
from services.common.netlink.netns import Netns
from services.common.netlink.pool import NetnsPool
from services.common.telemetry.stores import STORES
from services.handler.addresses.offer import NO_RESOLVER, Resolver
from services.handler.addresses.resolv import read_resolver


class Sandboxes:
    """Finds the sandbox of a pod, by the container runtime or from the cache."""

    def __init__(self, cri: CriClient, netns: NetnsPool) -> None:
        self._cri = cri
        self._netns = netns
        self._proc = netns.root / "proc"
        self._by_pod: dict[str, Sandbox] = {}
        self._resolvers: dict[str, Resolver] = {}
        STORES.watch("pod-sandboxes", self, lambda sandboxes: len(sandboxes._by_pod))

    async def find(self, pod: Pod) -> Sandbox:
        """Return the ready sandbox of a pod.

        :raises CriError: the runtime has no ready sandbox of the pod.
        """
        uid = pod.metadata.uid
        # A sandbox's netns never changes. When a sandbox is replaced, opening its netns fails, which leads to `forget`.
        if uid not in self._by_pod:
            self._by_pod[uid] = await self._cri.find_sandbox(uid)
        return self._by_pod[uid]

    def known(self, pod: Pod) -> Sandbox | None:
        """Return the sandbox of a pod from the cache; ``None`` when it is not there."""
        return self._by_pod.get(pod.metadata.uid)

    def forget(self, pod: Pod) -> None:
        """Drop the cached sandbox of a pod, which does not exist any more."""
        sandbox = self._by_pod.pop(pod.metadata.uid, None)
        if sandbox is not None:
            self._netns.drop(sandbox.netns)

    def retain(self, pod_uids: Iterable[str]) -> None:
        """Drop what is cached of every pod but the given ones."""
        retained = set(pod_uids)
        self._by_pod = {uid: sandbox for uid, sandbox in self._by_pod.items() if uid in retained}
        ids = {sandbox.id for sandbox in self._by_pod.values()}
        self._resolvers = {id_: resolver for id_, resolver in self._resolvers.items() if id_ in ids}

    async def open_netns(self, pod: Pod) -> Netns:
        """Return the network namespace of a pod.

        :raises CriError: the runtime has no ready sandbox of the pod.
        :raises NetnsGone: the network namespace does not exist any more.
        """
        return await self._netns.open((await self.find(pod)).netns)

    def netns_identity(self, sandbox: Sandbox) -> tuple[int, int]:
        """Return device and inode of a sandbox's network namespace.

        :raises NetnsGone: the network namespace does not exist any more.
        """
        return self._netns.identity(sandbox.netns)

    def tap_label(self, sandbox: Sandbox) -> str | None:
        """Return the SELinux label for the taps of a sandbox; ``None`` where SELinux does not enforce.

        :raises NetnsGone: the sandbox's process does not exist any more.
        """
        try:
            return self._netns.labels.label_of(sandbox.pid)
        except OSError as exc:
            raise classify_path_error(exc, f"no SELinux label of process {sandbox.pid} of the sandbox") from exc

    async def resolver(self, sandbox: Sandbox) -> Resolver:
        """Return the DNS resolver of the pod in a sandbox."""
        if sandbox.pid and sandbox.id not in self._resolvers:
            self._resolvers[sandbox.id] = await asyncio.to_thread(read_resolver, self._proc / str(sandbox.pid) / "root")
        return self._resolvers.get(sandbox.id, NO_RESOLVER)
