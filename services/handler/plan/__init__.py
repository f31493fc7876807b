"""Plan what the handler does for one VMI on its node: one pure function of the observed state.

Unplugs, plugs, link states, address servers and the report have a module each. A device that is attached, detached or
torn down is reported by the next plan, which observes the result.
Next: :mod:`services.handler.apply`.
"""

from services.common.domain.eligibility import PLUG_FAILURES
from services.handler.plan.actions import (
    Action,
    ExpectMacs,
    Observed,
    Outcome,
    PublishFailure,
    RequestUnplug,
    RetryLater,
    SetUpAndAttach,
    TearDown,
    Unobserved,
    WarnOverdue,
)
from services.handler.plan.addresses import plan_addresses
from services.handler.plan.link_state import plan_link_states
from services.handler.plan.nics import attached_nics, guest_macs, waiting_nics
from services.handler.plan.plugs import plan_plugs
from services.handler.plan.report import plan_report
from services.handler.plan.unplugs import plan_requeue, plan_unplugs, released_interfaces

__all__ = ["Action", "Observed", "Unobserved", "plan"]


def plan(observed: Observed | Unobserved) -> list[Action]:
    """Return the actions for one VMI, in the order in which they are applied.

    The report precedes the plugs, so that they do not delay the rest of an unplug. A refusal that ends an operation is
    published before the report writes it to the operation: the next plan leaves that NIC out.
    """
    if isinstance(observed, Unobserved):
        return _plan_unobserved(observed)
    unplugs, plugs, addresses = plan_unplugs(observed), plan_plugs(observed), plan_addresses(observed)
    failures = [action for action in (*unplugs, *plugs, *addresses) if isinstance(action, PublishFailure)]
    terminal = [failure for failure in failures if failure.final and failure.reason in PLUG_FAILURES]
    failed = {failure.nic.name: failure.reason for failure in terminal}
    report = plan_report(observed, Outcome(released_interfaces(observed), failed))
    return [
        # First: the guest needs about 0.1 s to release a device, and the rest of the plan is applied meanwhile.
        *(action for action in unplugs if isinstance(action, RequestUnplug)),
        *(action for action in unplugs if isinstance(action, TearDown)),
        *terminal,
        *([report] if report is not None else ()),
        *(action for action in plugs if isinstance(action, SetUpAndAttach)),
        *(action for action in addresses if not isinstance(action, PublishFailure)),
        *plan_link_states(observed.nics, observed.guest),
        ExpectMacs(guest_macs(attached_nics(observed.nics), observed.guest)),
        *(action for action in unplugs if isinstance(action, WarnOverdue)),
        *(failure for failure in failures if failure not in terminal),
        plan_requeue(observed),
    ]


def _plan_unobserved(observed: Unobserved) -> list[Action]:
    """Publish a failure for every NIC that may be waiting, because nothing could be observed."""
    reason, message = observed.reason, observed.message
    failures = [PublishFailure(nic, reason, message, final=False) for nic in waiting_nics(observed.nics)]
    return [*failures, RetryLater(reason, message)]
