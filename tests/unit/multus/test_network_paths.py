"""The directories of the node that a network names: none of hotnic's, of CNI's and of the system's."""

import re
from pathlib import Path
from typing import Any

import pytest

from services.multus.config.node_paths import MAX_PATHS, NodePaths
from services.multus.config.settings import Settings, read_config


def node(root: Path, *data_dirs: str, **settings: str) -> NodePaths:
    """Return the rule of a daemon with default settings whose node is below ``root``."""
    (root / "run").mkdir(exist_ok=True)
    (root / "var").mkdir(exist_ok=True)
    for link, target in (("var/run", "/run"), ("bin", "usr/bin"), ("data", "var/data")):
        if not (root / link).is_symlink():
            (root / link).symlink_to(target)
    return read_config(Settings(host_root=str(root), network_data_dirs=data_dirs, **settings))[0].node_paths


def refusal(paths: NodePaths, ipam: Any, name: str = "blue", **keys: Any) -> str:
    return paths.find_refused([{"type": "bridge", "ipam": ipam, **keys}], name)


@pytest.mark.parametrize(
    ("data_dir", "name"),
    [
        ("/run/multus", "multus.sock"),
        ("/run/multus/", "blue"),
        ("/run//multus/records", "blue"),
        ("/var/run/multus", "blue"),
        ("/var/lib/cni/../../../run/multus", "blue"),
        ("run/multus", "blue"),
        ("/run", "multus"),
        ("/", "etc"),
        ("/etc/cni/net.d", "01-a.conf"),
        ("/etc/cni", "net.d"),
        ("/etc/cni/multus/net.d", "blue"),
        ("/opt/cni/bin", "hotnic-multus.json"),
        ("/var/lib/cni/multus/sandboxes", "evil.json"),
        ("/var/lib/cni/multus", "sandboxes"),
        ("/var/lib/cni/multus/results", "blue"),
        ("/run/k8s.cni.cncf.io/devinfo/cni", "blue"),
        ("/etc/systemd/system", "blue"),
        ("/bin", "blue"),
        ("/var/lib/kubelet/pods", "blue"),
        ("/var/lib/rancher/k3s/server/manifests", "blue"),
        ("/var/lib/docker", "blue"),
        ("/run/kubevirt", "blue"),
        ("/proc/1/root", "blue"),
    ],
)
@pytest.mark.parametrize("key", ["dataDir", "DATADIR"])
def test_a_foreign_directory_is_refused(tmp_path: Path, data_dir: str, name: str, key: str) -> None:
    found = refusal(node(tmp_path), {"type": "host-local", key: data_dir}, name)
    assert re.match(rf"ipam\.{key} '.+' is not allowed in a network: /[a-z/.8-]+ is none of a network's; leave", found)


@pytest.mark.parametrize(
    "data_dir",
    [
        *("", "/var/lib/cni/networks", "/var/lib/cni", "/run/cni", "/var/run/cni", "/run/my-orchestrator/ipam-state"),
        *("/tmp/leases", "/data/cni", "/mnt/x", "/opt/x", "/home/x", "/srv/x", "/etcetera", "/run/multus-leases"),
        *("/var/lib/hotnic", "/var/tmp/x"),
    ],
)
def test_what_other_networks_name_is_allowed(tmp_path: Path, data_dir: str) -> None:
    for paths in (node(tmp_path), NodePaths(())):
        assert refusal(paths, {"type": "host-local", "dataDir": data_dir}) == ""


def test_a_directory_of_an_inner_plugin_and_a_log_file_are_refused_too(tmp_path: Path) -> None:
    paths = node(tmp_path)
    inner = {"type": "bridge", "name": "multus", "ipam": {"type": "host-local", "dataDir": "/run"}}
    assert "delegate.ipam.dataDir '/run'" in refusal(paths, {}, delegate=inner)
    for key in ("log_file", "logFile", "log-file", "log_file_path", "pluginLogFile", "LogPath"):
        assert f"ipam.{key} '/run/multus/x'" in refusal(paths, [{"type": "whereabouts", key: "/run/multus/x"}])
        assert refusal(paths, [{"type": "whereabouts", key: "/var/log/whereabouts.log"}]) == ""
    # An inner plugin's name leads nowhere that the daemon sees elsewhere.
    found = refusal(paths, {"type": "host-local", "dataDir": "/data", "name": "../../../../../run/multus"})
    assert ": /run/multus is none of a network's" in found
    found = refusal(paths, {"type": "host-local", "dataDir": "/var", "name": "run/multus"})
    assert ": /run/multus is none of a network's" in found
    # Neither a path nor a name.
    assert refusal(paths, {"type": "host-local", "dataDir": 3}, args={"cni": {"name": ["etc"]}}) == ""


def test_the_administrator_lists_directories(tmp_path: Path) -> None:
    paths = node(tmp_path, "/var/lib/cni", "/etc/leases", "/run")
    for allowed in ("/var/lib/cni/networks", "/etc/leases", "/run/x"):
        assert refusal(paths, {"type": "host-local", "dataDir": allowed}) == ""
    for ipam in (
        {"dataDir": "/tmp"},
        {"dataDir": "/etc"},
        {"dataDir": "/etc/leases/../x"},
        {"dataDir": "/run", "name": "../tmp"},
    ):
        assert "the administrator allows /var/lib/cni, /etc/leases, /run" in refusal(paths, ipam)
    # hotnic's own are never allowed.
    assert ": /run/multus is none of a network's" in refusal(paths, {"dataDir": "/run/multus"})


def test_other_directories_of_the_daemon_are_its_own(tmp_path: Path) -> None:
    paths = node(tmp_path, socket_dir="/srv/multus", cni_state_dir="/srv/state")
    below = node(tmp_path, socket_dir=f"{tmp_path}/srv/multus")
    assert ": /srv/multus is none of a network's" in refusal(below, {"dataDir": "/srv/multus"})
    for own in ("/srv/multus", "/srv/state/sandboxes"):
        assert f": {own} is none of a network's" in refusal(paths, {"dataDir": own})
    assert refusal(paths, {"dataDir": "/srv/state"}) == ""


@pytest.mark.parametrize(
    ("data_dirs", "text"),
    [
        ([f"/tmp/{number}" for number in range(MAX_PATHS + 1)], f"a network with more than {MAX_PATHS} paths"),
        (["/loop/x"], "it cannot be looked up on the node"),
    ],
)
def test_what_cannot_be_looked_up_is_refused(tmp_path: Path, data_dirs: list[str], text: str) -> None:
    paths = node(tmp_path)
    (tmp_path / "loop").symlink_to("/loop")
    assert text in refusal(paths, [{"dataDir": one} for one in data_dirs])
