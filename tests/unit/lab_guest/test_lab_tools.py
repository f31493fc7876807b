"""Finding the lab's tools, and the error when some are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import tools
from lab.tools import BINARIES, CNI_PLUGINS, LabTools, ToolsMissingError


def create_tools(root: Path) -> None:
    for name in (
        *(f"bin/{name}" for name in BINARIES),
        *(f"cni/{name}" for name in CNI_PLUGINS),
        "guest/vmlinuz",
        "guest/initramfs.cpio.gz",
        "images/pause.tar",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_error_names_all_missing_tools(tmp_path: Path) -> None:
    create_tools(tmp_path)
    (tmp_path / "bin" / "runc").unlink()
    (tmp_path / "cni" / "bridge").unlink()
    with pytest.raises(ToolsMissingError, match=r"bin/runc, cni/bridge\): run `make setup`"):
        LabTools.find(tmp_path)


def test_environment_variable_selects_tools_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_tools(tmp_path)
    monkeypatch.setenv("HOTNIC_TOOLS", str(tmp_path))
    found = LabTools.find()
    assert found.containerd == tmp_path / "bin" / "containerd"
    assert found.bin_dir == tmp_path / "bin"


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_accelerator_is_cached_for_one_kernel(tmp_path: Path, accel: tools.Accel) -> None:
    assert tools.read_accel(tmp_path) is None
    tools.write_accel(tmp_path, accel)
    assert tools.read_accel(tmp_path) == accel
    (tmp_path / "accel").write_text('{"accel": "kvm", "key": "another kernel"}')
    assert tools.read_accel(tmp_path) is None
    (tmp_path / "accel").write_text("broken")
    assert tools.read_accel(tmp_path) is None
