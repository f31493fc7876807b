"""The sample network and VM: creates them, and is ready once the guest has booted.

Its container stays, as a place for `hotnic` and `kubectl` commands.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from lab.supervisor import bootstrap
from lab.supervisor.processes import Processes

SUMMARY: Final = "The sample network and VM."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the part's options."""
    parser.add_argument("--kubeconfig", type=Path, default=Path("/credentials/kubeconfig"), help="the administrator's")


async def start(_processes: Processes, options: argparse.Namespace) -> None:
    """Create the sample network and VM; return once the guest has booted."""
    await bootstrap.create_samples(options.kubeconfig)
