"""Builders of JSON patch operations (RFC 6902) with JSON pointers (RFC 6901). Callers decide what to patch."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from services.common.domain.spec_patch import pointer_segment

Op: TypeAlias = dict[str, Any]


def pointer(*segments: str | int) -> str:
    """Return the JSON pointer to the value under these keys and indices.

    >>> pointer("metadata", "annotations", "hotnic.io/a~b")
    '/metadata/annotations/hotnic.io~1a~0b'
    """
    return "".join("/" + pointer_segment(str(segment)) for segment in segments)


def test(path: str, value: Any) -> Op:
    """Return an operation that fails the patch unless ``path`` has this value.

    ``None`` also matches a missing member, as in upstream's patch library.
    """
    return {"op": "test", "path": path, "value": value}


def add(path: str, value: Any) -> Op:
    """Return an operation that sets a member, or inserts into a list (``-``: at its end).

    The object or list that contains it must exist.
    """
    return {"op": "add", "path": path, "value": value}


def replace(path: str, value: Any) -> Op:
    """Return an operation that replaces a value. The value must exist."""
    return {"op": "replace", "path": path, "value": value}


def remove(path: str) -> Op:
    """Return an operation that removes a value. The value must exist."""
    return {"op": "remove", "path": path}


def is_guarded(body: Any) -> bool:
    """Return whether the body of a request lets it apply to a certain state of the object only.

    That is a JSON patch with a ``test`` operation, an object with a resource version, or a delete with preconditions.
    """
    if isinstance(body, Mapping):
        return "preconditions" in body or "resourceVersion" in (body.get("metadata") or {})
    return isinstance(body, list | tuple) and any(op.get("op") == "test" for op in body)
