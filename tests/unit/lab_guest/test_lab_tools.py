"""Finding the lab's tools, and what is said when they are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.lab import tools
from services.lab.tools import BINARIES, CNI_PLUGINS, Tools, ToolsMissingError


def lay_out(root: Path) -> None:
    for name in (
        *(f"bin/{name}" for name in BINARIES),
        *(f"cni/{name}" for name in CNI_PLUGINS),
        "guest/vmlinuz",
        "guest/initramfs.cpio.gz",
        "images/pause.tar",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_everything_missing_is_named_at_once(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "bin" / "runc").unlink()
    (tmp_path / "cni" / "bridge").unlink()
    with pytest.raises(ToolsMissingError, match=r"bin/runc, cni/bridge\): run `make setup`"):
        Tools.find(tmp_path)


def test_the_environment_chooses_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    monkeypatch.setenv("HOTNIC_TOOLS", str(tmp_path))
    found = Tools.find()
    assert found.containerd == tmp_path / "bin" / "containerd"
    assert found.bin_dir == tmp_path / "bin"


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_the_accelerator_is_remembered_for_one_kernel(tmp_path: Path, accel: tools.Accel) -> None:
    assert tools.read_accel(tmp_path) is None
    tools.write_accel(tmp_path, accel)
    assert tools.read_accel(tmp_path) == accel
    (tmp_path / "accel").write_text('{"accel": "kvm", "key": "another kernel"}')
    assert tools.read_accel(tmp_path) is None
    (tmp_path / "accel").write_text("broken")
    assert tools.read_accel(tmp_path) is None
