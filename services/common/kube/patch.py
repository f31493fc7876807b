"""Builders of JSON patch operations (RFC 6902) with JSON pointers (RFC 6901); what to patch is decided elsewhere."""

from typing import Any, TypeAlias

from services.common.domain.spec_patch import pointer_segment

Op: TypeAlias = dict[str, Any]


def pointer(*segments: str | int) -> str:
    """The JSON pointer to what stands under these keys and indices.

    >>> pointer("metadata", "annotations", "hotnic.io/a~b")
    '/metadata/annotations/hotnic.io~1a~0b'
    """
    return "".join("/" + pointer_segment(str(segment)) for segment in segments)


def test(path: str, value: Any) -> Op:
    """Apply the patch only if this value stands there. ``None`` also holds where nothing stands, as upstream has it."""
    return {"op": "test", "path": path, "value": value}


def add(path: str, value: Any) -> Op:
    """Set a member (replacing it), or insert into a list (``-``: at its end). What it stands in must exist."""
    return {"op": "add", "path": path, "value": value}


def replace(path: str, value: Any) -> Op:
    """Set what must exist already."""
    return {"op": "replace", "path": path, "value": value}


def remove(path: str) -> Op:
    """Take away what must exist."""
    return {"op": "remove", "path": path}


def is_guarded(ops: Any) -> bool:
    """Whether a patch holds a ``test``."""
    return any(op.get("op") == "test" for op in ops)
