"""JSON patches that edit the interfaces of a spec as a user does. Used by :mod:`tests.support.lab.rig`."""

from typing import Any

from services.common.domain.operations import ABSENT
from tests.support.lab.running import SAMPLE_NAD


def add_interface_patch(at: str, item: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the patch that adds an interface to a spec."""
    network = {"name": item["name"], "multus": {"networkName": SAMPLE_NAD}}
    return [
        {"op": "add", "path": f"{at}/domain/devices/interfaces/-", "value": item},
        {"op": "add", "path": f"{at}/networks/-", "value": network},
    ]


def set_absent_patch(at: str, names: list[str], interface: str) -> list[dict[str, Any]]:
    """Return the patch that marks an interface of a spec as absent."""
    one = f"{at}/domain/devices/interfaces/{names.index(interface)}"
    return [
        {"op": "test", "path": f"{one}/name", "value": interface},
        {"op": "add", "path": f"{one}/state", "value": ABSENT},
    ]
