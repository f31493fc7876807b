"""How the handler looks: the VMI and its acting pod (cached where certainly fresh), the domain, the links in the pod.

Only looks; :mod:`services.handler.plan` judges.
"""

import asyncio
import errno
from collections.abc import Iterable

from schemas.kube import PODS, Pod, VirtualMachineInstance
from schemas.stages import OperationKind
from services.common.cri.client import Cri
from services.common.cri.sandbox import Sandbox
from services.common.domain.operations import acting_pod
from services.common.domain.status_interfaces import DOMAIN, entry_of, tokens
from services.common.kube.cached_reader import CachedReader
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound
from services.common.netlink.errors import NetnsGone
from services.common.netlink.netns import Netns
from services.common.netlink.pool import NetnsPool
from services.common.reconcile import Retry
from services.handler.addresses.offer import NO_RESOLVER, Resolver
from services.handler.addresses.resolv import read
from services.handler.guest.port import GuestView
from services.handler.netlink_operations import Seen
from services.handler.nics import attached_nics, cannot_leave, leaving_nics, missing
from services.handler.plan import Observed
from services.handler.records import Nic, record_of, stale
from services.handler.sessions import Session


class Observer:
    """The handler's eyes."""

    def __init__(
        self,
        kube: Kube,
        vmis: CachedReader[VirtualMachineInstance],
        pods: CachedReader[Pod],
        cri: Cri,
        netns: NetnsPool,
        *,
        tap_owner: int,
    ) -> None:
        self._kube = kube
        self._vmis = vmis
        self._pods = pods
        self._cri = cri
        self._netns = netns
        self._tap_owner = tap_owner
        self._proc = netns.root / "proc"
        self._sandboxes: dict[str, Sandbox] = {}
        self._resolvers: dict[str, Resolver] = {}

    async def objects(
        self, namespace: str, name: str, cached_pods: Iterable[Pod]
    ) -> tuple[VirtualMachineInstance | None, Pod | None]:
        """The VMI and the pod that acts for it.

        :raises KubeError: the API server does not answer.
        """
        vmi = await self._vmis.read(namespace, name)
        pod = acting_pod(vmi, cached_pods) if vmi is not None else None
        if pod is not None:
            pod = await self._pods.read(pod.metadata.namespace, pod.metadata.name)
        return vmi, pod

    async def look(self, vmi: VirtualMachineInstance, pod: Pod, session: Session) -> Observed:
        """The domain, and the links in the pod when a NIC is missing from it or to be released.

        Both at once where that is likely.

        :raises GuestNotReachable: :raises CriError: :raises NetlinkFailure: :raises Reject: nothing can be planned.
        :raises Retry: the pod is gone. :raises KubeError: the API server does not answer.
        """
        nics = _inside_of_interest(vmi, pod)
        known = vmi.status.interfaces
        likely = [nic for nic in nics if DOMAIN not in tokens(entry_of(known, nic.name) or {})]
        inside: tuple[Sandbox, Seen] | None = None
        if likely:
            guest, inside = await asyncio.gather(session.guest.list(), self._inside(pod, likely))
            if not {nic.name for nic in missing(nics, guest)} <= {nic.name for nic in likely}:
                inside = await self._inside(pod, nics)
        else:
            guest = await session.guest.list()
            if absent := missing(nics, guest):
                inside = await self._inside(pod, absent)
        if inside is not None and stale(pod, nics, inside[1], inside[0].id):
            pod = await self._live(pod)
            inside = await self._inside(pod, nics)
        resolver = await self.resolver(inside[0]) if inside is not None else NO_RESOLVER
        return self._observed(vmi, pod, session, guest, resolver, *(inside or (None, None)))

    async def _live(self, pod: Pod) -> Pod:
        meta = pod.metadata
        try:
            live = await self._kube.get(PODS, meta.namespace, meta.name)
        except NotFound as error:
            raise Retry("PodChanged", str(error)) from error
        if live.metadata.uid != meta.uid:
            raise Retry("PodChanged", f"another pod has the name {meta.name}")
        self._pods.wrote(live)
        return live

    async def netns(self, pod: Pod) -> Netns:
        """The network namespace of a pod.

        :raises CriError: the runtime knows no ready sandbox. :raises NetnsGone: it is gone.
        """
        return await self._netns.open((await self.sandbox(pod)).netns)

    def netns_identity(self, sandbox: Sandbox) -> tuple[int, int]:
        """Which network namespace a sandbox has now.

        :raises NetnsGone: none any more.
        """
        return self._netns.identity(sandbox.netns)

    def forget(self, pod: Pod) -> None:
        """Ask for the pod's sandbox anew: the one that was known is gone."""
        sandbox = self._sandboxes.pop(pod.metadata.uid, None)
        if sandbox is not None:
            self._netns.drop(sandbox.netns)

    def retain(self, pod_uids: Iterable[str]) -> None:
        """Keep nothing of any other pod."""
        kept = set(pod_uids)
        self._sandboxes = {uid: sandbox for uid, sandbox in self._sandboxes.items() if uid in kept}
        known = {sandbox.id for sandbox in self._sandboxes.values()}
        self._resolvers = {id_: resolver for id_, resolver in self._resolvers.items() if id_ in known}

    async def sandbox(self, pod: Pod) -> Sandbox:
        """The ready sandbox of a pod, asked for once.

        :raises CriError: the runtime knows none.
        """
        uid = pod.metadata.uid
        if uid not in self._sandboxes:
            self._sandboxes[uid] = await self._cri.sandbox_of(uid)
        return self._sandboxes[uid]

    async def resolver(self, sandbox: Sandbox) -> Resolver:
        """Whom the pod in a sandbox asks for names, read once."""
        if sandbox.pid and sandbox.id not in self._resolvers:
            self._resolvers[sandbox.id] = await asyncio.to_thread(read, self._proc / str(sandbox.pid) / "root")
        return self._resolvers.get(sandbox.id, NO_RESOLVER)

    async def _inside(self, pod: Pod, nics: list[Nic]) -> tuple[Sandbox, Seen]:
        sandbox = await self.sandbox(pod)
        netns = await self._netns.open(sandbox.netns)
        links = await netns.links()
        addresses = await netns.addresses()
        recorded = all(record_of(pod, nic, sandbox.id) is not None for nic in nics)
        going = any(nic.operation.kind is OperationKind.UNPLUG for nic in nics)
        routes = tuple(await netns.routes()) if going or not recorded else ()
        return sandbox, Seen(tuple(links), tuple(addresses), routes)

    def _label(self, sandbox: Sandbox) -> str | None:
        try:
            return self._netns.labels.of(sandbox.pid)
        except OSError as exc:
            raise NetnsGone(exc.errno or errno.ESRCH, f"the sandbox's process {sandbox.pid} is gone: {exc}") from exc

    def _observed(
        self,
        vmi: VirtualMachineInstance,
        pod: Pod,
        session: Session,
        guest: GuestView,
        resolver: Resolver,
        sandbox: Sandbox | None,
        seen: Seen | None,
    ) -> Observed:
        return Observed(
            vmi,
            pod,
            guest,
            seen,
            sandbox_id=sandbox.id if sandbox else "",
            agent=session.agent.nics,
            tap_owner=self._tap_owner,
            tap_label=self._label(sandbox) if sandbox else None,
            resolver=resolver,
            unconfirmed=session.unconfirmed(),
            asked={name: leaving.asked for name, leaving in session.leaving.items()},
            now=asyncio.get_running_loop().time(),
        )


def _inside_of_interest(vmi: VirtualMachineInstance, pod: Pod) -> list[Nic]:
    """The NICs whose links matter once the domain is without their cards."""
    going = [
        nic
        for nic in leaving_nics(vmi, pod)
        if cannot_leave(nic) is None and nic.operation.released != pod.metadata.uid
    ]
    return attached_nics(vmi, pod) + going
