"""Process 1 of a lab: `python -m lab.supervisor OPTIONS`, where the options are a `SupervisorOptions` as JSON.

`lab.namespaces.holder` starts it in new namespaces. It sets them up (`lab.namespaces.isolation`) and runs the lab
(`lifecycle.py`, the next module to read).
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from lab.layout import Layout
from lab.namespaces import isolation
from lab.namespaces.holder import SupervisorOptions
from lab.supervisor.lifecycle import supervise
from lab.supervisor.progress import StartError, StartProgress
from lab.tools import ToolsMissingError


def main(argv: list[str] | None = None) -> int:
    """Run the supervisor with the options in `argv`; return the exit code."""
    body = json.loads((argv or sys.argv[1:])[0])
    options = SupervisorOptions(**{**body, "without": tuple(body["without"])})
    progress = StartProgress(options.progress_fd, options.started_at)
    layout = Layout(Path(options.dir))
    try:
        before = progress.elapsed
        isolation.isolate(layout)
        progress.report(step="namespaces and mounts", ms=round((progress.elapsed - before) * 1000))
        return asyncio.run(supervise(options, progress))
    except (OSError, StartError, ToolsMissingError) as error:
        progress.report(done=True, ok=False, error=str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
