"""What waits for the bus, and where the bus is."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.common.bus.connection import Endpoint
from services.common.bus.envelope import BusMessage
from services.common.bus.outbox import Outbox
from services.common.bus.settings import BusSettings
from services.common.bus.streams import wanted

LIMIT = 4


class OutboxMachine(RuleBasedStateMachine):
    """An outbox against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(LIMIT)
        self.model: list[BusMessage] = []
        self.count = 0
        self.gone: BusMessage | None = None

    @rule()
    def put(self) -> None:
        self.count += 1
        message = BusMessage(f"s.{self.count}", b"", {})
        dropped = self.outbox.put(message)
        assert dropped is (self.model.pop(0) if len(self.model) == LIMIT else None)
        self.gone = dropped or self.gone
        self.model.append(message)

    @rule(old=st.booleans())
    def done(self, old: bool) -> None:
        if old and self.gone is not None:
            self.outbox.done(self.gone)
        elif self.model:
            self.outbox.done(self.model[0])
            self.gone = self.model.pop(0)

    @invariant()
    def agrees(self) -> None:
        assert len(self.outbox) == len(self.model)


TestOutbox = OutboxMachine.TestCase


async def test_the_head_is_waited_for_and_stays() -> None:
    outbox, message = Outbox(LIMIT), BusMessage("s", b"", {})
    waiting = asyncio.create_task(outbox.head())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.put(message)
    assert await waiting is message
    assert await outbox.head() is message
    drained = asyncio.create_task(outbox.drained())
    await asyncio.sleep(0)
    assert not drained.done()
    outbox.done(message)
    await drained
    assert not outbox


def test_an_endpoint_reads_what_nats_own_tools_read() -> None:
    environ = {"NATS_CREDS": "/c", "NATS_CA": "/ca", "NATS_CERT": "/crt", "NATS_KEY": "/key"}
    assert Endpoint.of("nats://a:4222, tls://b:4222,", environ) == Endpoint(
        ("nats://a:4222", "tls://b:4222"), "/c", "/ca", "/crt", "/key"
    )
    assert Endpoint.of("nats://a", {}).tls() is None


def test_a_missing_certificate_is_told_by_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r".+"):
        Endpoint(("tls://a",), ca=str(tmp_path / "none")).tls()


def test_streams_have_every_limit() -> None:
    events, dead = wanted(BusSettings())
    assert (events.name, events.subjects) == ("HOTPLUG", ["hotplug.>"])
    assert (events.max_age, events.duplicate_window) == (86_400, 120)
    assert events.max_consumers is not None
    assert events.max_consumers > 1000
    assert (dead.name, dead.subjects) == ("HOTPLUG_DEAD", ["hotplug-dead.>"])
    for stream in (events, dead):
        assert stream.max_bytes
        assert stream.max_age
