"""Puts the documentation of our structs into their JSON Schemas: one text per type, one per property.

Docstrings are the source: their first part describes the type, ``:ivar name: …`` a field.
"""

import inspect
import re
from typing import Any

import msgspec

_FIELD = re.compile(r":ivar (\w+): ((?:(?!:ivar ).)*)", re.DOTALL)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


def describe(definitions: dict[str, Any], kind: Any) -> None:
    """Describe the definitions of all structs and enums that a type is made of.

    :param definitions: JSON Schemas by name of type; changed in place.
    """
    for part in _parts(msgspec.inspect.type_info(kind)):
        schema = definitions.get(part.__name__)
        if schema is None:
            continue
        text = inspect.cleandoc(part.__doc__ or "")
        schema["description"] = _plain(_FIELD.sub("", text))
        names = _wire_names(part)
        for field, meaning in _FIELD.findall(text):
            if field in names:
                schema["properties"][names[field]]["description"] = _plain(meaning)
        # Defaults are what a reader assumes, not what a writer must send.
        for name in schema.get("properties", {}).values():
            if name.get("default", ...) is None:
                del name["default"]


def _wire_names(kind: type) -> dict[str, str]:
    if not issubclass(kind, msgspec.Struct):
        return {}
    return dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))


def _plain(text: str) -> str:
    """reStructuredText as one plain paragraph."""
    return " ".join(_ROLE.sub(r"`\1`", text).replace("``", "`").split()).rstrip(";")


def _parts(info: Any, seen: dict[type, None] | None = None) -> list[type]:
    """The structs and enums in a type, each once."""
    found: dict[type, None] = {} if seen is None else seen
    if isinstance(info, msgspec.inspect.StructType | msgspec.inspect.EnumType):
        if info.cls in found:
            return list(found)
        found[info.cls] = None
    for field in getattr(info, "fields", ()):
        _parts(field.type, found)
    for name in ("item_type", "value_type", "key_type"):
        if (inner := getattr(info, name, None)) is not None:
            _parts(inner, found)
    for inner in getattr(info, "types", ()):
        _parts(inner, found)
    return list(found)
