"""Objects that KubeVirt 1.0.1 and 1.9.0 wrote; ``kubevirt_objects/README.md`` describes them."""

import json
from pathlib import Path
from typing import Any

import msgspec

from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance

FOLDER = Path(__file__).with_name("kubevirt_objects")


def recorded(moment: str) -> dict[str, Any]:
    """Return the objects of a moment, such as ``v1.9.0-a-plugged``, by kind: ``vm``, ``vmi``, ``pod`` or ``pod1`` …."""
    found: dict[str, Any] = json.loads((FOLDER / f"{moment}.json").read_text())
    return found


def recorded_vm(moment: str) -> VirtualMachine:
    """Return the VM of a moment."""
    return msgspec.convert(recorded(moment)["vm"], VirtualMachine)


def recorded_vmi(moment: str) -> VirtualMachineInstance:
    """Return the VMI of a moment."""
    return msgspec.convert(recorded(moment)["vmi"], VirtualMachineInstance)


def recorded_pods(moment: str) -> list[Pod]:
    """Return the launcher pods of a moment, oldest first."""
    objects = recorded(moment)
    return [msgspec.convert(objects[kind], Pod) for kind in sorted(objects) if kind.startswith("pod")]
