"""Conformance of the bus on a real nats-server."""

from collections.abc import AsyncIterator

import pytest

from tests.support.bus.conformance import BusConformance
from tests.support.bus.jetstream import JetStreamHarness, jetstream
from tests.support.bus.nats import NatsServer


class TestJetStreamBus(BusConformance):
    @pytest.fixture
    async def harness(self, server: NatsServer) -> AsyncIterator[JetStreamHarness]:
        async with jetstream(server) as harness:
            yield harness
