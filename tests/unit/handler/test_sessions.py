"""How a guest session handles the events of a guest, which is scripted."""

import asyncio

import msgspec
import pytest
import structlog
from opentelemetry.context import Context

from services.common.flowcontrol.pacer import BURST, INTERVAL
from services.common.guest.agent import AgentUnavailable, GuestNic
from services.common.guest.port import GuestChange, GuestEvent
from services.common.reconcile import Source
from services.handler.addresses.service import AddressServers
from services.handler.agent_poller import DELAYS_AFTER_LEASE, MAX_UNANSWERED
from services.handler.sessions import GuestSession, Key, PluggedDevice, UnplugRecord
from services.handler.unplug import IllegalTransition, UnplugEvent, UnplugState
from tests.support.guest.events import ScriptedGuest

KEY = ("default", "vm1")


class SilentAgent:
    """An agent that never responds, and counts the queries."""

    def __init__(self) -> None:
        self.queries = 0

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        self.queries += 1
        raise AgentUnavailable("no response")

    async def close(self) -> None:
        return


class WatchedSession:
    """A session that watches its guest's events, and the requeues that it makes."""

    def __init__(self) -> None:
        self.guest, self.agent = ScriptedGuest(), SilentAgent()
        self.requeues: asyncio.Queue[Context | None] = asyncio.Queue()
        self.session = GuestSession(KEY, self.guest, self.agent, self._requeue, structlog.get_logger())
        self.session.watch_events()

    def _requeue(self, key: Key, context: Context | None, _source: Source) -> None:
        assert key == KEY
        self.requeues.put_nowait(context)


def requested(session: GuestSession, *times: float) -> UnplugRecord:
    """Return the record of an unplug that was requested at these times."""
    session.open_unplug("blue", in_domain=True, released=False)
    record = session.unplugs["blue"]
    for now in times:
        record.advance(UnplugEvent.REQUEST_DUE)
        record.record_request(now, restart=False)
        record.record_response(now, "")
    return record


async def test_a_refused_unplug_is_recorded_and_requeues_the_key() -> None:
    watched = WatchedSession()
    record = requested(watched.session, 0.0)
    record.context = Context()
    watched.guest.event_queue.put_nowait(GuestEvent(GuestChange.UNPLUG_REFUSED, "ua-blue"))
    assert await watched.requeues.get() is record.context
    assert record.unplug.requests is not None
    assert record.unplug.requests.refused
    assert record.unplug.state is UnplugState.PENDING, "only a run changes the state"
    await watched.session.close()


async def test_guest_activity_advances_the_next_request_and_requeues_the_key() -> None:
    watched = WatchedSession()
    now = asyncio.get_running_loop().time()
    for change in (GuestChange.AGENT_CONNECTED, GuestChange.DEVICE_IN_USE):
        watched.session.unplugs.clear()
        record = requested(watched.session, now - 60, now - 59, now - 57, now - 53, now - 30)
        watched.guest.event_queue.put_nowait(GuestEvent(change))
        before = record.unplug.requests
        assert before is not None
        assert before.next_at > now - 20
        record._set(msgspec.structs.replace(before, next_at=now + 30))
        await watched.requeues.get()
        after = record.unplug.requests
        assert after is not None
        assert after.next_at <= asyncio.get_running_loop().time()
    await watched.session.close()


async def test_an_illegal_transition_raises_and_leaves_the_state() -> None:
    watched = WatchedSession()
    record = requested(watched.session, 0.0)
    before = record.unplug
    with pytest.raises(IllegalTransition, match="event pod-network-absent in state pending"):
        record.advance(UnplugEvent.POD_NETWORK_ABSENT)
    assert record.unplug is before
    await watched.session.close()


async def test_the_state_of_an_unplug_is_derived_unless_it_is_under_way() -> None:
    watched = WatchedSession()
    session = watched.session
    session.open_unplug("blue", in_domain=True, released=False)
    record = session.unplugs["blue"]
    session.open_unplug("blue", in_domain=False, released=False)
    assert session.unplugs["blue"] is record
    # The release of an earlier unplug under the same name does not count.
    record.advance(UnplugEvent.RELEASE_RECORDED)
    session.open_unplug("blue", in_domain=False, released=False)
    assert session.unplugs["blue"].unplug.state is UnplugState.DEVICE_GONE
    session.retain_unplugs({"red"})
    assert session.unplugs == {}
    await session.close()


async def test_a_request_to_a_device_that_is_back_is_the_first_one_again() -> None:
    watched = WatchedSession()
    record = requested(watched.session, 0.0, 1.0)
    record.deleted_at = 5
    record.record_request(50.0, restart=True)
    assert record.unplug.requests is not None
    assert (record.unplug.requests.count, record.unplug.requests.first_at, record.deleted_at) == (1, 50.0, 0)
    await watched.session.close()


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("change", "queries"), [(GuestChange.AGENT_CONNECTED, 1 + MAX_UNANSWERED), (GuestChange.DEVICE_IN_USE, 1)]
)
async def test_only_a_connected_agent_is_polled_slowly(change: GuestChange, queries: int) -> None:
    watched = WatchedSession()
    watched.session.agent.expect({"02:00:00:00:00:01"})
    watched.guest.event_queue.put_nowait(GuestEvent(change))
    await asyncio.sleep(600)
    assert watched.agent.queries == queries
    await watched.session.close()


async def test_the_end_of_the_connection_requeues_the_key() -> None:
    watched = WatchedSession()
    watched.guest.event_queue.put_nowait(None)
    assert await watched.requeues.get() is None
    await watched.session.close()


async def test_an_unconfirmed_device_without_an_agent_requeues_the_key() -> None:
    watched = WatchedSession()
    watched.session.plugged_devices["blue"] = PluggedDevice(Context())
    assert watched.session.unconfirmed() == {"blue"}
    watched.session.agent.poll()
    await watched.requeues.get()
    watched.session.plugged_devices["blue"].driver_reported = True
    assert watched.session.unconfirmed() == frozenset()
    await watched.session.close()
    assert (watched.agent.queries, watched.requeues.qsize()) == (1, 0)


@pytest.mark.looptime
async def test_a_guest_that_asks_and_declines_all_the_time_causes_a_bounded_number_of_queries_and_runs() -> None:
    watched = WatchedSession()
    for _ in range(600):
        watched.guest.event_queue.put_nowait(GuestEvent(GuestChange.AGENT_CONNECTED))
        # What the address servers call, which have no socket here.
        watched.session.addresses._on_dhcp_reply()
        watched.session.addresses._requeue()
        await asyncio.sleep(0.1)
    allowed = BURST + 1 + 60 / INTERVAL
    assert watched.requeues.qsize() <= allowed
    assert watched.agent.queries <= 2 * allowed * len(DELAYS_AFTER_LEASE)
    await watched.session.close()


def test_an_interface_that_is_not_served_any_more_has_not_declined() -> None:
    servers = AddressServers(lambda: None, lambda: None, structlog.get_logger())
    servers.declined.add("blue")
    servers.stop("blue")
    assert not servers.declined


@pytest.mark.looptime
@pytest.mark.parametrize("change", [GuestChange.AGENT_CONNECTED, GuestChange.DEVICE_IN_USE])
async def test_an_event_that_a_guest_repeats_causes_a_bounded_number_of_queries(change: GuestChange) -> None:
    watched = WatchedSession()
    for _ in range(600):
        watched.guest.event_queue.put_nowait(GuestEvent(change))
        await asyncio.sleep(0.1)
    assert watched.agent.queries <= BURST + 1 + 60 / INTERVAL
    await watched.session.close()
