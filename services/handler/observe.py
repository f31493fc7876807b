"""Observe one VMI: the VMI and its acting pod, its domain, the links in the pod, and the state of its session.

Nothing is decided here; next: :mod:`services.handler.plan`.
"""

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from schemas.kubernetes.objects import PODS, Pod, VirtualMachineInstance
from schemas.names import device_alias
from schemas.stages import OperationKind
from services.common.cri.errors import CriError
from services.common.cri.sandbox import Sandbox
from services.common.domain.nic import Nic, VmiNics, parse_nics
from services.common.domain.operations import find_acting_pod
from services.common.domain.status_interfaces import DOMAIN
from services.common.guest.port import GuestNotReachable, GuestRefused, GuestView
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.errors import NotFound
from services.common.netlink.errors import NetlinkFailure, NetnsGone
from services.common.reconcile import Attempt, Reject, Retry
from services.common.runtime.context import RoleContext
from services.handler.addresses.offer import NO_RESOLVER
from services.handler.addresses.served import nics_with_addresses
from services.handler.plan.actions import Observed, Unobserved
from services.handler.plan.nics import (
    absent_nics,
    attached_nics,
    desired_state,
    in_domain,
    is_eligible,
    nics_needing_links,
    not_in_domain,
)
from services.handler.pod_network.operations import ObservedLinks
from services.handler.pod_network.records import has_stale_record, record_of
from services.handler.sandboxes import Sandboxes
from services.handler.sessions import GuestSession, GuestSessions


class Observer:
    """Reads the observed state of the node's VMIs.

    :param cached_pods: returns the node's launcher pods.
    :param tap_owner: the user id of guests' processes, where a VMI's status has none.
    """

    def __init__(
        self,
        context: RoleContext,
        vmis: CachedReader[VirtualMachineInstance],
        pods: CachedReader[Pod],
        cached_pods: Callable[[], Iterable[Pod]],
        sandboxes: Sandboxes,
        sessions: GuestSessions,
        *,
        tap_owner: int,
    ) -> None:
        self._kube = context.kube
        self._node = context.node
        self._vmis = vmis
        self._pods = pods
        self._cached_pods = cached_pods
        self._sandboxes = sandboxes
        self._sessions = sessions
        self._tap_owner = tap_owner

    async def observe(self, namespace: str, name: str, attempt: Attempt) -> Observed | Unobserved | None:
        """Return the observed state; ``None`` when the VMI does not run here, or may not be changed now.

        It is :class:`Unobserved` when the domain or the pod's links do not answer: then the waiting NICs get a failure.

        :raises Reject: the spec or an annotation is malformed.
        :raises Retry: the pod was deleted.
        :raises KubeError: the API server does not answer.
        """
        vmi = await self._vmis.read(namespace, name)
        pod = find_acting_pod(vmi, self._cached_pods()) if vmi is not None else None
        if pod is not None:
            pod = await self._pods.read(pod.metadata.namespace, pod.metadata.name)
        if vmi is None or pod is None or not is_eligible(vmi, pod, self._node):
            return None
        session = self._sessions.open(vmi.metadata.uid, (namespace, name), pod.metadata.uid)
        if any(cause.source == "resync" for cause in attempt.causes):
            # ADR 15. Addresses that change inside the guest cause no event of the domain.
            session.agent.poll()
        nics = parse(vmi, pod)
        try:
            return await self._observe(nics, pod, session)
        except (GuestNotReachable, CriError, NetlinkFailure) as error:
            if isinstance(error, NetnsGone):
                self._sandboxes.forget(pod)
            return Unobserved(nics, reason_of(error, OperationKind.PLUG), str(error))

    async def _observe(self, nics: VmiNics, pod: Pod, session: GuestSession) -> Observed:
        guest, inside = await self._read_guest(nics, pod, session)
        if inside is not None and has_stale_record(pod, nics_needing_links(nics), inside[1], inside[0].id):
            pod = await self._read_live(pod)
            nics = parse(nics.vmi, pod)
            inside = await self._read_links(pod, nics_needing_links(nics))
        sandbox, links = inside or (None, None)
        tap_label = self._sandboxes.tap_label(sandbox) if sandbox is not None else None
        netns, error = await self._find_netns(nics, pod, guest)
        sandbox = sandbox or self._sandboxes.known(pod)
        for nic in absent_nics(nics):
            session.open_unplug(nic.name, in_domain=in_domain(nic, guest), released=nics.released(nic))
        session.retain_unplugs(nic.name for nic in absent_nics(nics))
        session.record_desired(desired_state(nics))
        # Only once the domain has answered: a watch that ends requeues the key, which would end a backoff early.
        session.watch_events()
        return Observed(
            nics=nics,
            guest=guest,
            pod_links=links,
            sandbox_id=sandbox.id if sandbox is not None else "",
            sandbox_error=str(error) if error is not None else "",
            sandbox_gone=isinstance(error, NetnsGone),
            tap_owner=self._tap_owner,
            tap_label=tap_label,
            resolver=await self._sandboxes.resolver(sandbox) if sandbox is not None else NO_RESOLVER,
            serving=session.addresses.serving(netns),
            declined=frozenset(session.addresses.declined),
            agent=session.agent.nics,
            unconfirmed=session.unconfirmed(),
            lost=find_lost(session, guest),
            unplugs={name: record.unplug for name, record in session.unplugs.items()},
            now=asyncio.get_running_loop().time(),
        )

    async def _read_guest(
        self, nics: VmiNics, pod: Pod, session: GuestSession
    ) -> tuple[GuestView, tuple[Sandbox, ObservedLinks] | None]:
        """Return the domain, and the links in the pod if a NIC is to be plugged or torn down.

        Only the domain shows whether the links are needed. Both are read in parallel where the VMI's status makes that
        likely, and the links are read again if it was wrong. A device that this process has just attached is not in the
        status yet.
        """
        # Of an interface whose pod network is torn down, only the report is missing.
        wanted = [nic for nic in nics_needing_links(nics) if not session.is_torn_down(nic.name)]
        likely = [nic for nic in wanted if DOMAIN not in nic.tokens and nic.name not in session.plugged_devices]
        if not likely:
            guest = await session.guest.list()
            absent = not_in_domain(wanted, guest)
            return guest, await self._read_links(pod, absent) if absent else None
        guest, inside = await asyncio.gather(session.guest.list(), self._read_links(pod, likely))
        if not {nic.name for nic in not_in_domain(wanted, guest)} <= {nic.name for nic in likely}:
            inside = await self._read_links(pod, wanted)
        return guest, inside

    async def _read_links(self, pod: Pod, nics: list[Nic]) -> tuple[Sandbox, ObservedLinks]:
        sandbox = await self._sandboxes.find(pod)
        netns = await self._sandboxes.open_netns(pod)
        # One after the other: a netlink connection serves one request at a time.
        links = await netns.links()
        addresses = await netns.addresses()
        recorded = all(record_of(pod, nic, sandbox.id) is not None for nic in nics)
        # Routes are needed only to make a record, and to restore them.
        routes = tuple(await netns.routes()) if any(nic.absent for nic in nics) or not recorded else ()
        return sandbox, ObservedLinks(tuple(links), tuple(addresses), routes)

    async def _find_netns(
        self, nics: VmiNics, pod: Pod, guest: GuestView
    ) -> tuple[tuple[int, int] | None, CriError | NetnsGone | None]:
        """Return the identity of the network namespace that addresses are served in, and the error if there is one."""
        if not nics_with_addresses((*attached_nics(nics), *absent_nics(nics)), guest):
            return None, None
        try:
            return self._sandboxes.netns_identity(await self._sandboxes.find(pod)), None
        except NetnsGone as error:
            self._sandboxes.forget(pod)
            return None, error
        except CriError as error:
            return None, error

    async def _read_live(self, pod: Pod) -> Pod:
        """Read a pod from the API server, past the cache."""
        meta = pod.metadata
        try:
            live = await self._kube.get(PODS, meta.namespace, meta.name)
        except NotFound as error:
            raise Retry("PodChanged", str(error)) from error
        if live.metadata.uid != meta.uid:
            raise Retry("PodChanged", f"pod {meta.namespace}/{meta.name} was replaced by another pod of the same name")
        self._pods.record_written(live)
        return live


def find_lost(session: GuestSession, guest: GuestView) -> frozenset[str]:
    """Return the interfaces whose device was attached here, and that the domain has not listed since."""
    plugged_devices = session.plugged_devices
    for name, plugged in plugged_devices.items():
        plugged.listed = plugged.listed or device_alias(name) in guest.devices
    return frozenset(name for name, plugged in plugged_devices.items() if not plugged.listed)


def parse(vmi: VirtualMachineInstance, pod: Pod) -> VmiNics:
    """Return the NICs of a VMI.

    :raises Reject: the spec or an annotation is malformed.
    """
    try:
        return parse_nics(vmi, pod)
    except (ValueError, msgspec.ValidationError) as error:
        raise Reject("MalformedObject", f"{vmi.metadata.namespace}/{vmi.metadata.name}: {error}") from error


def reason_of(error: Exception, kind: OperationKind) -> str:
    """Return the reason of a failure, CamelCase.

    :param kind: of the operation that failed.
    """
    match error:
        case NetnsGone():
            return "SandboxGone"
        case NetlinkFailure():
            return "PodNetworkFailed"
        case GuestRefused():
            return "AttachRefused" if kind is OperationKind.PLUG else "DetachRefused"
        case GuestNotReachable():
            return "GuestNotReachable"
    return type(error).__name__
