"""Which CNI plugins a network may name: never the shim of a multus, and only those that the node's operator allows.

Pure. A network's author chooses what runs as root on the node. The shim of a multus as such a plugin would call the
daemon that runs it, for the same sandbox. :mod:`services.networks.network_config` asks before it sends a
configuration, and multus before it runs one.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from schemas.multus import SHIM_NAME

SHIMS: Final = frozenset({SHIM_NAME, "multus", "multus-shim"})
"""The plugin types of the multus shims: hotnic's, and upstream's of its thin and its thick plugin."""


class AllowedPlugins(msgspec.Struct, frozen=True):
    """The plugin types that NetworkAttachmentDefinitions may name.

    :ivar types: these alone; ``None``: every type. A shim is never allowed.
    """

    types: frozenset[str] | None = None

    def find_refused(self, plugins: Iterable[Mapping[str, Any]]) -> str:
        """Return the first plugin type that is not allowed; empty if there is none.

        :param plugins: the configurations of the network's plugins.
        """
        for one in plugin_types(plugins):
            if one in SHIMS or (self.types is not None and one not in self.types):
                return one
        return ""


def parse_plugin_types(text: str | None) -> AllowedPlugins:
    """Return the allow-list of a setting: comma-separated types, or nothing for every type."""
    names = frozenset(name.strip() for name in (text or "").split(","))
    return AllowedPlugins((names - {""}) or None)


def plugin_types(plugins: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the types of plugins and of the plugins that those run for addresses (``ipam``)."""
    found: list[str] = []
    for plugin in plugins:
        for key, value in plugin.items():
            # Plugins in Go take keys in any case.
            if key.lower() == "type":
                found.append(str(value))
            elif key.lower() == "ipam" and isinstance(value, dict):
                found += [str(inner) for name, inner in value.items() if name.lower() == "type"]
    return found
