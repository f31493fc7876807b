"""``hotnic run node``: the roles of a node in one process, which takes less memory than a process for each.

Each role has its own settings, connections, logs and traces, as in a process of its own. Its variables are those of
``hotnic run ROLE``; a variable that several roles have is the same for all of them.
Next: :mod:`services.node.supervisor`, which starts each role and starts it again when it ends.
"""

import importlib
import sys
from typing import Annotated, Literal

import msgspec

from services.common.runtime import settings as settings_module
from services.common.runtime.process import Instrument, RoleRuntime
from services.common.runtime.process import main as run
from services.common.runtime.settings import CommonSettings, SettingsError
from services.node.supervisor import STOP_TIMEOUT, RoleEntry, RoleSupervisor

ROLE = "node"


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Settings of the process; each role reads its own."""

    roles: Annotated[
        tuple[Literal["multus", "networks", "handler"], ...],
        msgspec.Meta(
            description="comma-separated roles of this process; each has its own variables besides these: "
            "hotnic run ROLE --help lists them",
            min_length=1,
        ),
    ] = ("multus", "networks", "handler")


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Start every role; return when each has been started once, ready or not.

    :raises SettingsError: a variable of a role is missing or has an invalid value.
    """
    names = runtime.settings.roles
    if len(set(names)) != len(names):
        raise SettingsError("HOTNIC_ROLES", "names a role twice")
    entries = []
    # Imported here: a role that does not run takes no memory.
    for name in names:
        module = importlib.import_module(f"services.{name}.__main__")
        entries.append(RoleEntry(name, settings_module.load(module.Settings), module.start))
    supervisor = RoleSupervisor(runtime, entries)
    runtime.stack_timeout = STOP_TIMEOUT
    runtime.stack.push_async_callback(supervisor.stop)
    supervisor.start()


def main(argv: list[str] | None = None, *, instrument: Instrument | None = None) -> int:
    """Run the roles until the process is stopped; return the exit code."""
    return run(ROLE, Settings, start, argv, instrument=instrument)


if __name__ == "__main__":
    sys.exit(main())
