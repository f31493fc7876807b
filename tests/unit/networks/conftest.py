"""Every test gets a node of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.node.networks_node import Node, running_node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with the networks role running on it."""
    async with running_node(tmp_path) as running:
        yield running
