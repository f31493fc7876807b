"""Sets of fields in the `FieldsV1` form, and what server-side apply does with them.

A set is a tree of dictionaries: `f:NAME` for a field, `k:{"key":value}` for a list item found by its keys,
`v:VALUE` for a member of a set, `.` for the item itself (sigs.k8s.io/structured-merge-diff). Lists without keys
are one value. Keys come from the schema; for built-in kinds from the merge keys of `strategic.py`.
"""

from __future__ import annotations

import json
from typing import Any

from services.lab.apiserver.errors import Object
from services.lab.apiserver.schema import Schema
from services.lab.apiserver.strategic import PRIMITIVE_SETS, merge_key

FieldSet = dict[str, Any]
Path = tuple[str, ...]


def _child(schema: Schema | None, name: str) -> Schema | None:
    return None if schema is None else schema.properties.get(name, schema.additional)


def _list_keys(name: str, items: list[Any], schema: Schema | None) -> tuple[str, ...] | None:
    """The keys of a list of items; () for a set of plain values, None for a list that is one value."""
    if schema is not None and schema.merge_list:
        return schema.list_keys
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
    """The set of all fields that a configuration sets."""
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
    """The live object with the configuration laid over it."""
    if isinstance(config, dict) and isinstance(live, dict) and not (schema is not None and schema.atomic):
        for field, value in config.items():
            live[field] = merge_applied(live.get(field), value, _child(schema, field), field)
        return live
    if isinstance(config, list) and isinstance(live, list):
        keys = _list_keys(name, [*live, *config], schema)
        if keys is not None:
            return _merge_items(live, config, keys, schema.items if schema is not None else None)
    return config


def _merge_items(live: list[Any], config: list[Any], keys: tuple[str, ...], schema: Schema | None) -> list[Any]:
    """Items of the configuration first and in its order, then what only the live list has."""
    left = {_item_key(item, keys): item for item in live}
    merged = []
    for item in config:
        before = left.pop(_item_key(item, keys), None)
        merged.append(item if before is None else merge_applied(before, item, schema))
    return [*merged, *left.values()]


def _step(value: Any, token: str) -> Any:
    """The value under one token of a field set; None when there is none."""
    kind, _, rest = token.partition(":")
    if kind == "f":
        return value.get(rest) if isinstance(value, dict) else None
    if not isinstance(value, list):
        return None
    wanted = json.loads(rest)
    if kind == "v":
        return wanted if wanted in value else None
    return next((item for item in value if isinstance(item, dict) and _matches(item, wanted)), None)


def _matches(item: Object, keys: Object) -> bool:
    return all(item.get(key) == value for key, value in keys.items())


def overlap(mine: FieldSet, theirs: FieldSet, config: Any, live: Any, at: Path = ()) -> list[Path]:
    """Fields that both sets hold and that the configuration would change."""
    found: list[Path] = []
    for token in mine.keys() & theirs.keys() - {"."}:
        new, old = _step(config, token), _step(live, token)
        here = (*at, token)
        if mine[token] and theirs[token]:
            found += overlap(mine[token], theirs[token], new, old, here)
        elif new != old:
            found.append(here)
    return sorted(found)


def subtract(fields: FieldSet, paths: list[Path]) -> FieldSet:
    """The set without the given fields."""
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


def remove_fields(live: Any, before: FieldSet, keepers: list[FieldSet]) -> None:
    """Remove, in place, the fields of `before` that no keeper holds."""
    for token, inner in before.items():
        if token == ".":
            continue
        kept = [keeper[token] for keeper in keepers if token in keeper]
        if kept:
            child = _step(live, token)
            if inner and child is not None:
                remove_fields(child, inner, kept)
            continue
        _drop(live, token)


def _drop(live: Any, token: str) -> None:
    kind, _, rest = token.partition(":")
    if kind == "f" and isinstance(live, dict):
        live.pop(rest, None)
    elif isinstance(live, list):
        wanted = json.loads(rest)
        if kind == "v":
            live[:] = [item for item in live if item != wanted]
        else:
            live[:] = [item for item in live if not (isinstance(item, dict) and _matches(item, wanted))]


def path_text(path: Path) -> str:
    """`.spec.containers[name="a"].image`."""
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
