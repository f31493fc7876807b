"""The state that the handler holds for each guest between two runs: connections, the agent poller, traces under way.

All of it can be lost: a restarted handler rebuilds it by observing again.
Next: :mod:`services.handler.observe`, which uses a session to observe the guest.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec
from opentelemetry.context import Context

from schemas.bus.events import ConfirmedBy
from schemas.names import interface_of_alias
from services.common.flowcontrol.pacer import Pacer
from services.common.guest.agent import GuestAgent
from services.common.guest.drivers import DriverFactory
from services.common.guest.port import GuestChange, GuestDriver, GuestEvent, GuestNotReachable
from services.common.reconcile import Source
from services.common.telemetry.logs import Log
from services.common.telemetry.stores import STORES
from services.handler.addresses.service import AddressServers
from services.handler.agent_poller import DELAYS_AFTER_LEASE, DELAYS_AFTER_PLUG, AgentPoller
from services.handler.unplug import (
    Unplug,
    UnplugEvent,
    UnplugRequests,
    UnplugState,
    after_guest_activity,
    after_request,
    after_warning,
    initial_state,
    transition,
)

Key = tuple[str, str]
"""Namespace and name of a VMI."""

Requeue = Callable[[Key, Context | None, Source], None]
"""Adds a key to the queue, with the trace that the run belongs to."""

RUNS_OF_A_CHANGE, REPORTS_OF_A_CHANGE = 8, 4
"""Runs, and reports to the VMI, that a change of one interface's desired state may lead to without a pace."""


class PluggedDevice:
    """A device that this process attached.

    :ivar attached_at: nanoseconds of the wall clock.
    :ivar context: the span that attached it.
    :ivar driver_reported: whether it is reported that a driver in the guest uses the device.
    :ivar listed: whether the domain has listed the device since.
    """

    def __init__(self, context: Context) -> None:
        self.attached_at = time.time_ns()
        self.context = context
        self.driver_reported = False
        self.listed = False


class UnplugRecord:
    """The unplug of one device, with what its spans need. It is the only writer of the state.

    :ivar requested_at: the time of the first request, in nanoseconds of the wall clock; 0 before it.
    :ivar context: the span of the first request, or of the teardown where there was none; ``None`` before both.
    :ivar deleted_at: the time of the domain's event that the device is gone, as ``requested_at``. 0 before the event;
        -1 once the span from the request to this event is written, so that a repeated teardown writes no second one.
    """

    def __init__(self, state: UnplugState) -> None:
        self._unplug = Unplug(state, None)
        self.requested_at = 0
        self.context: Context | None = None
        self.deleted_at = 0

    @property
    def unplug(self) -> Unplug:
        """The state of the unplug."""
        return self._unplug

    def advance(self, event: UnplugEvent) -> None:
        """Change the state.

        :raises IllegalTransition: the event cannot occur in the state, which is unchanged.
        """
        state, _ = transition(self._unplug.state, event)
        self._unplug = msgspec.structs.replace(self._unplug, state=state)

    def record_request(self, now: float, *, restart: bool) -> None:
        """Record a request.

        :param restart: whether the device is back, so that earlier requests do not count.
        """
        before = None if restart else self._unplug.requests
        if before is None:
            self.requested_at, self.deleted_at = time.time_ns(), 0
        self._set(after_request(before, now))

    def record_response(self, now: float, error: str) -> None:
        """Record the domain's response to the last request.

        :param error: empty when the domain accepted the request.
        """
        requests = self._unplug.requests
        if requests is not None:
            accepted_at = requests.accepted_at if error else now
            self._set(msgspec.structs.replace(requests, accepted_at=accepted_at, last_error=error))

    def record_refused(self) -> None:
        """Record that the guest refused to give up the device."""
        if self._unplug.requests is not None:
            self._set(msgspec.structs.replace(self._unplug.requests, refused=True))

    def record_warning(self) -> None:
        """Record that the overdue unplug was reported."""
        if self._unplug.requests is not None:
            self._set(after_warning(self._unplug.requests))

    def record_guest_activity(self, now: float) -> bool:
        """Record that the guest runs; return whether the next request is due earlier."""
        before = self._unplug.requests
        if before is None:
            return False
        self._set(after_guest_activity(before, now))
        return self._unplug.requests != before

    def _set(self, requests: UnplugRequests) -> None:
        self._unplug = msgspec.structs.replace(self._unplug, requests=requests)


class GuestSession:
    """The state of one guest that runs on this node. Created by :class:`GuestSessions`.

    :ivar key: namespace and name of the VMI.
    :ivar guest: the driver of its domain.
    :ivar agent: polls its guest agent.
    :ivar addresses: its address servers.
    :ivar plugged_devices: devices attached by this process and not yet confirmed by the agent, by interface.
    :ivar unplugs: the unplugs that this process has observed, by interface.
    :ivar reports: the pace of the reports to the VMI.
    """

    def __init__(self, key: Key, guest: GuestDriver, agent: GuestAgent, requeue: Requeue, log: Log) -> None:
        self.key = key
        self.guest = guest
        self.agent = AgentPoller(agent, self._requeue_latest, log, on_silence=self._check_drivers)
        # A guest causes each of these as often as it likes, a run also by a device that comes and goes.
        self._runs = Pacer(requeue)
        self.reports = Pacer(self._requeue_latest)
        self._declined = Pacer(self._requeue_latest)
        self._leased = Pacer(lambda: self.agent.poll(DELAYS_AFTER_LEASE))
        self._device_used = Pacer(self.agent.poll)
        self._agent_connected = Pacer(self.agent.record_connected)
        self.addresses = AddressServers(self._declined.request, self._leased.request, log)
        self.plugged_devices: dict[str, PluggedDevice] = {}
        self.unplugs: dict[str, UnplugRecord] = {}
        self._desired: frozenset[tuple[str, ...]] = frozenset()
        self._requeue = requeue
        self._timer: asyncio.TimerHandle | None = None
        self._log = log
        self._events: asyncio.Task[None] | None = None

    def watch_events(self) -> None:
        """Start to watch the guest's events, unless they are being watched."""
        if self._events is None or self._events.done():
            self._events = asyncio.create_task(self._watch_events(), name=f"guest-events {self.key}")

    def record_attached(self, interface: str, mac: str, context: Context) -> None:
        """Record a device that was attached just now, and poll the agent for it.

        :param context: the span that attached it.
        """
        self.plugged_devices[interface] = PluggedDevice(context)
        # The device is a new one: an unplug of an earlier device of that interface has ended.
        self.unplugs.pop(interface, None)
        # The agent's last response may list an earlier device of the same MAC.
        self.agent.forget(mac)
        self.agent.poll(DELAYS_AFTER_PLUG)

    def record_confirmed(self, interface: str, confirmed_by: ConfirmedBy) -> PluggedDevice | None:
        """Record that a device is confirmed; return it if this process attached it.

        A device that the agent has confirmed is not confirmed again.
        """
        plugged = self.plugged_devices.get(interface)
        if plugged is not None and confirmed_by is ConfirmedBy.DRIVER:
            plugged.driver_reported = True
        if confirmed_by is ConfirmedBy.GUEST_AGENT:
            self.plugged_devices.pop(interface, None)
        return plugged

    def requeue_after(self, seconds: float | None) -> None:
        """Requeue the key after a time, which replaces the one of the last call; ``None`` cancels it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._requeue, self.key, None, "watch")

    async def close(self) -> None:
        """Stop everything and disconnect from the guest."""
        self.requeue_after(None)
        pacers = (self._declined, self._leased, self._device_used, self._agent_connected, self._runs, self.reports)
        for pacer in pacers:
            pacer.close()
        self.addresses.close()
        if self._events is not None:
            self._events.cancel()
            # `wait`, unlike `await`, raises neither the cancellation nor the exception of the task.
            await asyncio.wait({self._events})
        await self.agent.close()
        await self.guest.close()

    async def _watch_events(self) -> None:
        try:
            async for event in self.guest.events():
                self._handle(event)
        except GuestNotReachable as exc:
            self._log.debug("guest events ended", error=str(exc))
        # The next run observes what happened without an event, and reports a guest that is gone.
        self._runs.request(self.key, None, "watch")

    def _handle(self, event: GuestEvent) -> None:
        if event.change in (GuestChange.DEVICE_IN_USE, GuestChange.AGENT_CONNECTED):
            if event.change is GuestChange.AGENT_CONNECTED:
                self._agent_connected.request()
            else:
                # A driver has set the receive filter, so the agent can list the NIC from now on (ADR 15).
                self._device_used.request()
            self._advance_requests()
        # An event without an alias is about a part of a device, shortly before the event of the device itself.
        elif event.change is not GuestChange.OTHER and event.alias is not None:
            record = self.unplugs.get(interface_of_alias(event.alias) or "")
            if record is not None and event.change is GuestChange.DEVICE_DELETED:
                record.deleted_at = time.time_ns()
            elif record is not None:
                record.record_refused()
            self._runs.request(self.key, record.context if record is not None else None, "watch")

    def _advance_requests(self) -> None:
        now = asyncio.get_running_loop().time()
        for record in self.unplugs.values():
            if record.record_guest_activity(now):
                self._runs.request(self.key, record.context, "watch")

    def open_unplug(self, interface: str, *, in_domain: bool, released: bool) -> None:
        """Record the unplug of an absent interface, unless it is under way.

        :param in_domain: whether the domain has the device.
        :param released: whether the VMI's operation says that this pod released the interface.
        """
        record = self.unplugs.get(interface)
        if record is None or record.unplug.state is UnplugState.RELEASED:
            self.unplugs[interface] = UnplugRecord(initial_state(in_domain=in_domain, released=released))

    def retain_unplugs(self, interfaces: Iterable[str]) -> None:
        """Drop the unplugs of all other interfaces: they are not absent any more."""
        for name in self.unplugs.keys() - set(interfaces):
            del self.unplugs[name]

    def is_torn_down(self, interface: str) -> bool:
        """Return whether the pod network of an absent interface is torn down and its release is not reported yet."""
        record = self.unplugs.get(interface)
        return record is not None and record.unplug.state is UnplugState.TORN_DOWN

    def requeue(self, context: Context | None) -> None:
        """Requeue the key, because a run has changed the guest or the pod network. A guest may undo it, so it is paced.

        :param context: the trace that the run belongs to.
        """
        self._runs.request(self.key, context, "effect")

    def unconfirmed(self) -> frozenset[str]:
        """Return the interfaces attached here for which no active driver is reported."""
        return frozenset(name for name, plugged in self.plugged_devices.items() if not plugged.driver_reported)

    def _check_drivers(self) -> None:
        # Without an agent, only the domain can show that a driver uses the device.
        if self.unconfirmed():
            self._runs.request(self.key, self._latest_context(), "watch")

    def _requeue_latest(self) -> None:
        self._requeue(self.key, self._latest_context(), "watch")

    def _latest_context(self) -> Context | None:
        latest = max(self.plugged_devices.values(), key=lambda plugged: plugged.attached_at, default=None)
        return latest.context if latest is not None else None

    def record_desired(self, desired: frozenset[tuple[str, ...]]) -> None:
        """Record the desired state: what somebody has changed in it is not paced.

        :param desired: one item for each interface; it changes only with the spec and the operations, never by a guest.
        """
        changes = len(desired - self._desired)
        self._desired = desired
        self.reports.grant(REPORTS_OF_A_CHANGE * changes)
        self._runs.grant(RUNS_OF_A_CHANGE * changes)


class GuestSessions:
    """The sessions of a node's guests, by VMI UID."""

    def __init__(self, make_driver: DriverFactory, log: Log, requeue: Requeue) -> None:
        """Create the collection, without a session.

        :param make_driver: makes the driver and the agent client of a guest.
        :param requeue: adds a key to the queue.
        """
        self._make_driver = make_driver
        self._log = log
        self._requeue = requeue
        self._open: dict[str, GuestSession] = {}
        STORES.watch("guest-sessions", self, lambda sessions: len(sessions._open))

    def open(self, uid: str, key: Key, pod_uid: str) -> GuestSession:
        """Return the session of a VMI; a new session starts by polling the guest's agent.

        :param uid: of the VMI.
        :param key: namespace and name of the VMI.
        :param pod_uid: of the pod that runs the guest.
        """
        session = self._open.get(uid)
        if session is None:
            guest, agent = self._make_driver(uid, key, pod_uid)
            session = self._open[uid] = GuestSession(
                key, guest, agent, self._requeue, self._log.bind(vmi="/".join(key))
            )
            session.agent.poll(DELAYS_AFTER_PLUG)
        return session

    def has(self, key: Key) -> bool:
        """Return whether a VMI of this name has a session."""
        return any(session.key == key for session in self._open.values())

    async def retain(self, uids: Iterable[str]) -> None:
        """Close every session but those of the given VMIs."""
        gone = self._open.keys() - set(uids)
        # In parallel: closing may take until the deadline of a monitor that does not respond.
        await asyncio.gather(*(self._open.pop(uid).close() for uid in gone))

    async def close(self) -> None:
        """Close all sessions."""
        await self.retain(())
