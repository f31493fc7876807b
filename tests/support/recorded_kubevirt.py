"""Objects that KubeVirt 1.0.1 and 1.9.0 wrote, in ``kubevirt_objects/``.

A file is ``<version>-<moment>-<kind>.json``. virt-api and virt-controller ran with all their webhooks. A script wrote
the guest's part of ``status.interfaces``, the phases of pods, ``network-status`` and the hand-over of migrations.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance

FOLDER = Path(__file__).with_name("kubevirt_objects")


def recorded(name: str) -> dict[str, Any]:
    """Return a recorded object, such as ``v1.9.0-a-plugged-vmi``, as decoded JSON."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def recorded_vm(moment: str) -> VirtualMachine:
    """Return the VM of a moment, such as ``v1.9.0-a-plugged``."""
    return msgspec.convert(recorded(f"{moment}-vm"), VirtualMachine)


def recorded_vmi(moment: str) -> VirtualMachineInstance:
    """Return the VMI of a moment."""
    return msgspec.convert(recorded(f"{moment}-vmi"), VirtualMachineInstance)


def recorded_pods(moment: str) -> list[Pod]:
    """Return the launcher pods of a moment, oldest first."""
    paths = sorted(FOLDER.glob(f"{moment}-pod*.json"))
    return [msgspec.convert(json.loads(path.read_text()), Pod) for path in paths]
