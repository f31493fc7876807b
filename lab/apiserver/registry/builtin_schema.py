"""Schemas of the built-in kinds, taken from the models of the Kubernetes client library.

The generated models of `kubernetes_asyncio` contain every field and type of the API as plain dictionaries. Their files
are read as text and not imported: importing all of them costs half a second and 70 MB, reading the few dozen that one
kind needs costs a few milliseconds, once. A kind without a model has no schema and is not validated.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from lab.apiserver.registry.resources import ServedResource
from lab.apiserver.registry.schema import Schema

_TYPES = re.compile(r"^    openapi_types = (\{.*?^    \})", re.MULTILINE | re.DOTALL)
_NAMES = re.compile(r"^    attribute_map = (\{.*?^    \})", re.MULTILINE | re.DOTALL)
_DOCS = re.compile(
    r"^    def (\w+)\(self\):\n        \"\"\"Gets the .*?# noqa: E501\n\n        (.*?)  # noqa: E501\n", re.M
)
_REQUIRED = re.compile(
    r"^        if self\.local_vars_configuration\.client_side_validation and (\w+) is None:", re.MULTILINE
)
_PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "datetime": "string"}


@cache
def _folder() -> Path | None:
    spec = importlib.util.find_spec("kubernetes_asyncio")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "client" / "models"


@dataclass(frozen=True, slots=True)
class Model:
    """One API type.

    :ivar fields: type and description by JSON name.
    :ivar required: JSON names of the required fields.
    """

    fields: dict[str, tuple[str, str]]
    required: tuple[str, ...]
    description: str


@cache
def model(name: str) -> Model | None:
    """Return the model of a class such as `V1PodSpec`, or None when the library has none."""
    folder = _folder()
    if folder is None:
        return None
    try:
        text = (folder / f"{_file_name(name)}.py").read_text()
    except OSError:
        return None
    types, names = _TYPES.search(text), _NAMES.search(text)
    if types is None or names is None:
        return None
    json_names: dict[str, str] = ast.literal_eval(names[1])
    docs = {field: text.replace('\\"', '"') for field, text in _DOCS.findall(text)}
    return Model(
        {json_names[field]: (kind, docs.get(field, "")) for field, kind in ast.literal_eval(types[1]).items()},
        tuple(json_names[field] for field in _REQUIRED.findall(text)),
        "",
    )


def _file_name(name: str) -> str:
    spaced = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", spaced).lower()


def model_name(resource: ServedResource) -> str:
    """Return the name of the class that models a built-in kind."""
    return "CoreV1Event" if resource.kind == "Event" else f"V1{resource.kind}"


_compiled: dict[str, Schema] = {}
_resources: dict[str, ServedResource] = {}
_QUANTITIES = frozenset({"limits", "requests", "capacity", "allocatable", "overhead"})


def with_schema(resource: ServedResource) -> ServedResource:
    """Return the resource with its schema; custom resources have theirs already, unknown kinds have none."""
    if resource.crd:
        return resource
    found = _resources.get(resource.storage_key)
    if found is None:
        name = model_name(resource)
        found = replace(resource, schema=_compile(name)) if model(name) is not None else resource
        _resources[resource.storage_key] = found
    return found


def _compile(name: str) -> Schema:
    """Return the schema of a class.

    Types refer to each other in cycles, so a node is registered before its fields are compiled.
    """
    known = _compiled.get(name)
    if known is not None:
        return known
    # Go decodes null into a zero value, so every field of a built-in kind may be null.
    schema = _compiled[name] = Schema(type="object", nullable=True)
    found = model(name)
    if found is None:
        schema.type, schema.open = "", True
        return schema
    for field, (kind, _) in found.fields.items():
        # The models declare quantities as strings, but the API also accepts numbers.
        if field in _QUANTITIES and kind == "dict(str, str)":
            quantity = Schema(int_or_string=True, nullable=True)
            schema.properties[field] = Schema(type="object", additional=quantity, nullable=True)
        else:
            schema.properties[field] = _of_type(kind)
    return schema


def _of_type(kind: str) -> Schema:
    """Return the schema of a type in the models' notation: `str`, `list[V1Container]`, `dict(str, str)`, `object`, …"""
    if kind in _PLAIN:
        return Schema(type=_PLAIN[kind], nullable=True)
    if kind.startswith("list["):
        return Schema(type="array", items=_of_type(kind[5:-1]), nullable=True)
    if kind.startswith("dict("):
        inner = kind[5:-1].partition(", ")[2]
        return Schema(type="object", additional=_of_type(inner), nullable=True)
    if kind == "object":
        return Schema(open=True, nullable=True)
    return _compile(kind)
