"""Fixtures: a real nats-server for the bus."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.bus.nats import NatsServer, nats_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A running server with its own storage."""
    async with nats_server(tmp_path / "nats") as running:
        yield running
