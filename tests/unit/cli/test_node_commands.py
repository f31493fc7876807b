"""``hotnic node``: the shim is installed, and a node is cleaned of what is hotnic's and of nothing else."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.cli.__main__ import main
from services.cli.node.apply import clean
from services.cli.node.observe import NodeDirectories
from services.cli.node.plan import ObservedNode, RecordedLink, RecordedSandbox, plan
from services.common.node.daemon_socket import DaemonKind

OURS, THEIRS = {"type": "hotnic-multus"}, {"type": "multus-shim"}
CONF, SHIM = "etc/cni/net.d/00-multus.conf", "opt/cni/bin/hotnic-multus"


def record(netns: str, *, network: str = "default/blue") -> dict[str, Any]:
    """Return a record of a sandbox with its cluster network and one more."""
    links = [
        {"ifname": "eth0", "network": "pods", "owner": "cluster"},
        {"ifname": "net1", "network": network, "owner": "networks"},
    ]
    return {"sandboxId": "a", "netns": netns, "namespace": "default", "pod": "vm1", "attachments": links}


class FakeNode:
    """A node's file system below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = NodeDirectories(host_root=str(root))
        for path in ("etc/cni/net.d", "opt/cni/bin", "run/netns", "var/lib/cni/multus/sandboxes", "run/multus/records"):
            (root / path).mkdir(parents=True)
        # As on every node; the link leads out of the container that cleans the node.
        (root / "var/run").symlink_to("/run")
        self.put("etc/cni/net.d/10-pods.conflist", json.dumps({"plugins": [{"type": "bridge"}]}))
        self.put("opt/cni/bin/bridge", "")

    def put(self, path: str, content: str) -> None:
        """Write a file."""
        (self.root / path).write_text(content)

    def install(self) -> None:
        """Write what a daemon leaves."""
        self.put(CONF, json.dumps(OURS))
        self.put(SHIM, "#!/bin/sh\n")
        self.put("opt/cni/bin/.hotnic-multus.1-ab.tmp", "")
        self.put("etc/cni/net.d/.00-multus.conf.1-ab.tmp", "")
        self.put("run/netns/cni-1", "")
        self.put("var/lib/cni/multus/sandboxes/alive.json", json.dumps(record("/var/run/netns/cni-1")))
        self.put("run/multus/records/gone.unsettled", json.dumps(record("/var/run/netns/cni-2", network="default/red")))
        self.put("run/multus/multus.sock", "")

    def files(self) -> set[str]:
        """Return every file, and every empty directory."""
        return {
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if not path.is_dir() or not any(path.iterdir())
        }


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path / "host")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOTNIC_SHIM", "HOTNIC_HOST_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_clean_removes_what_is_hotnics_and_reports_what_stays(
    node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ("var/lib/cni/multus/sandboxes", "var/lib/cni/multus", "run/multus/records", "run/multus"):
        (node.root / path).rmdir()
    before = node.files()
    for path in ("var/lib/cni/multus/sandboxes", "run/multus/records"):
        (node.root / path).mkdir(parents=True)
    node.install()
    assert main(["node", "clean", "--host-root", str(node.root), "-o", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert node.files() == before - {"run/netns"} | {"run/netns/cni-1"}
    assert report["removed"][0]["path"] == "/etc/cni/net.d/00-multus.conf"
    assert [item["path"] for item in report["left"]] == [
        "pod default/vm1, link net1, network default/blue",
        "pod default/vm1, link net1, network default/red",
    ]
    assert "stays in the running pod" in report["left"][0]["reason"]
    assert "no DEL has run" in report["left"][1]["reason"]
    assert report["failed"] == []
    # A second time there is nothing to do.
    assert main(["node", "clean", "--host-root", str(node.root)]) == 0
    assert capsys.readouterr().out == "nothing of hotnic is on this node\n"


def test_a_dry_run_changes_nothing_and_shows_the_same(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.install()
    before = node.files()
    assert main(["node", "clean", "--host-root", str(node.root), "--dry-run", "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert node.files() == before
    assert shown["dry_run"]
    done = clean(node.paths, dry_run=False, timeout=0)
    assert [item.path for item in done.removed] == [item["path"] for item in shown["removed"]]


def test_foreign_files_are_left(node: FakeNode) -> None:
    node.install()
    node.put(CONF, json.dumps(THEIRS))
    node.put("run/multus/foreign", "")
    node.put("var/lib/cni/multus/0123", "[]")
    report = clean(node.paths, dry_run=False, timeout=0)
    left = {item.path: item.reason for item in report.left if item.path.startswith("/")}
    assert left == {
        "/etc/cni/net.d/00-multus.conf": "it calls multus-shim and is not hotnic's",
        "/run/multus/foreign": "not a file of hotnic",
        "/var/lib/cni/multus/0123": "not a file of hotnic",
    }
    assert node.files() >= {CONF, "run/multus/foreign", "var/lib/cni/multus/0123", "opt/cni/bin/bridge"}
    assert SHIM not in node.files()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"type": 3}', '{"plugins": {}}'])
def test_a_configuration_that_cannot_be_read_is_left(node: FakeNode, content: str) -> None:
    node.put(CONF, content)
    assert [item.path for item in clean(node.paths, dry_run=False, timeout=0).left] == [f"/{CONF}"]


def test_a_link_is_removed_and_not_the_file_that_it_names(node: FakeNode) -> None:
    node.install()
    (node.root / "usr/lib").mkdir(parents=True)
    node.put("usr/lib/program", "foreign")
    (node.root / SHIM).unlink()
    (node.root / SHIM).symlink_to("/usr/lib/program")
    assert f"/{SHIM}" in [item.path for item in clean(node.paths, dry_run=False, timeout=0).removed]
    assert not os.path.lexists(node.root / SHIM)
    assert "usr/lib/program" in node.files()
    # One that leads nowhere is removed as well.
    (node.root / SHIM).symlink_to("/usr/lib/nothing")
    assert [item.path for item in clean(node.paths, dry_run=False, timeout=0).removed] == [f"/{SHIM}"]
    assert not os.path.lexists(node.root / SHIM)


def test_a_configuration_behind_a_link_of_the_node_counts(node: FakeNode) -> None:
    node.install()
    (node.root / "usr/lib").mkdir(parents=True)
    node.put("usr/lib/05-x.conf", json.dumps(OURS))
    (node.root / "etc/cni/net.d/05-x.conf").symlink_to("/usr/lib/05-x.conf")
    (node.root / "etc/cni/net.d/06-x.conf").symlink_to("/etc/cni/net.d/06-x.conf")
    report = clean(node.paths, dry_run=False, timeout=0)
    assert f"/{SHIM}" in [item.path for item in report.left]
    assert SHIM in node.files()


def test_links_without_an_end_fail_the_command(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    (node.root / "run/multus/records").rmdir()
    (node.root / "run/multus").rmdir()
    (node.root / "run/multus").symlink_to("/run/multus")
    assert main(["node", "clean", "--host-root", str(node.root)]) == 1
    assert "cannot read the node's files" in capsys.readouterr().err


def test_the_shim_stays_while_the_configuration_cannot_be_removed(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.install()
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "00-multus.conf":
            raise OSError(errno.EBUSY, "Device or resource busy")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    report = clean(node.paths, dry_run=False, timeout=0)
    assert [item.path for item in report.failed] == [f"/{CONF}"]
    assert report.removed == ()
    assert {CONF, SHIM} <= node.files()


def test_a_directory_among_the_records_is_foreign(node: FakeNode) -> None:
    (node.root / "run/multus/records/x.json").mkdir()
    report = clean(node.paths, dry_run=False, timeout=0)
    assert [item.path for item in report.left] == ["/run/multus/records/x.json"]
    assert report.failed == ()


def test_a_directory_at_the_path_of_a_file_is_foreign(node: FakeNode) -> None:
    """A plugin such as host-local makes directories at paths that the author of a network chooses."""
    for path in (CONF, "opt/cni/bin/hotnic-multus", "opt/cni/bin/hotnic-multus.json", "run/multus/multus.sock"):
        (node.root / path).mkdir()
        node.put(f"{path}/10.0.0.1", "lease")
    report = clean(node.paths, dry_run=False, timeout=0)
    assert [item.path for item in report.left] == ["/run/multus/multus.sock"]
    assert report.failed == ()


def test_a_relative_directory_is_refused(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.install()
    before = node.files()
    assert main(["node", "clean", "--host-root", str(node.root), "--cni-conf-dir", "etc/cni/net.d"]) == 2
    assert "etc/cni/net.d is not an absolute path" in capsys.readouterr().err
    assert node.files() == before


def foreign_caller(node: FakeNode) -> None:
    """Leave a configuration that calls the shim and that hotnic did not generate, and another such one."""
    for name in ("05-x", "06-y"):
        node.put(f"etc/cni/net.d/{name}.conflist", json.dumps({"plugins": [OURS]}))


def crio_pod(node: FakeNode) -> None:
    """Make CRI-O the runtime, with the running pod of :meth:`FakeNode.install`."""
    (node.root / "run/crio").mkdir()
    node.put("run/crio/crio.sock", "")


@pytest.mark.parametrize(
    ("leave", "code", "said"),
    [
        (
            foreign_caller,
            3,
            "Error: /etc/cni/net.d/05-x.conflist, /etc/cni/net.d/06-y.conflist: hotnic did not generate this "
            "configuration, and it calls hotnic-multus; delete it, then clean this node again\n",
        ),
        (
            crio_pod,
            4,
            "Error: CRI-O deletes the running pods that it created with /opt/cni/bin/hotnic-multus (1) by it; "
            "clean this node again when they are gone\n",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_the_exit_code_tells_a_node_where_the_shim_stays_from_a_clean_one(
    node: FakeNode,
    leave: Callable[[FakeNode], None],
    code: int,
    said: str,
    dry_run: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    node.install()
    leave(node)
    arguments = ["node", "clean", "--host-root", str(node.root)]
    for _ in range(2):
        assert main([*arguments, *dry_run]) == code
        made = capsys.readouterr()
        assert made.err == said
        assert "left /opt/cni/bin/hotnic-multus: " in made.out
        assert SHIM in node.files()
    for path in ("etc/cni/net.d/05-x.conflist", "etc/cni/net.d/06-y.conflist", "run/netns/cni-1"):
        (node.root / path).unlink(missing_ok=True)
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    assert SHIM not in node.files()


EMPTY = ObservedNode(DaemonKind.NONE, "/c", {}, "", "", (), (), (), (), (), (), False)
LINKS = (RecordedLink("eth0", "pods", "cluster"),)


def removed(node: ObservedNode) -> list[str]:
    """Return the paths that the plan removes."""
    return [item.path for item in plan(node).remove]


def changed(**fields: Any) -> ObservedNode:
    """Return a node with these fields."""
    return msgspec.structs.replace(EMPTY, **fields)


def test_the_shim_stays_while_another_configuration_calls_it() -> None:
    node = changed(plugin_types={"05-x.conflist": ("hotnic-multus",)}, shim="/b/hotnic-multus")
    assert removed(node) == []
    assert [(item.path, item.reason) for item in plan(node).left] == [
        ("/c/05-x.conflist", "it calls hotnic-multus, but hotnic did not generate it; delete it by hand"),
        ("/b/hotnic-multus", "called by /c/05-x.conflist"),
    ]
    # Without the shim, too: no pod can start there.
    assert plan(changed(plugin_types=node.plugin_types)).refused == plan(node).refused != ""


@pytest.mark.parametrize(("crio", "alive", "stays"), [(True, True, True), (True, False, False), (False, True, False)])
def test_the_shim_stays_for_pods_that_only_it_can_delete(crio: bool, alive: bool, stays: bool) -> None:
    sandboxes = (RecordedSandbox("default/p", alive, LINKS, ("/s/sandboxes/a.json", "/r/records/a.unsettled")),)
    shim = {"/b/hotnic-multus", "/b/hotnic-multus.json"}
    files = {*shim, "/s/sandboxes/a.json", "/r/records/a.unsettled", "/s/sandboxes", "/s"}
    node = changed(
        shim="/b/hotnic-multus",
        shim_log="/b/hotnic-multus.json",
        sandboxes=sandboxes,
        crio=crio,
        socket_files=("/r/records/a.unsettled",),
        record_files=("/s/sandboxes/a.json",),
        directories=("/s/sandboxes", "/s"),
    )
    # The records too: by them the next attempt finds the pods.
    assert set(removed(node)) == (set() if stays else files)
    assert bool(plan(node).later) is stays
    called = msgspec.structs.replace(node, plugin_types={"05-x.conflist": ("hotnic-multus",)})
    assert set(removed(called)) == (set() if stays else files - shim)


@pytest.mark.parametrize("daemon", [DaemonKind.HOTNIC, DaemonKind.SILENT])
def test_nothing_is_removed_while_the_daemon_runs(daemon: DaemonKind) -> None:
    found = plan(changed(daemon=daemon, shim="/b/hotnic-multus"))
    assert (found.remove, found.left) == ((), ())
    assert "delete its DaemonSet" in found.blocked


def test_the_socket_of_another_daemon_is_left() -> None:
    node = changed(
        daemon=DaemonKind.OTHER,
        socket_files=("/run/multus/multus.sock",),
        record_files=("/s/sandboxes/a.json",),
        directories=("/run/multus", "/s/sandboxes", "/s"),
    )
    assert removed(node) == ["/s/sandboxes/a.json", "/s/sandboxes", "/s"]


def test_install_shim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "shim"
    source.write_text("#!/bin/sh\n")
    arguments = ["node", "install-shim", "--source", str(source), "--bin-dir", str(tmp_path / "bin")]
    assert main(arguments) == 1
    assert "cannot install" in capsys.readouterr().err
    (tmp_path / "bin").mkdir()
    target = tmp_path / "bin" / "hotnic-multus"
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"installed {target}\n"
    assert os.access(target, os.X_OK)
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{target} is up to date\n"


def test_install_shim_uses_the_images_shim(tmp_path: Path) -> None:
    source = tmp_path / "shim"
    source.write_text("#!/bin/sh\n")
    environ = {"PATH": os.environ["PATH"], "HOTNIC_SHIM": str(source)}
    command = [sys.executable, "-m", "services.cli", "node", "install-shim", "--bin-dir", str(tmp_path)]
    assert subprocess.run(command, env=environ, check=False).returncode == 0
    assert (tmp_path / "hotnic-multus").exists()
    assert subprocess.run(command, env={"PATH": os.environ["PATH"]}, check=False).returncode == 2
