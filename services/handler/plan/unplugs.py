"""Plan the unplug of each absent NIC from a running guest: an action for each command of its state machine. Pure.

The order is strict. The guest is requested to give up the device, again at growing intervals until the domain no longer
has it. Then the backend is removed and the pod network torn down, and then ``released`` is written to the VMI. A NIC
without a device and without a pod network is released in the same way.
Next: :mod:`services.handler.pod_network.teardown`, the netlink operations.
"""

import contextlib
from collections.abc import Iterator

from schemas.kubernetes.operations import AnnotationTooLarge
from services.common.domain.nic import Nic
from services.handler.plan.actions import (
    Observed,
    PublishFailure,
    RequestUnplug,
    RequeueAfter,
    TearDown,
    WarnOverdue,
)
from services.handler.plan.nics import absent_nics, in_domain, unplug_obstacle
from services.handler.pod_network.operations import ObservedLinks
from services.handler.pod_network.records import record_from_links, record_of, record_patch
from services.handler.pod_network.setup import PodNetworkConflict, pod_nic_link
from services.handler.pod_network.teardown import is_set_up, teardown_operations
from services.handler.unplug import (
    UnplugCommand,
    UnplugEvent,
    UnplugRequests,
    after_request,
    after_warning,
    observed_event,
    seconds_until_next,
    timeout_message,
    transition,
)

UnplugAction = RequestUnplug | TearDown | PublishFailure | WarnOverdue


def plan_unplugs(observed: Observed) -> list[UnplugAction]:
    """Return what to do now for the absent NICs, in the spec's order, except to report what is released."""
    actions: list[UnplugAction] = []
    for nic in absent_nics(observed.nics):
        obstacle = unplug_obstacle(nic)
        if obstacle is not None:
            actions.append(PublishFailure(nic, *obstacle, final=True))
            continue
        event, commands = _advance(observed, nic)
        if UnplugCommand.REQUEST_UNPLUG in commands:
            actions.append(RequestUnplug(nic, event, observed.now))
        if UnplugCommand.WARN_OVERDUE in commands:
            actions.append(_warn(observed, nic, event))
        if UnplugCommand.TEAR_DOWN in commands and observed.pod_links is not None:
            actions.append(_tear_down(observed, observed.pod_links, nic))
    return actions


def released_interfaces(observed: Observed) -> frozenset[str]:
    """Return the interfaces whose release is to be reported."""
    return frozenset(
        nic.name
        for nic in absent_nics(observed.nics)
        if unplug_obstacle(nic) is None and UnplugCommand.REPORT_RELEASED in _advance(observed, nic)[1]
    )


def plan_requeue(observed: Observed) -> RequeueAfter:
    """Return when the next request or report of a pending unplug is due, after the actions of this plan."""
    waits = [seconds_until_next(requests, observed.now) for requests in _pending_requests(observed)]
    return RequeueAfter(min(waits, default=None))


def _pending_requests(observed: Observed) -> Iterator[UnplugRequests]:
    """Yield the requests of each pending unplug, as they are after the actions of this plan."""
    for nic in absent_nics(observed.nics):
        if unplug_obstacle(nic) is not None or not in_domain(nic, observed.guest):
            continue
        event, commands = _advance(observed, nic)
        requests = observed.unplugs[nic.name].requests
        if UnplugCommand.REQUEST_UNPLUG in commands:
            yield after_request(None if event is UnplugEvent.DEVICE_BACK else requests, observed.now)
        elif requests is not None:
            yield after_warning(requests) if UnplugCommand.WARN_OVERDUE in commands else requests


def _advance(observed: Observed, nic: Nic) -> tuple[UnplugEvent, tuple[UnplugCommand, ...]]:
    unplug = observed.unplugs[nic.name]
    event = observed_event(
        unplug,
        in_domain=in_domain(nic, observed.guest),
        released=observed.nics.released(nic),
        now=observed.now,
    )
    return event, transition(unplug.state, event)[1]


def _warn(observed: Observed, nic: Nic, event: UnplugEvent) -> WarnOverdue:
    requests = observed.unplugs[nic.name].requests
    assert requests is not None, "an unplug is overdue only after a request"
    message = timeout_message(nic.name, requests, observed.now)
    retry_after = seconds_until_next(after_warning(requests), observed.now)
    return WarnOverdue(nic, event, message, requests.count, retry_after)


def _tear_down(observed: Observed, pod_links: ObservedLinks, nic: Nic) -> TearDown | PublishFailure:
    try:
        record, ops = record_of(observed.pod, nic, observed.sandbox_id), None
        if record is None and not is_set_up(pod_links, nic.names):
            return TearDown(nic, None, [])
        if record is None:
            link = pod_nic_link(pod_links, nic.names)
            record = record_from_links(observed.pod, observed.sandbox_id, pod_links, nic, link) if link else None
            # A record that is too large for the annotation does not block an unplug: this run restores the pod
            # interface from the record in memory.
            with contextlib.suppress(AnnotationTooLarge):
                ops = record_patch(observed.pod, nic, record) if record else None
        mac = nic.status.mac if nic.status is not None else None
        return TearDown(nic, ops, teardown_operations(pod_links, nic.names, record, mac))
    except PodNetworkConflict as conflict:
        return PublishFailure(nic, "PodNetworkConflict", str(conflict), final=False)
