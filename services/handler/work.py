"""One run's work for one VMI, action by action: what cannot be done now is a failure of its NIC and of no other.

Between the plans (:mod:`services.handler.plan`, :mod:`services.handler.unplug`) and the hands
(:mod:`services.handler.apply`); called by :mod:`services.handler.role`.
"""

from collections.abc import Sequence

from schemas.kube import Pod
from schemas.stages import OperationKind
from services.common.cri.errors import CriError
from services.common.netlink.errors import NetlinkFailure, NetnsGone
from services.common.reconcile import Attempt
from services.handler.addresses.served import Wish, wishes, with_addresses
from services.handler.apply import Applier, Failure
from services.handler.guest.port import CardMissing, GuestNotReachable, GuestRefused
from services.handler.link_state import SetLink
from services.handler.observe import Observer
from services.handler.pending_unplug import next_look, told
from services.handler.plan import TERMINAL, Observed, Plug, Refuse
from services.handler.records import Nic
from services.handler.sessions import Session
from services.handler.unplug import LetGo, Release, Wait

NOT_SERVED = "AddressesNotServed"
DECLINED = "AddressDeclined"


class Work:
    """What one run has done.

    :ivar pod: as the last patch left it. :ivar failures: of NICs that were not plugged or unplugged.
    :ivar released: interfaces whose wiring is undone. :ivar changed: whether the domain got a card or a cable moved.
    :ivar unlinked: why a cable was not moved, by interface.
    :ivar reachable: whether the domain answered to the last.
    """

    def __init__(self, apply: Applier, observer: Observer, session: Session, observed: Observed, attempt: Attempt):
        self._apply = apply
        self._observer = observer
        self._session = session
        self._observed = observed
        self._attempt = attempt
        self.pod: Pod = observed.pod
        self.failures: list[Failure] = []
        self.released: set[str] = set()
        self.changed = False
        self.unlinked: dict[str, str] = {}
        self.reachable = True
        self._plugged: list[tuple[Nic, Wish]] = []

    async def unplug(self, actions: Sequence[LetGo | Wait | Release | Refuse]) -> None:
        """Ask all that have to be asked, then undo what the guest has let go of, then say who is late.

        :raises Retry: the pod changed meanwhile. :raises KubeError: the API server does not answer.
        """
        for action in actions:
            if isinstance(action, LetGo) and self.reachable:
                await self._ask(action)
        for action in actions:
            if isinstance(action, Release) and self.reachable:
                await self._release(action)
            elif isinstance(action, Refuse):
                self._refused(action)
        await self._remind([action for action in actions if isinstance(action, LetGo | Wait)])

    async def plug(self, actions: Sequence[Plug | Refuse]) -> None:
        """Wire and attach.

        :raises Retry: the pod changed meanwhile. :raises KubeError: the API server does not answer.
        """
        for action in actions:
            if isinstance(action, Refuse):
                self._refused(action)
            elif self.reachable:
                await self._plug(action)

    async def link(self, actions: Sequence[SetLink]) -> None:
        """Plug and pull cables.

        :raises GuestNotReachable: the domain does not answer.
        """
        for action in actions if self.reachable else ():
            try:
                await self._apply.set_link(action, self._session)
            except CardMissing:
                continue
            except GuestRefused as refusal:
                self.unlinked[action.interface] = str(refusal)
            else:
                self.changed = True

    async def serve(self) -> None:
        """See to it that the guest is told the addresses of every NIC that has some, and of no other."""
        observed, addresses = self._observed, self._session.addresses
        candidates = with_addresses(observed.vmi, self.pod, observed.guest)
        if not candidates and not self._plugged:
            addresses.keep(())
            return
        try:
            sandbox = await self._observer.sandbox(self.pod)
            netns = self._observer.netns_identity(sandbox)
        except (CriError, NetnsGone) as error:
            if isinstance(error, NetnsGone):
                # What is still listened to would keep it alive.
                addresses.keep(())
                self._observer.forget(self.pod)
            self.failures += [Failure(nic, NOT_SERVED, str(error)) for nic in candidates]
            return
        resolver = await self._observer.resolver(sandbox)
        wished = [*self._plugged, *wishes(observed.vmi, self.pod, observed.guest, sandbox.id, resolver)]
        addresses.keep(wish for _, wish in wished)
        for nic, wish in wished:
            if not addresses.serves(wish, netns):
                await self._serve(nic, wish)
            if nic.name in addresses.declined:
                addresses.declined.discard(nic.name)
                await self._apply.warn(
                    nic, observed.vmi, DECLINED, "the guest says that somebody else uses its address"
                )

    async def _serve(self, nic: Nic, wish: Wish) -> None:
        try:
            netns = await self._observer.netns(self.pod)
            await self._apply.serve(wish, netns, self._session)
        except (NetlinkFailure, CriError) as error:
            if isinstance(error, NetnsGone):
                self._observer.forget(self.pod)
            self.failures.append(Failure(nic, NOT_SERVED, str(error)))

    def ended(self) -> dict[str, str]:
        """The interfaces whose plug has ended for good, and why."""
        return {f.nic.name: f.reason for f in self.failures if f.final and f.reason in TERMINAL}

    async def _ask(self, action: LetGo) -> None:
        try:
            await self._apply.let_go(action, self._session, self._attempt, self._observed.now)
        except GuestNotReachable as error:
            self._unreachable(action, error)

    async def _release(self, action: Release) -> None:
        try:
            netns = await self._observer.netns(self.pod)
            self.pod = await self._apply.release(action, netns, self.pod, self._session, self._attempt)
        except (GuestRefused, NetlinkFailure, CriError) as error:
            self._failed(action, error)
        except GuestNotReachable as error:
            self._unreachable(action, error)
        else:
            self.released.add(action.nic.name)

    async def _plug(self, action: Plug) -> None:
        try:
            netns = await self._observer.netns(self.pod)
            self.pod = await self._apply.plug(action, netns, self.pod, self._session, self._attempt)
        except (GuestRefused, NetlinkFailure, CriError) as error:
            self._failed(action, error)
        except GuestNotReachable as error:
            self._unreachable(action, error)
        else:
            self.changed = True
            if action.addresses is not None:
                self._plugged.append((action.nic, action.addresses))

    async def _remind(self, actions: Sequence[LetGo | Wait]) -> None:
        """Tell of guests that are late, once per request, and see to it that they are asked again."""
        waits = []
        now, observed = self._observed.now, self._observed
        for action in actions:
            leaving = self._session.leaving.get(action.nic.name)
            if leaving is None:
                continue
            waits.append(next_look(leaving.asked, now))
            if leaving.asked.late(now) and leaving.told != leaving.asked.times:
                leaving.told = leaving.asked.times
                late = Failure(action.nic, "UnplugTimeout", told(action.nic.name, leaving.asked, now))
                await self._apply.failed(
                    late, observed.vmi, self.pod, observed.sandbox_id, self._attempt, waits[-1], leaving.asked.times
                )
        self._session.look_in(min(waits) if waits else None)

    def _refused(self, action: Refuse) -> None:
        self.failures.append(Failure(action.nic, action.reason, action.message, action.final))

    def _failed(self, action: Plug | Release, error: Exception) -> None:
        if isinstance(error, NetnsGone):
            self._observer.forget(self.pod)
        self.failures.append(Failure(action.nic, reason_of(error, action.nic.operation.kind), str(error)))

    def _unreachable(self, action: Plug | LetGo | Release, error: GuestNotReachable) -> None:
        # The next one would only wait for the same deadline.
        self.reachable = False
        self.failures.append(Failure(action.nic, reason_of(error, action.nic.operation.kind), str(error)))


def reason_of(error: Exception, kind: OperationKind) -> str:
    """The reason that people and machines read."""
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
