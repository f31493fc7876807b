"""A multus daemon and a pod's network namespace for each set of plugins, and the node's links that plugins need."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.interop.reference_plugins import SETS, PluginSet, node_links
from tests.support.leftovers import adopt_orphans, nothing_left_behind
from tests.support.node import netns as namespaces
from tests.support.node.multus_daemon import Daemon, running_daemon

adopt_orphans()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a link, network namespace, mount or process."""
    with nothing_left_behind():
        yield


@pytest.fixture(params=SETS, ids=str)
def plugin_set(request: pytest.FixtureRequest) -> PluginSet:
    """Each set of plugins, where a test does not choose one itself."""
    chosen: PluginSet = request.param
    return chosen


@pytest.fixture
def node(nothing_left: None) -> Iterator[None]:
    """The node's links that plugins need."""
    with node_links():
        yield


@pytest.fixture
def sandbox_netns(tmp_path: Path, node: None) -> Iterator[Path]:
    """The pod's network namespace."""
    with namespaces.pod_namespace(tmp_path) as path:
        yield path


@pytest.fixture
async def daemon(tmp_path: Path, plugin_set: PluginSet, sandbox_netns: Path) -> AsyncIterator[Daemon]:
    """A daemon with the plugins of a set; a plugin may take 45 s, as any wait in the tests."""
    async with running_daemon(tmp_path, plugin_set.link(tmp_path / "bin"), timeout=45.0) as running:
        yield running
