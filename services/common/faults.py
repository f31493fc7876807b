"""Where a role can be made to die: before and after each step that somebody else can see. For tests only.

``with faults.step("networks.delegate-add"):`` stands around a step. Without ``HOTNIC_TEST_FAULTS`` that does nothing
at all. With it, a file in that folder named after a point (``networks.delegate-add.before``) makes the process remove
the file and kill itself there, or the process whose id stands in the file: it can be armed while the process runs, and
fires once.
:data:`STEPS` lists every step and the requests that pass it; ``tests/e2e/test_crash_matrix.py`` has a cell for each.
"""

import contextlib
import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

Moment = Literal["before", "after"]
MOMENTS: Final[tuple[Moment, ...]] = ("before", "after")

PLUG, UNPLUG = "plug", "unplug"
PLUG_VM, UNPLUG_VM = "plug the VM", "unplug the VM"
"""The same by the VM's template (``--persist``): other steps of api and controller."""
PLUG_EDIT, UNPLUG_EDIT = "plug by an edit", "unplug by an edit"
"""The same by an edit of the VM's template, which nobody has given an operation."""
REFUSED = "plug of a card that the guest cannot have"
"""By an edit of the VMI; it ends by being taken out again."""
UNRECORDED = "plug of what another attached"
"""A plug whose attachment comes without the record of the pod NIC, as other controllers leave it."""

STEPS: Final[dict[str, tuple[str, ...]]] = {
    "api.patch-vmi": (PLUG, UNPLUG),
    "api.patch-vm": (PLUG_VM, UNPLUG_VM),
    "api.publish-requested": (PLUG, UNPLUG),
    "api.event": (PLUG, UNPLUG),
    "controller.start-vm": (PLUG_EDIT, UNPLUG_EDIT),
    "controller.start-vmi": (PLUG_VM, UNPLUG_VM, REFUSED),
    "controller.publish-requested": (PLUG_VM, UNPLUG_VM),
    "controller.patch-pod": (PLUG, UNPLUG),
    "controller.publish-pod-annotated": (PLUG,),
    "controller.patch-vmi": (PLUG, UNPLUG, REFUSED),
    "controller.patch-vm": (UNPLUG_VM,),
    "controller.event": (PLUG, REFUSED),
    "networks.delegate-add": (PLUG,),
    "networks.delegate-del": (UNPLUG,),
    "networks.patch-pod": (PLUG, UNPLUG),
    "networks.publish-multus-attached": (PLUG,),
    "networks.publish-multus-detached": (UNPLUG,),
    "networks.event": (PLUG, UNPLUG),
    "multus.record-adding": (PLUG,),
    "multus.plugins-add": (PLUG,),
    "multus.record-added": (PLUG,),
    "multus.plugins-del": (UNPLUG,),
    "multus.record-removed": (UNPLUG,),
    "multus.record-on-disk": (PLUG, UNPLUG),
    "handler.record": (UNRECORDED,),
    "handler.wire": (PLUG,),
    "handler.netdev-add": (PLUG,),
    "handler.device-add": (PLUG,),
    "handler.device-del": (UNPLUG,),
    "handler.netdev-del": (UNPLUG,),
    "handler.unwire": (UNPLUG,),
    "handler.patch-vmi": (PLUG, UNPLUG, REFUSED),
    "handler.publish-guest-attached": (PLUG,),
    "handler.publish-guest-detached": (UNPLUG,),
    "handler.publish-failed": (REFUSED,),
    "handler.event": (PLUG, UNPLUG, REFUSED),
}
"""Every step, and which requests pass it."""

PASSED: Final = "passed"
"""File in the folder that, where it exists, gets a line for each point that is passed."""
DELIVERIES: Final = "deliveries"
"""File in the folder that says how often a role gets each event: ``0``, ``2``, …"""

_folder: Path | None = None


def configure(folder: str | None) -> None:
    """Look for armed points in this folder from now on; ``None``: never look."""
    global _folder
    _folder = Path(folder) if folder else None


def step(name: str) -> AbstractContextManager[None]:
    """Stand around a step that others can see. A step that fails has no moment after it."""
    return _NOTHING if _folder is None else _Step(name, _folder)


def deliveries() -> int:
    """How often an event is handed to a role: once, unless a test says otherwise."""
    if _folder is None:
        return 1
    try:
        return int((_folder / DELIVERIES).read_text())
    except (FileNotFoundError, ValueError):
        return 1


_NOTHING: Final = contextlib.nullcontext()


class _Step(AbstractContextManager[None]):
    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder

    def __enter__(self) -> None:
        self._at("before")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._at("after")

    def _at(self, moment: Moment) -> None:
        point = f"{self._name}.{moment}"
        with contextlib.suppress(FileNotFoundError):
            passed = os.open(self._folder / PASSED, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.write(passed, f"{point}\n".encode())
            os.close(passed)
        with contextlib.suppress(FileNotFoundError):
            victim = (self._folder / point).read_text()
            os.unlink(self._folder / point)
            os.kill(int(victim or os.getpid()), signal.SIGKILL)
