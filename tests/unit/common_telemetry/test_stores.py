"""What can grow has a limit, and its size and limit are metrics."""

import asyncio
import gc
from typing import Any, cast

import pytest

from schemas.bus.events import ObjectRef, Requested
from schemas.kubernetes.objects import ObjectMeta, Pod
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind
from services.common.bus.envelope import BusMessage
from services.common.bus.nats.outbox import Outbox
from services.common.guest.pending_events import MAX_PENDING_EVENTS, PendingEvents
from services.common.http.deadlines import MAX_WAITING, Connections, TimedConnection
from services.common.kube.event_recorder import EventRecorder
from services.common.runtime.recording_bus import MAX_PENDING, RecordingBus
from services.common.telemetry.stores import STORES, Bounded, Stores, StoreSize
from services.multus.pod.events import MAX_WRITING, PodEvents
from tests.support.telemetry.spans import recording_telemetry


def test_a_bounded_dictionary_drops_what_was_set_the_longest_time_ago() -> None:
    bounded: Bounded[str, int] = Bounded("a", 3)
    for number, key in enumerate("abcad"):
        bounded[key] = number
    assert (len(bounded), [key for key in "abcd" if key in bounded]) == (3, ["a", "c", "d"])
    assert (bounded.pop("a"), bounded.pop("a"), bounded.get("b"), bounded["d"]) == (3, None, None, 4)


def test_the_size_is_that_of_the_fullest_store_with_a_limit_and_the_sum_of_others() -> None:
    stores, lists = Stores(), [type("Owner", (list,), {})(range(size)) for size in (1, 3, 2)]
    for owner in lists:
        stores.watch("limited", owner, len, 5)
        stores.watch("objects", owner, len)
    assert stores.sizes() == {"limited": StoreSize(3, 5), "objects": StoreSize(6, None)}
    del lists[1], owner
    gc.collect()
    assert stores.sizes() == {"limited": StoreSize(2, 5), "objects": StoreSize(3, None)}


async def fill_outbox() -> object:
    outbox = Outbox(7)
    for _ in range(20):
        outbox.put(BusMessage("s", b"", {}))
    return outbox


async def fill_guest_events() -> object:
    pending: PendingEvents[int] = PendingEvents()
    for number in range(2 * MAX_PENDING_EVENTS):
        pending.put(number)
    return pending


class SlowRecorder:
    """A recorder whose API server does not answer."""

    async def record(self, **_fields: Any) -> None:
        await asyncio.Event().wait()


async def fill_events_to_write() -> object:
    events = PodEvents(cast("EventRecorder", SlowRecorder()))
    pod = Pod(metadata=ObjectMeta(name="p", namespace="n", uid="u"))
    for number in range(MAX_WRITING + 10):
        events.record_no_network(pod, "sandbox", str(number))
    return events


class NoBus:
    """A bus that loses everything."""

    async def publish(self, _event: object) -> None:
        pass


async def fill_events_to_record() -> object:
    bus = RecordingBus(cast("Any", NoBus()), cast("EventRecorder", SlowRecorder()))
    event = Requested(Operation("op", OperationKind.PLUG, "blue"), ObjectRef("n", "vm", "u"))
    for _ in range(MAX_PENDING + 10):
        await bus.publish(event)
    return bus


class OpenTransport(asyncio.Transport):
    """A transport whose end the test does not wait for."""

    def abort(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class VerifiedPeer:
    """The TLS of a client with a certificate."""

    session_reused = False

    def getpeercert(self) -> dict[str, str]:
        return {"serialNumber": "1"}


async def fill_idle_connections(tls: object = None) -> object:
    """Connections that have had an answer and send nothing more."""
    connections = Connections(asyncio.Protocol)
    for _ in range(MAX_WAITING + 10):
        connection = connections()
        assert isinstance(connection, TimedConnection)
        connection.connection_made(OpenTransport({"ssl_object": tls}))
        connection.begin_request()
        connection.end_request()
    return connections


FILLED = {
    "bus-outbox": (fill_outbox, 7),
    "guest-events": (fill_guest_events, MAX_PENDING_EVENTS),
    "events-to-write": (fill_events_to_write, MAX_WRITING),
    "events-to-record": (fill_events_to_record, MAX_PENDING),
    "idle-connections": (fill_idle_connections, MAX_WAITING),
    "idle-verified-connections": (lambda: fill_idle_connections(VerifiedPeer()), MAX_WAITING),
}


@pytest.mark.parametrize("store", FILLED)
async def test_a_full_store_does_not_grow_and_is_a_metric(store: str) -> None:
    fill, limit = FILLED[store]
    owner = await fill()
    try:
        assert STORES.sizes()[store] == StoreSize(limit, limit)
        text = recording_telemetry()[0].metrics_text().decode()
        assert f'hotnic_store_entries{{store="{store}"}} {limit}.0' in text
        assert f'hotnic_store_limit{{store="{store}"}} {limit}.0' in text
    finally:
        del owner
        own = asyncio.current_task()
        for task in asyncio.all_tasks() - {own}:
            task.cancel()


async def test_the_reader_of_a_full_queue_gets_what_fitted_and_then_the_end() -> None:
    pending = await fill_guest_events()
    assert isinstance(pending, PendingEvents)
    assert [event async for event in pending.read()] == [*range(MAX_PENDING_EVENTS)]


async def test_a_connection_that_ends_before_its_request_is_forgotten() -> None:
    connections = Connections(asyncio.Protocol)
    connection = connections()
    assert isinstance(connection, TimedConnection)
    connection.connection_made(OpenTransport())
    connection.begin_request()
    connection.connection_lost(None)
    connection.end_request()
    assert not connections._waiting
