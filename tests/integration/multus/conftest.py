"""Fixtures: a daemon with the real bridge plugins, a recording plugin, and a pod's network namespace."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.node import netns as namespaces
from tests.support.node.cgroups import cgroup_below_own
from tests.support.node.cni import RecordingPlugin, real_plugins
from tests.support.node.multus_daemon import Daemon, running_daemon

HOST = Path("/proc/self/ns/net")


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A plugin directory with the real bridge, host-local and tuning."""
    return real_plugins(tmp_path / "bin", "bridge", "host-local", "tuning")


@pytest.fixture
def recording(plugins: Path) -> RecordingPlugin:
    """A recording plugin beside the real ones."""
    return RecordingPlugin(plugins)


@pytest.fixture
def sandbox_netns(tmp_path: Path, host_bridges: None) -> Iterator[Path]:
    """The pod's network namespace."""
    with namespaces.pod_namespace(tmp_path) as path:
        yield path


@pytest.fixture
def host_bridges() -> Iterator[None]:
    """Delete the bridges of the tests: the bridge plugin creates its bridge at the first ADD and never deletes it."""
    yield
    for name in namespaces.links(HOST).keys() & {"br-blue", "br-green", "br-pods"}:
        namespaces.ip(HOST, "link", "del", name)


@pytest.fixture
async def daemon(tmp_path: Path, plugins: Path) -> AsyncIterator[Daemon]:
    """A daemon whose primary network is the real bridge plugin, on bridge ``br-pods``."""
    async with running_daemon(tmp_path, plugins) as running:
        ipam = {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": str(tmp_path / "leases")}
        primary = {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [{"type": "bridge", "bridge": "br-pods", "isGateway": True, "ipam": ipam}],
        }
        (running.config.conf_dir / "10-primary.conflist").write_text(json.dumps(primary))
        yield running


@pytest.fixture
def parent() -> Iterator[Path]:
    """A cgroup below the test's own, which is empty and removed afterwards."""
    with cgroup_below_own() as folder:
        yield folder
