"""The daemon refuses to start beside another multus, and names the object and the way out."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from services.common.http.server import make_app, serve
from services.common.node.cni_conf import read_plugin_types
from services.common.node.daemon_socket import DaemonKind
from services.multus.config.settings import Config, Settings, read_config
from services.multus.container_runtime.conflicts import find_conflict
from tests.support.telemetry.spans import recording_telemetry

PRIMARY = {"10-pods.conflist": ("bridge", "portmap")}


def configured(tmp_path: Path, **keys: Any) -> Config:
    file = tmp_path / "daemon-config.json"
    file.write_text(json.dumps({"cniConfigDir": "/etc/cni/net.d", **keys}))
    return read_config(Settings(multus_config=str(file)))[0]


@pytest.mark.parametrize(
    ("types", "keys", "expected"),
    [
        ({}, {}, ""),
        (PRIMARY, {}, ""),
        ({"00-multus.conf": ("hotnic-multus",), **PRIMARY}, {}, ""),
        ({"00-multus.conf": ("multus-shim",), **PRIMARY}, {}, ""),
        ({"00-multus.conf": ("multus",), **PRIMARY}, {}, "thin Multus is configured on this node: "),
        ({**PRIMARY, "70-multus.conf": ("multus",)}, {}, "/etc/cni/net.d/70-multus.conf calls the plugin multus; "),
        (
            {"01-multus.conflist": ("tuning", "multus-shim")},
            {},
            "/etc/cni/net.d/01-multus.conflist calls the plugin mu",
        ),
        ({"01-multus.conf": ("multus-shim",)}, {"type": "multus-shim"}, ""),
    ],
)
def test_configurations(tmp_path: Path, types: Any, keys: dict[str, Any], expected: str) -> None:
    conflict = find_conflict(configured(tmp_path, **keys), types, DaemonKind.NONE)
    assert bool(conflict) is bool(expected)
    assert expected in conflict
    assert not conflict or "remove its DaemonSet" in conflict


@pytest.mark.parametrize(
    ("daemon", "refused"),
    [(DaemonKind.NONE, False), (DaemonKind.HOTNIC, False), (DaemonKind.SILENT, False), (DaemonKind.OTHER, True)],
)
def test_daemons(tmp_path: Path, daemon: DaemonKind, refused: bool) -> None:
    conflict = find_conflict(configured(tmp_path), PRIMARY, daemon)
    assert ("another multus daemon serves /run/multus/multus.sock" in conflict) is refused


def test_plugin_types_are_read_from_every_configuration(tmp_path: Path) -> None:
    assert read_plugin_types(tmp_path / "nothing") == {}
    files = {
        "20-b.conflist": '{"plugins": [{"type": "a"}, {"type": "b"}, 3, {"type": 4}]}',
        "10-a.conf": '{"type": "bridge"}',
        "30-c.json": '{"type": "c"}',
        "40-broken.conf": "{",
        "50-binary.conf": "\x80",
        "README": '{"type": "no configuration"}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert list(read_plugin_types(tmp_path).items()) == [
        ("10-a.conf", ("bridge",)),
        ("20-b.conflist", ("a", "b")),
        ("30-c.json", ("c",)),
        ("40-broken.conf", ()),
        ("50-binary.conf", ()),
    ]


async def start(folder: Path) -> tuple[int, str]:
    """Start the daemon as a process that must end by itself; return its exit code and its log."""
    environ = {
        "PATH": os.environ["PATH"],
        "KUBECONFIG": str(folder / "kubeconfig"),
        "HOTNIC_SOCKET_DIR": str(folder / "run"),
        "HOTNIC_CNI_CONF_DIR": str(folder / "conf"),
        "HOTNIC_CNI_BIN_DIR": str(folder / "bin"),
        "HOTNIC_CNI_STATE_DIR": str(folder / "state"),
        "HOTNIC_LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.multus", env=environ, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode is not None
    return process.returncode, stderr.decode()


@pytest.mark.parametrize("served", [True, False], ids=["upstream's daemon", "thin Multus"])
async def test_a_refused_start_changes_nothing_on_the_node(tmp_path: Path, served: bool) -> None:
    for name in ("conf", "bin", "run"):
        (tmp_path / name).mkdir()
    conf = tmp_path / "conf" / "00-multus.conf"
    conf.write_text(json.dumps({"type": "multus-shim" if served else "multus"}))
    before = conf.read_bytes()
    app = make_app(telemetry=recording_telemetry()[0], max_body=10, errors="text")
    listen = f"unix:{tmp_path}/run/{'multus.sock' if served else 'nobody.sock'}"
    async with serve(app, listen):
        code, log = await start(tmp_path)
    assert code == 1
    assert '"start refused"' in log
    assert ("another multus daemon serves" if served else "thin Multus is configured") in log
    assert "Traceback" not in log
    assert conf.read_bytes() == before
    assert os.listdir(tmp_path / "bin") == []
    assert not (tmp_path / "state").exists()
