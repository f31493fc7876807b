"""Which CNI plugins a network may name: never the shim of a multus, and only those that the node's operator allows.

Pure. A network's author chooses what runs as root on the node. The shim of a multus as such a plugin would call the
daemon that runs it, for the same sandbox. :mod:`services.networks.network_config` asks before it sends a
configuration, and multus before it runs one.
"""

from collections import deque
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
    """Return the types of plugins and of the plugins that those run, such as for addresses (``ipam``).

    Which plugin runs another one, and by which key, is not known: flannel has ``delegate``, some have a list. So every
    ``type`` counts, at any depth, as in the admission policy.
    """
    found: list[str] = []
    waiting: deque[Any] = deque(plugins)
    while waiting:
        value = waiting.popleft()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, Mapping):
            # Plugins in Go take keys in any case.
            found += [str(inner) for key, inner in value.items() if key.lower() == "type"]
            waiting += [inner for inner in value.values() if isinstance(inner, Mapping | list)]
    return found
