"""Field sets in the `FieldsV1` form, and the operations of server-side apply on them.

A set is a tree of dictionaries: `f:NAME` is a field, `k:{"key":value}` a list item identified by its keys, `v:VALUE` a
member of a set, and `.` the item itself (sigs.k8s.io/structured-merge-diff). A list without keys is one value. The
keys come from the schema, for built-in kinds from the merge keys of `strategic.py`.
"""

from __future__ import annotations

import json
from typing import Any

from lab.apiserver.errors import Object
from lab.apiserver.registry.schema import Schema
from lab.apiserver.rest.strategic import PRIMITIVE_SETS, merge_key

FieldSet = dict[str, Any]
Path = tuple[str, ...]


def _child(schema: Schema | None, name: str) -> Schema | None:
    return None if schema is None else schema.properties.get(name, schema.additional)


def _list_keys(name: str, items: list[Any], schema: Schema | None) -> tuple[str, ...] | None:
    """Return the keys of a list's items, () for a set of plain values, or None for a list that is one value."""
    if schema is not None and schema.merge_list:
        return schema.list_keys
    # A CRD's list without a list type is atomic by default; the table of merge keys is for built-in kinds only.
    if schema is not None and (schema.atomic or schema.raw):
        return None
    if name in PRIMITIVE_SETS:
        return ()
    key = merge_key(name, items)
    return (key,) if key else None


def _item_key(item: Any, keys: tuple[str, ...]) -> str:
    if not keys:
        return "v:" + json.dumps(item, separators=(",", ":"))
    return "k:" + json.dumps({key: item.get(key) for key in sorted(keys)}, separators=(",", ":"))


def fields_of(value: Object, schema: Schema | None) -> FieldSet:
    """Return the set of all fields that a configuration sets."""
    found: FieldSet = {}
    for name, item in value.items():
        sub = _child(schema, name)
        if isinstance(item, dict) and not (sub is not None and sub.atomic):
            found[f"f:{name}"] = fields_of(item, sub)
        elif isinstance(item, list):
            found[f"f:{name}"] = _fields_of_list(name, item, sub)
        else:
            found[f"f:{name}"] = {}
    return found


def _fields_of_list(name: str, items: list[Any], schema: Schema | None) -> FieldSet:
    keys = _list_keys(name, items, schema)
    if keys is None:
        return {}
    inner = schema.items if schema is not None else None
    found: FieldSet = {}
    for item in items:
        found[_item_key(item, keys)] = {".": {}, **fields_of(item, inner)} if keys else {}
    return found


def merge_applied(live: Any, config: Any, schema: Schema | None, name: str = "") -> Any:
    """Merge the configuration into the live object and return the result."""
    if isinstance(config, dict) and isinstance(live, dict) and not (schema is not None and schema.atomic):
        for field, value in config.items():
            live[field] = merge_applied(live.get(field), value, _child(schema, field), field)
        return live
    if isinstance(config, list) and isinstance(live, list):
        # The key must fit the items of both lists, or the list is replaced.
        keys = _list_keys(name, [*live, *config], schema)
        if keys is not None:
            return _merge_items(live, config, keys, schema.items if schema is not None else None)
    return config


def _merge_items(live: list[Any], config: list[Any], keys: tuple[str, ...], schema: Schema | None) -> list[Any]:
    """Return the configuration's items in their order, then the items that only the live list has."""
    left = {_item_key(item, keys): item for item in live}
    merged = []
    for item in config:
        before = left.pop(_item_key(item, keys), None)
        merged.append(item if before is None else merge_applied(before, item, schema))
    return [*merged, *left.values()]


def _child_value(value: Any, token: str) -> Any:
    """Return the value under one token of a field set, or None."""
    kind, _, rest = token.partition(":")
    if kind == "f":
        return value.get(rest) if isinstance(value, dict) else None
    if not isinstance(value, list):
        return None
    expected = json.loads(rest)
    if kind == "v":
        return expected if expected in value else None
    return next((item for item in value if isinstance(item, dict) and _matches(item, expected)), None)


def _matches(item: Object, keys: Object) -> bool:
    return all(item.get(key) == value for key, value in keys.items())


def overlap(own: FieldSet, other: FieldSet, config: Any, live: Any, at: Path = ()) -> list[Path]:
    """Return the fields that both sets contain and that the configuration would change."""
    found: list[Path] = []
    for token in own.keys() & other.keys() - {"."}:
        new, old = _child_value(config, token), _child_value(live, token)
        field_path = (*at, token)
        if own[token] and other[token]:
            found += overlap(own[token], other[token], new, old, field_path)
        elif new != old:
            found.append(field_path)
    return sorted(found)


def subtract(fields: FieldSet, paths: list[Path]) -> FieldSet:
    """Return the set without the given fields."""
    left = dict(fields)
    for path in paths:
        head, tail = path[0], path[1:]
        if head not in left:
            continue
        if tail and left[head]:
            left[head] = subtract(left[head], [tail])
        else:
            del left[head]
    return left


def remove_fields(live: Any, before: FieldSet, retained: list[FieldSet]) -> None:
    """Remove, in place, the fields of `before` that none of the sets in `retained` contains."""
    for token, inner in before.items():
        if token == ".":
            continue
        retaining = [field_set[token] for field_set in retained if token in field_set]
        if retaining:
            child = _child_value(live, token)
            if inner and child is not None:
                remove_fields(child, inner, retaining)
            continue
        _remove_field(live, token)


def _remove_field(live: Any, token: str) -> None:
    kind, _, rest = token.partition(":")
    if kind == "f" and isinstance(live, dict):
        live.pop(rest, None)
    elif isinstance(live, list):
        expected = json.loads(rest)
        if kind == "v":
            live[:] = [item for item in live if item != expected]
        else:
            live[:] = [item for item in live if not (isinstance(item, dict) and _matches(item, expected))]


def path_text(path: Path) -> str:
    """Return a path in upstream's notation: `.spec.containers[name="a"].image`."""
    text = ""
    for token in path:
        kind, _, rest = token.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "v":
            text += f"[={rest}]"
        else:
            text += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(rest).items()) + "]"
    return text
