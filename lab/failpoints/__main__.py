"""``python -m lab.failpoints ROLE [OPTION]…`` runs a role with failpoints.

``HOTNIC_LAB_FAILPOINTS`` is the directory in which they are armed. The settings and options are those of the role.
"""

import importlib
import os
import sys
from functools import partial
from pathlib import Path

from lab.failpoints.points import FAILPOINTS_VARIABLE
from lab.failpoints.tracer import with_failpoints
from lab.layout import ROLES


def main(argv: list[str]) -> int:
    """Run the role until it is stopped; return the exit code.

    :param argv: name of the role and its command line arguments.
    """
    directory = os.environ.get(FAILPOINTS_VARIABLE)
    if not argv or argv[0] not in ROLES or not directory:
        sys.stderr.write(
            f"usage: {FAILPOINTS_VARIABLE}=DIRECTORY python -m lab.failpoints {'|'.join(ROLES)} [OPTION]...\n"
        )
        return 2
    role = importlib.import_module(f"services.{argv[0]}.__main__")
    code: int = role.main(argv[1:], instrument=partial(with_failpoints, directory=Path(directory)))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
