"""Paths of the lab's tools: containerd, CNI plugins, QEMU, the guest's kernel and image.

This module finds what `make setup` has installed; it downloads and builds nothing. It imports only the standard
library, so that a set-up script can import it before anything is installed. `scripts/tools/fetch_tools.py` fills the
tools folder; `lab.guest` boots guests from it.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Accel = Literal["kvm", "tcg"]

BINARIES: Final = (
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "kubectl",
    "nats-server",
    "qemu-system-x86_64",
)
"""Every program in `bin/`."""

CNI_PLUGINS: Final = ("bridge", "host-local", "loopback", "macvlan", "ptp", "static", "tuning")
"""Plugins whose presence is checked; the folder `cni/` contains all that Debian ships."""

PAUSE_IMAGE: Final = "hotnic.local/pause:1"
"""Name of the image in `images/pause.tar`: busybox, sleeping until SIGTERM."""


class ToolsMissingError(Exception):
    """Tools of the lab are missing; the message names them and refers to `make setup`."""


def default_root() -> Path:
    """Return the tools folder: `HOTNIC_TOOLS`, else the checkout's `.cache/tools`, else the user's cache."""
    chosen = os.environ.get("HOTNIC_TOOLS")
    if chosen:
        return Path(chosen).absolute()
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "scripts" / "tools" / "fetch_tools.py").is_file():
        return checkout / ".cache" / "tools"
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "hotnic" / "tools"


def accel_key() -> str:
    """Return the key of a cached accelerator: the running kernel, and whether /dev/kvm is accessible."""
    return f"{platform.release()} kvm={'yes' if os.access('/dev/kvm', os.R_OK | os.W_OK) else 'no'}"


@dataclass(frozen=True, slots=True)
class LabTools:
    """Absolute paths of the lab's tools, all of which existed when they were found."""

    root: Path
    containerd: Path
    containerd_shim: Path
    ctr: Path
    runc: Path
    kubectl: Path
    nats_server: Path
    qemu: Path
    cni_dir: Path
    kernel: Path
    initrd: Path
    pause_tar: Path
    accel: Accel

    @classmethod
    def find(cls, root: Path | None = None) -> LabTools:
        """Return the tools below `root`.

        :param root: the tools folder; `default_root()` when None.
        :raises ToolsMissingError: at least one is missing; the message names all missing ones.
        """
        base = (root or default_root()).absolute()
        binaries = base / "bin"
        required = {
            **{f"bin/{name}": binaries / name for name in BINARIES},
            **{f"cni/{name}": base / "cni" / name for name in CNI_PLUGINS},
            "guest/vmlinuz": base / "guest" / "vmlinuz",
            "guest/initramfs.cpio.gz": base / "guest" / "initramfs.cpio.gz",
            "images/pause.tar": base / "images" / "pause.tar",
        }
        missing = [name for name, path in required.items() if not path.exists()]
        if missing:
            raise ToolsMissingError(f"tools of the lab are missing ({', '.join(missing)}): run `make setup`")
        return cls(
            root=base,
            containerd=binaries / "containerd",
            containerd_shim=binaries / "containerd-shim-runc-v2",
            ctr=binaries / "ctr",
            runc=binaries / "runc",
            kubectl=binaries / "kubectl",
            nats_server=binaries / "nats-server",
            qemu=binaries / "qemu-system-x86_64",
            cni_dir=base / "cni",
            kernel=base / "guest" / "vmlinuz",
            initrd=base / "guest" / "initramfs.cpio.gz",
            pause_tar=base / "images" / "pause.tar",
            # TCG works on every machine.
            accel=read_accel(base) or "tcg",
        )

    @property
    def bin_dir(self) -> Path:
        """Return the folder to put first on PATH, so that containerd finds its shim and runc."""
        return self.root / "bin"


def read_accel(root: Path) -> Accel | None:
    """Return the accelerator that `make setup` found by booting a guest, or None when unknown for this kernel."""
    try:
        cached = json.loads((root / "accel").read_text())
    except (OSError, ValueError):
        return None
    # Another kernel, or a change of /dev/kvm, can make KVM work or fail.
    if not isinstance(cached, dict) or cached.get("key") != accel_key():
        return None
    return "kvm" if cached.get("accel") == "kvm" else "tcg"


def write_accel(root: Path, accel: Accel) -> None:
    """Cache `accel` for the running kernel."""
    (root / "accel").write_text(json.dumps({"accel": accel, "key": accel_key()}) + "\n")
