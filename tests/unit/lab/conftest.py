"""The parameters of a lab that is not started."""

from pathlib import Path

import pytest

from lab.layout import LabIdentity, Layout
from lab.supervisor import components
from lab.tools import LabTools


@pytest.fixture
def parameters(tmp_path: Path) -> components.LabParameters:
    """The parameters of a lab below a folder with a space in its name."""
    root = Path("/tools")
    tools = LabTools(
        root=root,
        containerd=root / "containerd",
        containerd_shim=root / "shim",
        ctr=root / "ctr",
        runc=root / "runc",
        kubectl=root / "kubectl",
        nats_server=root / "nats-server",
        qemu=root / "qemu",
        cni_dir=root / "cni",
        kernel=root / "vmlinuz",
        initrd=root / "initrd",
        pause_tar=root / "pause.tar",
        accel="tcg",
    )
    layout = Layout(tmp_path / "a lab")
    return components.LabParameters(layout, LabIdentity("0a1b2c3d", 1111, 2222, 0, 0.0), tools, apiserver_fd=9)
