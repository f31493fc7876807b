"""JSON patch (RFC 6902) and JSON merge patch (RFC 7386), as the API server applies them.

The document is changed in place, so pass a private copy. Where the RFC leaves a choice, the behaviour is that of
evanphx/json-patch v4, the library in kube-apiserver: negative indices count from the end, `test` of a missing value
succeeds against null, and `add` needs an existing parent. `strategic.py` implements the strategic merge patch.
"""

from __future__ import annotations

import copy
from typing import Any

from lab.apiserver.errors import Object, bad_request, too_large

MAX_OPERATIONS = 10_000
"""kube-apiserver's limit."""


class PatchFailed(Exception):
    """A well-formed patch does not apply to this document (422); the message names the operation and the reason."""


def apply_json_patch(document: Any, operations: Any) -> Any:
    """Apply all operations and return the document.

    :raises ApiError: 400 for a malformed patch, 413 for too many operations.
    :raises PatchFailed: an operation does not apply.
    """
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    if len(operations) > MAX_OPERATIONS:
        raise too_large(f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}")
    for operation in operations:
        document = _apply_one(document, operation)
    return document


def _apply_one(document: Any, operation: Any) -> Any:
    if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
        raise bad_request("json patch operation without a path")
    kind, path = operation.get("op"), operation["path"]
    if kind == "test":
        _test(document, path, operation.get("value"))
        return document
    if kind == "add":
        return _add(document, path, operation.get("value"))
    if kind == "remove":
        _remove(document, path, "remove")
        return document
    if kind == "replace":
        if path == "":
            return operation.get("value")
        parent, key = _parent(document, path, "replace")
        if isinstance(parent, dict):
            # RFC 6902 requires that the key exists; kube-apiserver's library adds a missing one.
            parent[key] = operation.get("value")
        else:
            parent[_index(parent, key, path, "replace")] = operation.get("value")
        return document
    if kind in ("move", "copy"):
        source = operation.get("from")
        if not isinstance(source, str):
            raise bad_request(f"json patch operation {kind} without from")
        if kind == "move":
            # RFC 6902, section 4.4: a location cannot be moved into one of its children.
            if path.startswith(source + "/"):
                raise PatchFailed(f"move operation does not apply: {path} lies inside {source}")
            return _add(document, path, _remove(document, source, "move"))
        found = _lookup(document, source)
        if found is _MISSING:
            parent, key = _parent(document, source, "copy")
            # As for `replace`: a missing key is null. A missing index is an error.
            found = None if isinstance(parent, dict) else parent[_index(parent, key, source, "copy")]
        # Without a copy, a later operation on one location would also change the other.
        return _add(document, path, copy.deepcopy(found))
    raise PatchFailed(f"Unexpected kind: {kind}")


_MISSING = object()


def _tokens(path: str) -> list[str]:
    if path == "":
        return []
    if not path.startswith("/"):
        raise PatchFailed(f"operation does not apply: doc is missing path: {path}: missing value")
    return [token.replace("~1", "/").replace("~0", "~") for token in path[1:].split("/")]


def _child_value(value: Any, token: str) -> Any:
    if isinstance(value, dict):
        return value.get(token, _MISSING)
    if isinstance(value, list):
        try:
            index = int(token)
            return value[index] if -len(value) <= index < len(value) else _MISSING
        except ValueError:
            return _MISSING
    return _MISSING


def _lookup(document: Any, path: str) -> Any:
    for token in _tokens(path):
        document = _child_value(document, token)
        if document is _MISSING:
            return _MISSING
    return document


def _parent(document: Any, path: str, kind: str) -> tuple[Any, str]:
    tokens = _tokens(path)
    for token in tokens[:-1]:
        document = _child_value(document, token)
    if not tokens or not isinstance(document, dict | list):
        raise PatchFailed(f"{kind} operation does not apply: doc is missing path: {path}: missing value")
    return document, tokens[-1]


def _index(array: list[Any], token: str, path: str, kind: str, *, end: int = 0) -> int:
    """Return the list index that a token means; `end` is 1 where the index after the last item is allowed."""
    try:
        index = int(token)
    except ValueError:
        raise PatchFailed(f"{kind} operation does not apply: {path}: not an array index") from None
    if index < 0:
        index += len(array) + end
    if not 0 <= index < len(array) + end:
        raise PatchFailed(f"{kind} operation does not apply: {path}: invalid index referenced")
    return index


def _same(left: Any, right: Any) -> bool:
    """Compare deeply; unlike Python's `==`, true and 1 differ."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _test(document: Any, path: str, value: Any) -> None:
    found = _lookup(document, path)
    if found is _MISSING:
        if value is None:
            return
        raise PatchFailed(f"testing value {path} failed: test failed: missing value")
    if not _same(found, value):
        raise PatchFailed(f"testing value {path} failed: test failed")


def _add(document: Any, path: str, value: Any) -> Any:
    if path == "":
        return value
    parent, key = _parent(document, path, "add")
    if isinstance(parent, dict):
        parent[key] = value
    elif key == "-":
        parent.append(value)
    else:
        parent.insert(_index(parent, key, path, "add", end=1), value)
    return document


def _remove(document: Any, path: str, kind: str) -> Any:
    parent, key = _parent(document, path, kind)
    if isinstance(parent, dict):
        if key not in parent:
            raise PatchFailed(f"{kind} operation does not apply: Unable to remove nonexistent key: {key}")
        return parent.pop(key)
    return parent.pop(_index(parent, key, path, kind))


def apply_merge_patch(document: Any, patch: Any) -> Any:
    """Apply a merge patch (RFC 7386): objects merge, null deletes, every other value replaces."""
    if not isinstance(patch, dict):
        return patch
    target: Object = document if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = apply_merge_patch(target.get(name), value)
    return target
