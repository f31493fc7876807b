"""Conformance of the bus in memory, alone and behind the faulty bus without faults; and the faults themselves."""

from collections.abc import Sequence

import pytest

from services.common.bus.envelope import BusMessage
from services.common.bus.protocol import Bus, BusUnavailable
from services.common.telemetry import Telemetry
from tests.support.bus.conformance import BusConformance, Harness, Inbox, annotated, consuming
from tests.support.bus.faulty import Faults, FaultyBus
from tests.support.bus.memory import Broker, MemoryBus, matches


class MemoryHarness:
    """A broker in memory and the buses on it."""

    def __init__(self, *, faulty: bool = False) -> None:
        self.broker = Broker()
        self._faulty = faulty

    async def bus(self, role: str, node: str, telemetry: Telemetry | None = None) -> Bus:
        bus = MemoryBus(self.broker, role=role, node=node, telemetry=telemetry)
        return FaultyBus(bus) if self._faulty else bus

    async def wait_consumer(self, consumer: str) -> None:
        await self.broker.until(lambda: consumer in self.broker.consumers)

    async def publish_raw(self, message: BusMessage) -> None:
        self.broker.accept(message)

    async def dead_letters(self, count: int) -> Sequence[BusMessage]:
        await self.broker.until(lambda: len(self.broker.dead) >= count)
        return self.broker.dead


class TestMemoryBus(BusConformance):
    @pytest.fixture
    def harness(self) -> Harness:
        return MemoryHarness()


class TestFaultyBusWithoutFaults(BusConformance):
    @pytest.fixture
    def harness(self) -> Harness:
        return MemoryHarness(faulty=True)


async def test_faulty_bus_drops_and_duplicates_events_only() -> None:
    harness, inbox = MemoryHarness(), Inbox()
    publisher = await harness.bus("controller", "_")
    faulty = FaultyBus(publisher, Faults(drop=0.3, duplicate=0.3, reorder=0.3), seed=7)
    async with consuming(harness, faulty, inbox):
        for number in range(200):
            await publisher.publish(annotated(number))
        consumer = next(iter(harness.broker.consumers.values()))
        await harness.broker.until(lambda: not consumer.waiting)
    await faulty.close()
    ids = [event.operation.id for event in inbox.events]
    assert faulty.dropped
    assert faulty.duplicated
    assert len(ids) == 200 - faulty.dropped + faulty.duplicated
    assert set(ids) <= {f"operation-{number}" for number in range(200)}
    assert ids != sorted(ids, key=lambda text: int(text.split("-")[1]))


async def test_events_are_delivered_after_the_broker_restarts() -> None:
    harness, inbox = MemoryHarness(), Inbox()
    bus = await harness.bus("controller", "_")
    async with consuming(harness, bus, inbox):
        harness.broker.stop()
        assert not bus.connected
        await bus.publish(annotated(1))
        with pytest.raises(BusUnavailable):
            await bus.kv("operations").get("a")
        assert inbox.events == []
        harness.broker.start()
        assert await inbox.wait(1) == [annotated(1)]


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.b.d", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.b", "a.b.c", False),
        ("a.b.c", "a.b", False),
    ],
)
def test_subject_matching_follows_nats(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected
