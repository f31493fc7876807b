"""One run: what a failing action means for the actions after it, and for the outcome."""

from typing import Any

import pytest

from services.common.domain.nic import parse_nics
from services.common.guest.port import DeviceMissing, GuestNotReachable, GuestRefused
from services.common.kube.errors import Conflict
from services.common.netlink.errors import NetlinkFailure, NetnsGone
from services.common.reconcile import Attempt, Reject, Retry
from services.handler.apply import Target
from services.handler.plan.actions import (
    Action,
    Outcome,
    PublishFailure,
    ReportStatus,
    RequestUnplug,
    RetryLater,
    ServeAddresses,
    SetLinkState,
    SetUpAndAttach,
    TearDown,
    WarnOverdue,
)
from services.handler.run import Run
from services.handler.unplug import UnplugEvent
from tests.support.observed.handler import observed_state
from tests.support.observed.objects import nic, pod, vmi

NICS = parse_nics(vmi(nic("a"), nic("b"), nic("c", state="absent"), nic("d", state="absent")), pod())
REPORT = ReportStatus([], [], [], Outcome(frozenset(), {}))


def attach(name: str) -> SetUpAndAttach:
    return SetUpAndAttach(NICS.nics[name], None, [], None, "rp1", None)  # type: ignore[arg-type]


def tear_down(name: str) -> TearDown:
    return TearDown(NICS.nics[name], None, [])


def request(name: str) -> RequestUnplug:
    return RequestUnplug(NICS.nics[name], UnplugEvent.REQUEST_DUE, 0.0)


class ScriptedApplier:
    """An applier that fails as scripted, and what it was called with."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        self.errors = errors
        self.calls: list[str] = []
        self.failures: list[tuple[str, str, bool]] = []

    def __getattr__(self, method: str) -> Any:
        async def call(action: Any, *_: Any) -> None:
            name = action.nic.name if hasattr(action, "nic") else getattr(action, "interface", "")
            call_name = f"{method} {name}".strip()
            self.calls.append(call_name)
            if method == "publish_failure":
                self.failures.append((name, action.reason, action.final))
            if call_name in self.errors:
                raise self.errors[call_name]

        return call


class ForgottenSandboxes:
    """Counts the sandboxes that are dropped."""

    def __init__(self) -> None:
        self.forgotten = 0

    def forget(self, _pod: Any) -> None:
        self.forgotten += 1


async def run(*actions: Action, sandboxes: Any = None, **errors: Exception) -> tuple[ScriptedApplier, Exception | None]:
    """Apply actions; return the applier and the outcome.

    :param errors: by call, with ``_`` before the interface.
    """
    applier = ScriptedApplier({" ".join(call.rsplit("__", 1)): error for call, error in errors.items()})
    target = Target(observed_state(NICS.vmi, pod()), None, Attempt())  # type: ignore[arg-type]
    try:
        await Run(applier, applier, sandboxes, target).apply(actions)  # type: ignore[arg-type]
    except (Retry, Reject, Conflict) as outcome:
        return applier, outcome
    return applier, None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GuestRefused("no"), "AttachRefused"),
        (NetlinkFailure(1, "no"), "PodNetworkFailed"),
    ],
)
async def test_a_nic_that_fails_does_not_hold_up_the_next_one(error: Exception, reason: str) -> None:
    applier, outcome = await run(attach("a"), attach("b"), attach__a=error)
    assert applier.calls == ["attach a", "attach b", "publish_failure a"]
    assert applier.failures == [("a", reason, False)]
    assert isinstance(outcome, Retry)
    assert (outcome.reason, outcome.after) == (reason, None), "the queue knows the backoff"


async def test_a_guest_that_does_not_answer_is_not_called_again() -> None:
    applier, outcome = await run(
        request("c"), tear_down("d"), REPORT, attach("a"), SetLinkState("a", True, True),
        request_unplug__c=GuestNotReachable("no"),
    )  # fmt: skip
    assert applier.calls == ["request_unplug c", "report", "publish_failure c"]
    assert isinstance(outcome, Retry)
    assert outcome.reason == "GuestNotReachable"


async def test_a_teardown_ends_the_run_and_a_failed_one_does_not() -> None:
    applier, outcome = await run(tear_down("c"), REPORT, attach("a"))
    assert (applier.calls, outcome) == (["tear_down c"], None)
    applier, outcome = await run(tear_down("c"), REPORT, attach("a"), tear_down__c=GuestRefused("no"))
    assert applier.calls == ["tear_down c", "report", "attach a", "publish_failure c"]
    assert applier.failures == [("c", "DetachRefused", False)]
    assert isinstance(outcome, Retry)


async def test_a_report_that_fails_does_not_hold_up_a_plug() -> None:
    error = Conflict("changed")
    applier, outcome = await run(REPORT, attach("a"), report=error)
    assert applier.calls == ["report", "attach a"]
    assert outcome is error


async def test_a_namespace_that_is_gone_is_forgotten() -> None:
    sandboxes = ForgottenSandboxes()
    applier, _ = await run(attach("a"), sandboxes=sandboxes, attach__a=NetnsGone(2, "gone"))
    assert (applier.failures, sandboxes.forgotten) == ([("a", "SandboxGone", False)], 1)


async def test_addresses_that_cannot_be_served_are_a_failure_of_the_nic() -> None:
    serve = ServeAddresses(NICS.nics["a"], None)  # type: ignore[arg-type]
    applier, outcome = await run(serve, serve__a=NetlinkFailure(19, "no tap"))
    assert applier.failures == [("a", "AddressesNotServed", False)]
    assert isinstance(outcome, Retry)


async def test_a_link_state_that_is_refused_is_retried_and_a_missing_device_is_not() -> None:
    set_link = SetLinkState("a", True, True)
    applier, outcome = await run(set_link, set_link__a=GuestRefused("no"))
    assert applier.failures == []
    assert isinstance(outcome, Retry)
    assert outcome.reason == "LinkStateRefused"
    assert (await run(set_link, set_link__a=DeviceMissing("gone")))[1] is None
    outcome = (await run(set_link, set_link__a=GuestNotReachable("no")))[1]
    assert isinstance(outcome, Retry)
    assert outcome.reason == "GuestNotReachable"


async def test_only_a_run_without_a_retry_is_rejected() -> None:
    final = PublishFailure(NICS.nics["a"], "NoFreeSlot", "full", final=True)
    transient = PublishFailure(NICS.nics["b"], "PodLinkMissing", "not there", final=False)
    applier, outcome = await run(final)
    assert applier.failures == [("a", "NoFreeSlot", True)]
    assert isinstance(outcome, Reject)
    outcome = (await run(final, transient))[1]
    assert isinstance(outcome, Retry)
    assert outcome.reason == "PodLinkMissing"


async def test_an_overdue_unplug_is_no_failed_run() -> None:
    warning = WarnOverdue(NICS.nics["c"], UnplugEvent.TIMED_OUT, "late", 1, 2.0)
    assert (await run(warning))[1] is None
    assert isinstance((await run(RetryLater("CriError", "no")))[1], Retry)
