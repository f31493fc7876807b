"""Copies the docstrings of msgspec structs into their JSON Schemas: one description per type and per property.

The first part of a docstring describes the type, ``:ivar name: …`` describes a field.
"""

import inspect
import re
from typing import Any

import msgspec

_FIELD = re.compile(r":ivar (\w+): ((?:(?!:ivar ).)*)", re.DOTALL)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


def describe(definitions: dict[str, Any], kind: Any) -> None:
    """Add descriptions to the JSON Schemas of all structs and enums that a type refers to.

    :param definitions: JSON Schemas by type name; changed in place.
    """
    for part in _referenced_types(msgspec.inspect.type_info(kind)):
        schema = definitions.get(part.__name__)
        if schema is None:
            continue
        text = inspect.cleandoc(part.__doc__ or "")
        schema["description"] = _plain(_FIELD.sub("", text))
        names = _encoded_names(part)
        for field, meaning in _FIELD.findall(text):
            if field in names:
                schema["properties"][names[field]]["description"] = _plain(meaning)
        # Encoders omit null fields, so "default": null would describe a value that is never sent.
        for property_schema in schema.get("properties", {}).values():
            if property_schema.get("default", ...) is None:
                del property_schema["default"]


def _encoded_names(kind: type) -> dict[str, str]:
    if not issubclass(kind, msgspec.Struct):
        return {}
    return dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))


def _plain(text: str) -> str:
    """Return reStructuredText as one plain paragraph."""
    return " ".join(_ROLE.sub(r"`\1`", text).replace("``", "`").split()).rstrip(";")


def _referenced_types(info: Any, seen: dict[type, None] | None = None) -> list[type]:
    """Return the structs and enums that a type refers to, each once."""
    found: dict[type, None] = {} if seen is None else seen
    if isinstance(info, msgspec.inspect.StructType | msgspec.inspect.EnumType):
        if info.cls in found:
            return list(found)
        found[info.cls] = None
    for field in getattr(info, "fields", ()):
        _referenced_types(field.type, found)
    for name in ("item_type", "value_type", "key_type"):
        if (inner := getattr(info, name, None)) is not None:
            _referenced_types(inner, found)
    for inner in getattr(info, "types", ()):
        _referenced_types(inner, found)
    return list(found)
