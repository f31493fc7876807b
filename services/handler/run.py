"""One run for one VMI: the actions of its plan, one after the other, and the outcome for the queue.

What cannot be done now is a failure of its NIC and of no other NIC.
Next: :mod:`services.handler.apply` and :mod:`services.handler.report`, which apply each action.
"""

from collections.abc import Iterable

from services.common.cri.errors import CriError
from services.common.guest.port import DeviceMissing, GuestNotReachable, GuestRefused
from services.common.kube.errors import KubeError
from services.common.netlink.errors import NetlinkFailure, NetnsGone
from services.common.reconcile import Reject, Retry
from services.handler.apply import Applier, Target
from services.handler.observe import reason_of
from services.handler.plan.actions import (
    Action,
    ExpectMacs,
    PublishFailure,
    RecordDeclined,
    ReportStatus,
    RequestUnplug,
    RequeueAfter,
    RetryLater,
    ServeAddresses,
    SetLinkState,
    SetUpAndAttach,
    StopAddresses,
    TearDown,
    WarnOverdue,
)
from services.handler.plan.addresses import NOT_SERVED
from services.handler.report import StatusReporter
from services.handler.sandboxes import Sandboxes

# Not ServeAddresses: an address server needs the tap only, not the domain.
_NEEDS_GUEST = RequestUnplug | TearDown | SetUpAndAttach | SetLinkState


class Run:
    """The actions of one run, and what they led to."""

    def __init__(self, applier: Applier, reporter: StatusReporter, sandboxes: Sandboxes, target: Target) -> None:
        self._applier = applier
        self._reporter = reporter
        self._sandboxes = sandboxes
        self._target = target
        self._reachable = True
        self._errors: list[Retry | Reject | KubeError] = []

    async def apply(self, actions: Iterable[Action]) -> None:
        """Apply the actions, publish the failures, and raise the outcome.

        A successful teardown ends the run. The next run plans the other actions again and finds the slot free.

        :raises Retry: something could not be done yet.
        :raises Reject: something cannot be done as requested.
        :raises KubeError: the API server does not answer, or refused a patch.
        """
        unpublished: list[PublishFailure] = []
        for action in actions:
            # Each further call would wait for the same deadline.
            if isinstance(action, _NEEDS_GUEST) and not self._reachable:
                continue
            failure = await self._try(action)
            if failure is not None:
                unpublished.append(failure)
            elif isinstance(action, TearDown):
                break
        # Last: when NATS does not answer, each publish waits for its budget (50 ms), which must not delay another NIC.
        for failure in unpublished:
            await self._publish(failure)
        # A rejected NIC must not end the retries of another one.
        errors = sorted(self._errors, key=lambda error: isinstance(error, Reject))
        if errors:
            raise errors[0]

    async def _try(self, action: Action) -> PublishFailure | None:
        """Apply one action; return the failure of its NIC, if there is one."""
        try:
            await self._apply(action)
        except (GuestNotReachable, GuestRefused, NetlinkFailure, CriError) as error:
            return self._classify(action, error)
        return None

    async def _apply(self, action: Action) -> None:
        target = self._target
        match action:
            case RequestUnplug():
                await self._applier.request_unplug(action, target)
            case TearDown():
                await self._applier.tear_down(action, target)
            case SetUpAndAttach():
                await self._applier.attach(action, target)
            case SetLinkState():
                await self._applier.set_link(action, target)
            case StopAddresses(interface=interface):
                target.session.addresses.stop(interface)
            case ServeAddresses():
                await self._applier.serve(action, target)
            case RecordDeclined():
                await self._reporter.record_declined(action, target)
            case ReportStatus():
                await self._report(action)
            case PublishFailure():
                await self._publish(action)
            case WarnOverdue():
                await self._reporter.warn_overdue(action, target)
            case ExpectMacs(macs=macs):
                target.session.agent.expect(macs)
            case RequeueAfter(seconds=seconds):
                target.session.requeue_after(seconds)
            case RetryLater(reason=reason, message=message):
                self._errors.append(Retry(reason, message))

    async def _report(self, action: ReportStatus) -> None:
        try:
            await self._reporter.report(action, self._target)
        except (Retry, KubeError) as error:
            # The plugs that follow do not depend on the report.
            self._errors.append(error)

    async def _publish(self, failure: PublishFailure) -> None:
        await self._reporter.publish_failure(failure, self._target)
        outcome = Reject if failure.final else Retry
        self._errors.append(outcome(failure.reason, failure.message))

    def _classify(
        self, action: Action, error: GuestNotReachable | GuestRefused | NetlinkFailure | CriError
    ) -> PublishFailure | None:
        if isinstance(error, NetnsGone):
            self._sandboxes.forget(self._target.observed.pod)
        self._reachable = self._reachable and not isinstance(error, GuestNotReachable)
        match action:
            # A link state belongs to no operation, so no `failed` event is published for it.
            # DeviceMissing: the device was unplugged after the observation, and the next run observes that.
            case SetLinkState():
                if isinstance(error, GuestNotReachable):
                    self._errors.append(Retry("GuestNotReachable", str(error)))
                elif not isinstance(error, DeviceMissing):
                    self._errors.append(Retry("LinkStateRefused", f"{action.interface}: {error}"))
                return None
            case ServeAddresses():
                return PublishFailure(action.nic, NOT_SERVED, str(error), final=False)
            case RequestUnplug() | TearDown() | SetUpAndAttach():
                reason = reason_of(error, action.nic.operation.kind)
                return PublishFailure(action.nic, reason, str(error), final=False)
        raise error
