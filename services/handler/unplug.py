"""The unplug of one device as a state machine: one table from state and event to the next state and commands. Pure.

An event is what is observed of the domain and the VMI, or what is due by now. Nothing is torn down before the domain
has lost the device, and nothing is released before the pod network is torn down. Requests to the guest have no limit,
because only the guest can complete the unplug. The state is not stored: a restarted handler derives it from what it
observes. The record in a guest's session (:mod:`services.handler.sessions`) holds the state and is its only writer.
Next: :mod:`services.handler.plan.unplugs`, which makes actions of the commands.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from services.common.flowcontrol.backoff import interval

UNPLUG_TIMEOUT = 5.0
"""Seconds after the first request until a pending unplug is reported as ``UnplugTimeout``. A running Linux guest needs
0.1 s; a booting guest needs as long as it takes to load its drivers."""

FIRST_RETRY, MAX_RETRY_INTERVAL = 1.0, 30.0
"""Seconds until the second request, and the longest interval; the interval doubles with each request."""

QEMU_REPEAT_INTERVAL = 5.0
"""Seconds during which QEMU refuses to repeat a request. A second press of the attention button would cancel the
first."""


class UnplugState(StrEnum):
    """How far an unplug is."""

    REQUESTED = "requested"
    """The domain has the device, and this process has not requested the unplug from the guest yet. Only the spec
    requests it so far."""
    PENDING = "pending"
    """The guest was requested to give up the device."""
    OVERDUE = "overdue"
    """The guest refused, or did not give up the device in time. The request is repeated."""
    DEVICE_GONE = "device-gone"
    """The domain does not have the device. Its backend and the pod network may exist."""
    TORN_DOWN = "torn-down"
    """The backend is removed and the pod network is torn down."""
    RELEASED = "released"
    """The VMI's operation says that this pod released the interface."""


class UnplugEvent(StrEnum):
    """What is observed of an unplug, or is due."""

    DEVICE_PRESENT = "device-present"
    REQUEST_DUE = "request-due"
    GUEST_REFUSED = "guest-refused"
    TIMED_OUT = "timed-out"
    DEVICE_ABSENT = "device-absent"
    POD_NETWORK_ABSENT = "pod-network-absent"
    RELEASE_RECORDED = "release-recorded"
    DEVICE_BACK = "device-back"


class UnplugCommand(StrEnum):
    """What the handler does because of an event."""

    REQUEST_UNPLUG = "request-unplug"
    WARN_OVERDUE = "warn-overdue"
    TEAR_DOWN = "tear-down"
    REPORT_RELEASED = "report-released"


class IllegalTransition(Exception):
    """The event cannot occur in the state."""


_S, _E, _C = UnplugState, UnplugEvent, UnplugCommand
Transition = tuple[UnplugState, tuple[UnplugCommand, ...]]

# TEAR_DOWN follows only from DEVICE_ABSENT. KubeVirt removed the links before the guest had released the device, and
# the NIC stayed in the guest (kubevirt#13721).
TABLE: Final[Mapping[tuple[UnplugState, UnplugEvent], Transition]] = MappingProxyType(
    {
        (_S.REQUESTED, _E.REQUEST_DUE): (_S.PENDING, (_C.REQUEST_UNPLUG,)),
        (_S.REQUESTED, _E.DEVICE_ABSENT): (_S.DEVICE_GONE, (_C.TEAR_DOWN,)),
        (_S.REQUESTED, _E.RELEASE_RECORDED): (_S.RELEASED, ()),
        (_S.PENDING, _E.DEVICE_PRESENT): (_S.PENDING, ()),
        (_S.PENDING, _E.REQUEST_DUE): (_S.PENDING, (_C.REQUEST_UNPLUG,)),
        (_S.PENDING, _E.GUEST_REFUSED): (_S.OVERDUE, (_C.WARN_OVERDUE,)),
        (_S.PENDING, _E.TIMED_OUT): (_S.OVERDUE, (_C.WARN_OVERDUE,)),
        (_S.PENDING, _E.DEVICE_ABSENT): (_S.DEVICE_GONE, (_C.TEAR_DOWN,)),
        (_S.PENDING, _E.RELEASE_RECORDED): (_S.RELEASED, ()),
        (_S.OVERDUE, _E.DEVICE_PRESENT): (_S.OVERDUE, ()),
        (_S.OVERDUE, _E.REQUEST_DUE): (_S.OVERDUE, (_C.REQUEST_UNPLUG,)),
        (_S.OVERDUE, _E.GUEST_REFUSED): (_S.OVERDUE, (_C.WARN_OVERDUE,)),
        (_S.OVERDUE, _E.TIMED_OUT): (_S.OVERDUE, (_C.WARN_OVERDUE,)),
        (_S.OVERDUE, _E.DEVICE_ABSENT): (_S.DEVICE_GONE, (_C.TEAR_DOWN,)),
        (_S.OVERDUE, _E.RELEASE_RECORDED): (_S.RELEASED, ()),
        # A teardown that failed is planned again.
        (_S.DEVICE_GONE, _E.DEVICE_ABSENT): (_S.DEVICE_GONE, (_C.TEAR_DOWN,)),
        (_S.DEVICE_GONE, _E.POD_NETWORK_ABSENT): (_S.TORN_DOWN, ()),
        (_S.DEVICE_GONE, _E.RELEASE_RECORDED): (_S.RELEASED, ()),
        (_S.DEVICE_GONE, _E.DEVICE_BACK): (_S.PENDING, (_C.REQUEST_UNPLUG,)),
        (_S.TORN_DOWN, _E.DEVICE_ABSENT): (_S.TORN_DOWN, (_C.REPORT_RELEASED,)),
        (_S.TORN_DOWN, _E.RELEASE_RECORDED): (_S.RELEASED, ()),
        (_S.TORN_DOWN, _E.DEVICE_BACK): (_S.PENDING, (_C.REQUEST_UNPLUG,)),
        (_S.RELEASED, _E.RELEASE_RECORDED): (_S.RELEASED, ()),
        (_S.RELEASED, _E.DEVICE_BACK): (_S.PENDING, (_C.REQUEST_UNPLUG,)),
    }
)
"""The next state and the commands for every event that can occur in a state."""


def transition(state: UnplugState, event: UnplugEvent) -> Transition:
    """Return the next state and the commands.

    :raises IllegalTransition: the event cannot occur in the state.
    """
    found = TABLE.get((state, event))
    if found is None:
        raise IllegalTransition(f"event {event} in state {state}")
    return found


def initial_state(*, in_domain: bool, released: bool) -> UnplugState:
    """Return the state of an unplug that this process has not handled yet, from observation alone.

    :param in_domain: whether the domain has the device.
    :param released: whether the VMI's operation says that this pod released the interface.
    """
    if in_domain:
        return UnplugState.REQUESTED
    return UnplugState.RELEASED if released else UnplugState.DEVICE_GONE


class UnplugRequests(msgspec.Struct, frozen=True):
    """The requests made for one device. Times are seconds of a monotonic clock.

    :ivar count: the number of requests.
    :ivar first_at: the time of the first request.
    :ivar next_at: the time of the next request.
    :ivar last_error: the domain's error for the last request; empty when it was accepted.
    :ivar refused: whether the guest reported that it does not give up the device.
    :ivar accepted_at: the time of the last request that the domain accepted; ``None`` when it accepted none.
    :ivar warned_count: the number of requests when the overdue unplug was last reported.
    """

    count: int
    first_at: float
    next_at: float
    last_error: str = ""
    refused: bool = False
    accepted_at: float | None = None
    warned_count: int = 0

    def deadline(self) -> float:
        """Return the time from which the unplug is overdue."""
        return self.first_at + UNPLUG_TIMEOUT

    def overdue(self, now: float) -> bool:
        """Return whether the unplug is overdue."""
        return self.refused or now >= self.deadline()

    def unreported(self, now: float) -> bool:
        """Return whether the unplug is overdue and that is not reported yet; it is reported once for each request."""
        return self.overdue(now) and self.warned_count != self.count


class Unplug(msgspec.Struct, frozen=True):
    """The unplug of one device.

    :ivar state: how far it is.
    :ivar requests: the requests to the guest; ``None`` before the first one of this process.
    """

    state: UnplugState
    requests: UnplugRequests | None


def observed_event(unplug: Unplug, *, in_domain: bool, released: bool, now: float) -> UnplugEvent:
    """Return the event of one observation.

    :param in_domain: whether the domain has the device.
    :param released: whether the VMI's operation says that this pod released the interface.
    :param now: seconds of the same clock as the times of the requests.
    """
    if not in_domain:
        return UnplugEvent.RELEASE_RECORDED if released else UnplugEvent.DEVICE_ABSENT
    if unplug.state in (UnplugState.DEVICE_GONE, UnplugState.TORN_DOWN, UnplugState.RELEASED):
        return UnplugEvent.DEVICE_BACK
    requests = unplug.requests
    if requests is None or now >= requests.next_at:
        return UnplugEvent.REQUEST_DUE
    if not requests.unreported(now):
        return UnplugEvent.DEVICE_PRESENT
    return UnplugEvent.GUEST_REFUSED if requests.refused else UnplugEvent.TIMED_OUT


def after_request(before: UnplugRequests | None, now: float) -> UnplugRequests:
    """Return the requests after one more request."""
    if before is None:
        return UnplugRequests(1, now, now + FIRST_RETRY)
    count = before.count + 1
    next_at = now + interval(count, FIRST_RETRY, MAX_RETRY_INTERVAL)
    return msgspec.structs.replace(before, count=count, next_at=next_at, last_error="")


def after_warning(before: UnplugRequests) -> UnplugRequests:
    """Return the requests after the overdue unplug was reported."""
    return msgspec.structs.replace(before, warned_count=before.count)


def after_guest_activity(requests: UnplugRequests, now: float) -> UnplugRequests:
    """Return the requests after a sign that the guest runs: earlier requests may have been lost in a reboot.

    The next request is made as soon as QEMU accepts it. Within :data:`FIRST_RETRY` of the first request nothing
    changes, because a guest that is giving up the device shows activity too.
    """
    if now < requests.first_at + FIRST_RETRY:
        return requests
    earliest = now if requests.accepted_at is None else max(now, requests.accepted_at + QEMU_REPEAT_INTERVAL)
    return msgspec.structs.replace(requests, next_at=min(requests.next_at, earliest))


def seconds_until_next(requests: UnplugRequests, now: float) -> float:
    """Return the seconds until the next request or report, whichever comes first."""
    if requests.unreported(now):
        return 0.0
    due = requests.next_at if requests.overdue(now) else min(requests.next_at, requests.deadline())
    return max(0.0, due - now)


def timeout_message(interface: str, requests: UnplugRequests, now: float) -> str:
    """Return the message of ``UnplugTimeout``."""
    if requests.refused:
        text = f"the guest refuses to release {interface}"
    else:
        text = f"the guest has not released {interface} {now - requests.first_at:.0f} s after the first request"
    text = f"{text}; number of requests: {requests.count}; the request is repeated until the guest releases it"
    return f"{text} (last error: {requests.last_error})" if requests.last_error else text
