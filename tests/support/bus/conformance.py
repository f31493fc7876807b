"""The conformance suite of a bus: subclass :class:`BusConformance` and define the fixture ``harness``."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import pytest
from opentelemetry.trace import SpanKind

from schemas.bus.encoding import node_consumer, node_filter, stage_filter
from schemas.bus.events import (
    MAX_EVENT_BYTES,
    Event,
    Failed,
    GuestAttached,
    MultusAttached,
    ObjectRef,
    PodAnnotated,
    Requested,
)
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage
from services.common.bus.envelope import (
    DEAD_CONSUMER,
    DEAD_REASON,
    DEAD_SUBJECT,
    MSG_ID,
    BusMessage,
    encode_message,
)
from services.common.bus.protocol import BucketState, Bus, ReceivedEvent, WrongRevision
from services.common.telemetry import Telemetry
from services.common.telemetry.propagation import span_context
from tests.support.telemetry.spans import named, recording_telemetry, tree

NODE = "node-1.example"
CONSUMER = node_consumer("networks", NODE)
FILTERS = (node_filter(NODE),)


class Harness(Protocol):
    """Access of the suite to the server behind a bus."""

    async def bus(self, role: str, node: str, telemetry: Telemetry | None = None) -> Bus:
        """Return a connected bus of one process; all buses of a harness use one server."""
        ...

    async def wait_consumer(self, consumer: str) -> None:
        """Wait until the server has the consumer."""
        ...

    async def publish_raw(self, message: BusMessage) -> None:
        """Publish a message unchecked."""
        ...

    async def dead_letters(self, count: int) -> Sequence[BusMessage]:
        """Return the dead letters as soon as there are ``count`` of them."""
        ...


class Inbox:
    """A handler that stores the events it gets."""

    def __init__(self) -> None:
        self.received: list[ReceivedEvent] = []
        self._arrived = asyncio.Event()

    def __call__(self, received: ReceivedEvent) -> None:
        self.received.append(received)
        self._arrived.set()

    async def wait(self, count: int) -> list[Event]:
        """Return all events as soon as there are ``count`` of them."""
        return await self.wait_until(lambda events: len(events) >= count)

    async def wait_until(self, complete: Callable[[list[Event]], bool]) -> list[Event]:
        """Return all events as soon as they are complete; an event whose ack was lost comes twice."""
        async with asyncio.timeout(60):
            while not complete(self.events):
                self._arrived.clear()
                await self._arrived.wait()
        return self.events

    @property
    def events(self) -> list[Event]:
        """All events so far."""
        return [received.event for received in self.received]


@contextlib.asynccontextmanager
async def consuming(
    harness: Harness, bus: Bus, handler: "Inbox", *, consumer: str = CONSUMER, filters: Sequence[str] = FILTERS
) -> AsyncIterator[None]:
    """Consume during the block; the block starts when the consumer exists."""
    task = asyncio.create_task(bus.consume(consumer=consumer, filters=filters, handler=handler))
    try:
        async with asyncio.timeout(60):
            await harness.wait_consumer(consumer)
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def operation(number: int = 1, kind: OperationKind = OperationKind.PLUG) -> Operation:
    """Return an operation with an id of its own."""
    return Operation(f"operation-{number}", kind, "iface1", None, "2026-11-23T10:00:00Z")


def annotated(number: int = 1, *, node: str = NODE, vmi: str = "vm-1", attempt: int = 1) -> PodAnnotated:
    """Return an event that the controller publishes for a node."""
    return PodAnnotated(
        operation=operation(number),
        vmi=ObjectRef("default", vmi, "uid-1"),
        pod=ObjectRef("default", "virt-launcher-vm-1-abcde", "pod-uid"),
        node=node,
        attempt=attempt,
        pod_interface="pod7e0055a6880",
    )


class BusConformance:
    """The tests that every bus must pass."""

    async def test_event_reaches_the_handler_unchanged(self, harness: Harness) -> None:
        inbox, bus = Inbox(), await harness.bus("controller", "_")
        async with consuming(harness, await harness.bus("networks", NODE), inbox):
            await bus.publish(annotated())
            assert await inbox.wait(1) == [annotated()]
        assert inbox.received[0].subject == annotated().subject
        assert not inbox.received[0].redelivered
        assert bus.connected

    async def test_consumer_gets_the_events_that_match_its_filters(self, harness: Harness) -> None:
        bus = await harness.bus("controller", "_")
        ours, stages, both = Inbox(), Inbox(), Inbox()
        failed = Failed(operation=operation(), vmi=ObjectRef("a", "b", "c"), node="other", reason="Boom")
        two = (stage_filter(Stage.FAILED), node_filter(NODE))
        async with (
            consuming(harness, bus, ours),
            consuming(harness, bus, stages, consumer="stages", filters=[stage_filter(Stage.FAILED)]),
            consuming(harness, bus, both, consumer="both", filters=two),
        ):
            for event in (annotated(1, node="other"), failed, annotated(2)):
                await bus.publish(event)
            assert await ours.wait(1) == [annotated(2)]
            assert await stages.wait(1) == [failed]
            assert await both.wait(2) == [failed, annotated(2)]

    async def test_new_consumer_gets_new_events_only(self, harness: Harness) -> None:
        inbox, bus = Inbox(), await harness.bus("controller", "_")
        await bus.publish(annotated(1))
        async with consuming(harness, bus, inbox):
            await bus.publish(annotated(2))
            assert await inbox.wait(1) == [annotated(2)]

    async def test_resumed_consumer_gets_the_events_published_meanwhile(self, harness: Harness) -> None:
        inbox, bus = Inbox(), await harness.bus("controller", "_")
        async with consuming(harness, bus, inbox):
            await bus.publish(annotated(1))
            await inbox.wait(1)
        await bus.publish(annotated(2))
        async with consuming(harness, bus, inbox):
            assert await inbox.wait(2) == [annotated(1), annotated(2)]

    async def test_events_of_one_publisher_arrive_in_order(self, harness: Harness) -> None:
        inbox, bus = Inbox(), await harness.bus("controller", "_")
        events = [annotated(number) for number in range(300)]
        async with consuming(harness, bus, inbox):
            for event in events:
                await bus.publish(event)
            assert await inbox.wait(300) == events

    async def test_repeated_publish_is_delivered_once(self, harness: Harness) -> None:
        inbox, bus = Inbox(), await harness.bus("controller", "_")
        async with consuming(harness, bus, inbox):
            await bus.publish(annotated(1))
            await bus.publish(annotated(1))
            await bus.publish(annotated(1, attempt=2))
            assert await inbox.wait(2) == [annotated(1), annotated(1, attempt=2)]

    @pytest.mark.parametrize("name", ["a.b.c", "50%", "-x", "*", ">", "ü 日本", "$JS.API"])
    async def test_arbitrary_names_are_delivered(self, harness: Harness, name: str) -> None:
        inbox, bus = Inbox(), await harness.bus("controller", "_")
        filters, consumer = [node_filter(name)], node_consumer("networks", name)
        async with consuming(harness, bus, inbox, consumer=consumer, filters=filters):
            await bus.publish(annotated(vmi=name, node=name))
            assert await inbox.wait(1) == [annotated(vmi=name, node=name)]

    async def test_publisher_and_handler_share_one_trace(self, harness: Harness) -> None:
        telemetry, exporter = recording_telemetry()
        bus = await harness.bus("controller", "_", telemetry)
        inbox = Inbox()
        async with consuming(harness, bus, inbox):
            with telemetry.tracer.start_as_current_span("patch"):
                await bus.publish(annotated())
            await inbox.wait(1)
            await asyncio.sleep(0)
        spans = exporter.get_finished_spans()
        assert tree(spans) == [("patch", [("send hotplug.pod-annotated", [("process hotplug.pod-annotated", [])])])]
        sent, processed = named(spans, "send hotplug.pod-annotated"), named(spans, "process hotplug.pod-annotated")
        assert sent.kind is SpanKind.PRODUCER
        assert processed.kind is SpanKind.CONSUMER
        assert span_context(inbox.received[0].context) == processed.get_span_context()
        for span in (sent, processed):
            assert span.attributes is not None
            assert span.attributes["messaging.system"] == "nats"
            assert span.attributes["messaging.destination.name"] == str(annotated().subject)
            assert span.attributes["messaging.destination.template"] == "hotplug.pod-annotated.{node}.{namespace}.{vmi}"
            assert span.attributes["messaging.message.id"]

    async def test_publish_without_a_span_starts_a_trace(self, harness: Harness) -> None:
        telemetry, exporter = recording_telemetry()
        bus, inbox = await harness.bus("controller", "_", telemetry), Inbox()
        async with consuming(harness, bus, inbox):
            await bus.publish(annotated())
            await inbox.wait(1)
            await asyncio.sleep(0)
        assert tree(exporter.get_finished_spans()) == [
            ("send hotplug.pod-annotated", [("process hotplug.pod-annotated", [])])
        ]

    async def test_unusable_messages_are_dead_lettered(self, harness: Harness) -> None:
        inbox, bus = Inbox(), await harness.bus("controller", "_")
        good = encode_message(annotated(), role="controller", node="_", start_id="test")
        subject, headers = good.subject, {k: v for k, v in good.headers.items() if k != MSG_ID}
        bad = {
            "Undecodable": BusMessage(subject, b"{", headers),
            "Oversized": BusMessage(subject, b" " * (MAX_EVENT_BYTES + 1), headers),
            "BadHeaders": BusMessage(subject, good.payload, {}),
            "SubjectMismatch": BusMessage(subject.replace("vm-1", "vm-2"), good.payload, headers),
            "BadSubject": BusMessage(subject + ".more", good.payload, headers),
            "ForbiddenPublisher": BusMessage(
                subject, good.payload, {**headers, "ce-source": "/hotnic/networks/node-1"}
            ),
        }
        async with consuming(harness, bus, inbox):
            for message in bad.values():
                await harness.publish_raw(message)
            await bus.publish(annotated(2))
            assert await inbox.wait(1) == [annotated(2)]
            letters = {
                dead_letter.headers[DEAD_REASON]: dead_letter for dead_letter in await harness.dead_letters(len(bad))
            }
        assert letters.keys() == bad.keys()
        for reason, message in bad.items():
            assert letters[reason].payload == message.payload[: MAX_EVENT_BYTES + 1]
            assert letters[reason].headers[DEAD_SUBJECT] == message.subject
            assert letters[reason].headers[DEAD_CONSUMER] == CONSUMER
            assert letters[reason].subject == message.subject.replace("hotplug.", "hotplug-dead.", 1)

    async def test_message_of_a_failing_handler_is_dead_lettered(self, harness: Harness) -> None:
        telemetry, exporter = recording_telemetry()
        inbox, bus = Inbox(), await harness.bus("controller", "_", telemetry)

        class Failing(Inbox):
            def __call__(self, received: ReceivedEvent) -> None:
                if received.event.operation.id == "operation-1":
                    raise LookupError("a bug")
                inbox(received)

        async with consuming(harness, bus, Failing()):
            await bus.publish(annotated(1))
            await bus.publish(annotated(2))
            assert await inbox.wait(1) == [annotated(2)]
            (dead_letter,) = await harness.dead_letters(1)
        assert dead_letter.headers[DEAD_REASON] == "HandlerFailed"
        failed = [span for span in exporter.get_finished_spans() if not span.status.is_ok]
        assert [span.name for span in failed] == ["process hotplug.pod-annotated"]
        assert b'hotnic_dead_letters_total{reason="HandlerFailed"} 1.0' in telemetry.metrics_text()

    async def test_role_may_only_publish_its_own_stages(self, harness: Harness) -> None:
        bus = await harness.bus("handler", NODE)
        with pytest.raises(ValueError, match="handler may not publish pod-annotated"):
            await bus.publish(annotated())

    async def test_published_events_are_measured(self, harness: Harness) -> None:
        telemetry, _ = recording_telemetry()
        bus = await harness.bus("handler", NODE, telemetry)
        await bus.publish(GuestAttached(operation=operation(), node=NODE))
        await bus.publish(Failed(operation=operation(), node=NODE, at=Stage.GUEST_ATTACHED, reason="NoFreeSlot"))
        text = telemetry.metrics_text().decode()
        assert 'hotnic_stage_seconds_count{kind="plug",stage="guest-attached"} 1.0' in text
        assert 'hotnic_failures_total{reason="NoFreeSlot",stage="guest-attached"} 1.0' in text

    async def test_all_consumers_get_the_same_events(self, harness: Harness) -> None:
        api, networks = await harness.bus("api", "_"), await harness.bus("networks", NODE)
        controller = await harness.bus("controller", "_")
        one, two = Inbox(), Inbox()
        requested = Requested(
            operation=operation(), vmi=ObjectRef("default", "vm", "u"), node=NODE, network="default/br"
        )
        done = MultusAttached(operation=operation(), node=NODE, pod_interface="net1", ips=("10.0.0.1",))
        async with (
            consuming(harness, controller, one, consumer="controller_1", filters=["hotplug.>"]),
            consuming(harness, networks, two),
        ):
            await api.publish(requested)
            await one.wait(1)
            await networks.publish(done)
            assert await one.wait(2) == [requested, done]
            assert await two.wait(2) == [requested, done]

    async def test_bucket_stores_values_and_revisions(self, harness: Harness) -> None:
        bucket = (await harness.bus("controller", "_")).kv("operations")
        assert await bucket.get("a.b") is None
        first = await bucket.create("a.b", b"1")
        with pytest.raises(WrongRevision):
            await bucket.create("a.b", b"again")
        second = await bucket.update("a.b", b"2", first)
        with pytest.raises(WrongRevision):
            await bucket.update("a.b", b"3", first)
        found = await bucket.get("a.b")
        assert found is not None
        assert (found.key, found.value, found.revision) == ("a.b", b"2", second)
        await bucket.delete("a.b")
        await bucket.delete("a.b")
        assert await bucket.get("a.b") is None
        await bucket.create("a.b", b"anew")
        await bucket.put("a.=2Ec", b"put")
        found = await bucket.get("a.=2Ec")
        assert found is not None
        assert found.value == b"put"
        assert await bucket.state() == BucketState(found.revision, 2)

    async def test_watch_starts_with_the_current_entries(self, harness: Harness) -> None:
        bucket = (await harness.bus("controller", "_")).kv("watched")
        await bucket.put("ns.one", b"1")
        await bucket.put("other.two", b"2")
        watch = bucket.watch("ns.>")
        seen: list[tuple[str, bytes | None] | None] = []
        async with asyncio.timeout(60):
            async for entry in watch:
                seen.append(None if entry is None else (entry.key, entry.value))
                if entry is None:
                    await bucket.put("ns.three", b"3")
                    await bucket.delete("ns.one")
                if len(seen) == 4:
                    break
        await watch.aclose()
        assert seen == [("ns.one", b"1"), None, ("ns.three", b"3"), ("ns.one", None)]

    async def test_purged_key_leaves_no_marker(self, harness: Harness) -> None:
        bucket = (await harness.bus("controller", "_")).kv("purging")
        for key in ("ns.one", "ns.two"):
            await bucket.put(key, b"1")
        await bucket.delete("ns.one")
        await bucket.purge("ns.one")
        watch = bucket.watch()
        seen = [await anext(watch), await anext(watch)]
        await watch.aclose()
        assert [entry.key if entry is not None else None for entry in seen] == ["ns.two", None]
        await bucket.create("ns.one", b"anew")
