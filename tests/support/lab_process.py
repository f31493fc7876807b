"""A lab as a user starts it: by a process of its own, in a directory of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass

from services.lab import commands
from services.lab.layout import Identity, Layout

UP = (
    "import sys; from pathlib import Path; from services.lab import commands; "
    "sys.exit(commands.up(commands.UpOptions(dir=Path(sys.argv[1]), bare=sys.argv[2] == 'bare', timeout=60)))"
)
FIXED_PATHS = ("/etc", "/opt", "/run", "/var/lib", "/etc/cni", "/opt/cni", "/var/lib/cni")


@dataclass
class LabProcess:
    """A lab in a directory of its own, without samples unless `bare` says otherwise."""

    layout: Layout
    bare: bool = True

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Begin `lab up`; the caller waits for it."""
        return subprocess.Popen(
            [sys.executable, "-c", UP, str(self.layout.dir), "bare" if self.bare else "with-samples"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def up(self, **environment: str) -> tuple[int, str]:
        """Run `lab up` to its end: exit code and all it said."""
        with self.start(**environment) as process:
            said = process.communicate()[0]
        return process.returncode, said

    def down(self) -> str:
        """Run `lab down`, which must succeed: what it said."""
        said: list[str] = []
        assert commands.down(self.layout.dir, said.append) == 0
        return "\n".join(said)

    @property
    def identity(self) -> Identity:
        """Who the running lab is."""
        identity = self.layout.identity()
        assert identity is not None
        return identity


def listing() -> dict[str, list[str]]:
    """What stands in the folders of the machine that a lab covers inside."""
    # Not /run/netns: it comes and goes with every `ip netns` and every other run of this tier.
    return {path: sorted({*os.listdir(path)} - {"netns"}) for path in FIXED_PATHS if os.path.isdir(path)}
