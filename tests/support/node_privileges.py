"""What docs/install.md says that the node roles may do: the table of capabilities and the table of the node's paths."""

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[2] / "docs" / "install.md"
_CAPABILITY = re.compile(r"^\| ([a-z-]+) \| `([A-Z_]+)` \| (.+) \|$", re.MULTILINE)
_PATH = re.compile(r"^\| ([a-z-]+) \| `([a-z-]+)` \| `(/[^`]*)` \| (yes|no) \| (.+) \|$", re.MULTILINE)


class NodePath(NamedTuple):
    """A path of the node in a container.

    :ivar path: the path, with the chart's default values.
    :ivar writable: whether its mount is writable.
    """

    path: str
    writable: bool


def documented_capabilities() -> dict[str, dict[str, str]]:
    """Return the capabilities of each container with what they are for. The other containers have none."""
    found: dict[str, dict[str, str]] = {}
    for container, name, reason in _CAPABILITY.findall(PAGE.read_text()):
        found.setdefault(container, {})[name] = reason
    return found


def documented_paths() -> dict[tuple[str, str], NodePath]:
    """Return the paths of the node by container and volume."""
    return {
        (container, volume): NodePath(path, writable == "yes")
        for container, volume, path, writable, _ in _PATH.findall(PAGE.read_text())
    }
