"""Schemas of the built-in kinds, read from the models that come with the Kubernetes client library.

The generated models of `kubernetes_asyncio` carry, as plain dictionaries, every field and type of the API. Their
files are read as text, not imported: importing them all costs half a second and 70 MB, reading the few dozen that
one kind needs a few milliseconds, once. Kinds without a model have no schema and are taken as they are.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from services.lab.apiserver.resources import Resource
from services.lab.apiserver.schema import Schema

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
    """One API type: its fields by JSON name as (type, description), and the required ones."""

    fields: dict[str, tuple[str, str]]
    required: tuple[str, ...]
    description: str


@cache
def model(name: str) -> Model | None:
    """The model of a class such as `V1PodSpec`; None when the library has none."""
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
    docs = {field: told.replace('\\"', '"') for field, told in _DOCS.findall(text)}
    return Model(
        {json_names[field]: (kind, docs.get(field, "")) for field, kind in ast.literal_eval(types[1]).items()},
        tuple(json_names[field] for field in _REQUIRED.findall(text)),
        "",
    )


def _file_name(name: str) -> str:
    spaced = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", spaced).lower()


def model_name(resource: Resource) -> str:
    """The class that models a built-in kind."""
    return "CoreV1Event" if resource.kind == "Event" else f"V1{resource.kind}"


_compiled: dict[str, Schema] = {}
_resources: dict[str, Resource] = {}
_QUANTITIES = frozenset({"limits", "requests", "capacity", "allocatable", "overhead"})


def with_schema(resource: Resource) -> Resource:
    """The resource with its schema; custom resources bring theirs, unknown kinds stay without."""
    if resource.crd:
        return resource
    found = _resources.get(resource.storage_key)
    if found is None:
        name = model_name(resource)
        found = replace(resource, schema=_compile(name)) if model(name) is not None else resource
        _resources[resource.storage_key] = found
    return found


def _compile(name: str) -> Schema:
    """The schema of a class. Types refer to each other in circles, so a node is known before it is filled."""
    known = _compiled.get(name)
    if known is not None:
        return known
    schema = _compiled[name] = Schema(type="object", nullable=True)
    found = model(name)
    if found is None:
        schema.type, schema.open = "", True
        return schema
    for field, (kind, _) in found.fields.items():
        if field in _QUANTITIES and kind == "dict(str, str)":
            quantity = Schema(int_or_string=True, nullable=True)
            schema.properties[field] = Schema(type="object", additional=quantity, nullable=True)
        else:
            schema.properties[field] = _of_type(kind)
    return schema


def _of_type(kind: str) -> Schema:
    """The schema of a type as the models spell it: `str`, `list[V1Container]`, `dict(str, str)`, `object`, …"""
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
