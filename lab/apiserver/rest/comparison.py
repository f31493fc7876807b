"""Compare two states of an object, so that an update without a change writes nothing and keeps the generation.

Next: `verbs.py`, which updates objects.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lab.apiserver.errors import Object
from lab.apiserver.registry.resources import ServedResource

_sorted_json = msgspec.json.Encoder(order="deterministic").encode


def spec_changed(resource: ServedResource, new: Object, old: Object) -> bool:
    """Return whether anything but metadata (and status, where it is a subresource) differs."""
    skipped = {"metadata", "kind", "apiVersion"}
    if resource.status:
        skipped.add("status")
    names = (new.keys() | old.keys()) - skipped
    return any(not _same_value(new.get(name), old.get(name)) for name in names)


def _same_value(new: Any, old: Any) -> bool:
    # `==` alone would treat true and 1, or 1 and 1.0, as the same.
    return new == old and _sorted_json(new) == _sorted_json(old)


def same(new: Object, old: Object) -> bool:
    """Return whether two states are equal, but for kind and version, which a stored object lacks."""
    bare = {name: value for name, value in new.items() if name not in ("kind", "apiVersion")}
    return _same_value(bare, old)
