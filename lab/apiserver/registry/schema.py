"""Structural schemas: pruning and defaulting by a CRD's `openAPIV3Schema`.

A schema is compiled once into `Schema` nodes. `prune` removes unspecified fields, `fill_defaults` sets defaults.
Next: `validation.py`, which validates; `crd.py` and `builtin_schema.py` supply the schemas.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from lab.apiserver.errors import Object


@dataclass(slots=True)
class Schema:
    """A node of a compiled schema; its fields are named as in JSON schema."""

    type: str = ""
    properties: dict[str, Schema] = field(default_factory=dict)
    additional: Schema | None = None
    items: Schema | None = None
    open: bool = False
    embedded: bool = False
    int_or_string: bool = False
    nullable: bool = False
    required: tuple[str, ...] = ()
    enum: tuple[Any, ...] = ()
    pattern: re.Pattern[str] | None = None
    bounds: Object = field(default_factory=dict)
    default: Any = None
    has_default: bool = False
    list_keys: tuple[str, ...] = ()
    merge_list: bool = False
    atomic: bool = False
    all_of: tuple[Schema, ...] = ()
    any_of: tuple[Schema, ...] = ()
    one_of: tuple[Schema, ...] = ()
    negated: Schema | None = None
    constrained: bool = False
    defaulted: bool = False
    raw: Object = field(default_factory=dict)


_BOUNDS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "multipleOf",
)


def compile_schema(raw: Object) -> Schema:
    """Compile one `JSONSchemaProps`.

    :raises re.error: Python does not support a pattern.
    """
    additional = raw.get("additionalProperties")
    list_type = raw.get("x-kubernetes-list-type", "")
    schema = Schema(
        type=raw.get("type", ""),
        properties={name: compile_schema(sub) for name, sub in (raw.get("properties") or {}).items()},
        additional=compile_schema(additional) if isinstance(additional, dict) else None,
        items=compile_schema(raw["items"]) if isinstance(raw.get("items"), dict) else None,
        open=bool(raw.get("x-kubernetes-preserve-unknown-fields")) or additional is True,
        embedded=bool(raw.get("x-kubernetes-embedded-resource")),
        int_or_string=bool(raw.get("x-kubernetes-int-or-string")),
        nullable=bool(raw.get("nullable")),
        required=tuple(raw.get("required") or ()),
        enum=tuple(raw.get("enum") or ()),
        pattern=re.compile(raw["pattern"]) if raw.get("pattern") else None,
        bounds={name: raw[name] for name in _BOUNDS if name in raw},
        default=raw.get("default"),
        has_default="default" in raw,
        list_keys=tuple(raw.get("x-kubernetes-list-map-keys") or ()),
        merge_list=list_type in ("map", "set"),
        atomic=list_type == "atomic" or raw.get("x-kubernetes-map-type") == "atomic",
        all_of=tuple(compile_schema(sub) for sub in raw.get("allOf") or ()),
        any_of=tuple(compile_schema(sub) for sub in raw.get("anyOf") or ()),
        one_of=tuple(compile_schema(sub) for sub in raw.get("oneOf") or ()),
        negated=compile_schema(raw["not"]) if isinstance(raw.get("not"), dict) else None,
        raw=raw,
    )
    rules = (schema.enum, schema.pattern, schema.bounds, schema.all_of, schema.any_of, schema.one_of)
    schema.constrained = any(rules) or schema.negated is not None
    below = (*schema.properties.values(), schema.additional, schema.items)
    schema.defaulted = schema.has_default or any(sub is not None and sub.defaulted for sub in below)
    return schema


_TYPE_META = frozenset({"apiVersion", "kind", "metadata"})

FieldPath = tuple["FieldPath", str | int] | None
"""The path of a value: its parent's path and its own name or index. It becomes text only for a message."""


def path_text(path: FieldPath) -> str:
    """Return a path as text, such as `spec.containers[0].name`."""
    parts: list[str] = []
    while path is not None:
        path, step = path
        parts.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(parts)).removeprefix(".")


def prune(value: Any, schema: Schema, unknown: list[str]) -> None:
    """Remove, in place, every field that the schema does not specify; append their paths to `unknown`."""
    _prune(value, schema, unknown, None, root=True)


def _prune(value: Any, schema: Schema, unknown: list[str], path: FieldPath, *, root: bool = False) -> None:
    if isinstance(value, dict):
        # Schemas of CRDs need not specify the type metadata.
        keep = _TYPE_META if root or schema.embedded else ()
        removed: list[str] = []
        for name, item in value.items():
            sub = schema.properties.get(name)
            if sub is not None and not (root and name in _TYPE_META):
                if isinstance(item, dict | list):
                    _prune(item, sub, unknown, (path, name))
            elif name in keep:
                continue
            elif schema.additional is not None:
                _prune(item, schema.additional, unknown, (path, name))
            elif not schema.open:
                removed.append(name)
        for name in removed:
            del value[name]
            unknown.append(path_text((path, name)))
    elif isinstance(value, list) and schema.items is not None:
        for index, item in enumerate(value):
            _prune(item, schema.items, unknown, (path, index))


def fill_defaults(value: Any, schema: Schema) -> None:
    """Set defaults where a field is missing, or null without being nullable."""
    if not schema.defaulted:
        return
    if isinstance(value, dict):
        for name, sub in schema.properties.items():
            if sub.has_default and (name not in value or (value[name] is None and not sub.nullable)):
                # A copy, because the object may be changed later and the schema is shared.
                value[name] = json.loads(json.dumps(sub.default))
            if name in value:
                fill_defaults(value[name], sub)
        if schema.additional is not None:
            for name, item in value.items():
                if name not in schema.properties:
                    fill_defaults(item, schema.additional)
    elif isinstance(value, list) and schema.items is not None:
        for item in value:
            fill_defaults(item, schema.items)
