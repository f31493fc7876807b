"""Starts a lab as a user does: with a process and a directory of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass

from lab.cli import commands
from lab.layout import LabIdentity, Layout

UP = (
    "import sys; from pathlib import Path; from lab.cli import commands; "
    "options = commands.UpOptions(dir=Path(sys.argv[1]), bare=sys.argv[2] == 'bare', timeout=float(sys.argv[3])); "
    "sys.exit(commands.up(options))"
)
BARE_DEADLINE, DEADLINE = 60.0, 250.0
"""Seconds until a lab has started; it takes 4 s, and 15 s with the sample VM, whose emulated guest gets less CPU.

The second one is for the boot of any other guest of a lab, too.
"""
FIXED_PATHS = ("/etc", "/opt", "/run", "/var/lib", "/etc/cni", "/opt/cni", "/var/lib/cni")


@dataclass
class LabProcess:
    """A lab that is started by a process of its own.

    :ivar bare: whether to start it without the sample network and VM.
    """

    layout: Layout
    bare: bool = True

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Start `lab up` without waiting for it."""
        options = ("bare", str(BARE_DEADLINE)) if self.bare else ("with-samples", str(DEADLINE))
        return subprocess.Popen(
            [sys.executable, "-c", UP, str(self.layout.dir), *options],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def up(self, **environment: str) -> tuple[int, str]:
        """Run `lab up` and return its exit code and output."""
        with self.start(**environment) as process:
            output = process.communicate()[0]
        return process.returncode, output

    def down(self) -> str:
        """Stop the lab as :func:`stop` does; return the output."""
        return stop(self.layout)

    @property
    def identity(self) -> LabIdentity:
        """The identity of the running lab."""
        identity = self.layout.identity()
        assert identity is not None
        return identity


def stop(layout: Layout) -> str:
    """Run `lab down`, which must succeed and leave no cgroup of this lab; return its output."""
    identity = layout.identity()
    output: list[str] = []
    assert commands.down(layout.dir, output.append) == 0, "\n".join(output)
    if identity is not None:
        left = [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if identity.id in folder]
        assert not left, f"left behind: {left}"
    return "\n".join(output)


def list_fixed_paths() -> dict[str, list[str]]:
    """Return the entries of the machine's directories over which a lab mounts its own."""
    # Without /run/netns and /run/cni: the first `ip netns` and the first plugin `tuning` of another run create them.
    return {path: sorted({*os.listdir(path)} - {"netns", "cni"}) for path in FIXED_PATHS if os.path.isdir(path)}
