"""Finds the changes between two versions of a JSON Schema that roles of both versions could not live with.

A newer version may add types and optional fields, and nothing else: a role of the older version ignores them, and a
role of the newer version does without them. Texts for readers do not count.
"""

from typing import Any

_FOR_READERS = {"title", "description", "$id", "summary"}
_NAMED = {"properties", "$defs", "schemas", "messages", "channels", "operations", "components", "headers", "mapping"}
"""Keys whose value is a table by name, to which a newer version may add."""


def breaking_changes(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the paths at which the newer schema breaks the older one; empty when there are none."""
    if isinstance(old, dict) and isinstance(new, dict):
        named = path.rpartition("/")[2] in _NAMED
        keys = old.keys() if named else (old.keys() | new.keys()) - _FOR_READERS
        found: list[str] = []
        for key in sorted(keys):
            found += breaking_changes(old.get(key), new.get(key), f"{path}/{key}")
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [change for i, (before, now) in pairs for change in breaking_changes(before, now, f"{path}/{i}")]
    return [] if old == new else [path]
