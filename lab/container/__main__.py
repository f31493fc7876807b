"""Run one part of the lab until SIGTERM: `python -m lab.container cluster|node|samples`."""

from __future__ import annotations

import argparse
import asyncio
import sys

from lab.container import cluster, node, samples
from lab.container.process import run

PARTS = {"cluster": cluster, "node": node, "samples": samples}


def main(argv: list[str] | None = None) -> int:
    """Run the part that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.container", description=__doc__)
    commands = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, part in PARTS.items():
        part.add_arguments(commands.add_parser(name, help=part.SUMMARY, description=part.SUMMARY))
    options = parser.parse_args(argv)
    return asyncio.run(run(lambda processes: PARTS[options.part].start(processes, options)))


if __name__ == "__main__":
    sys.exit(main())
