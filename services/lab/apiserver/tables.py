"""Tables (`as=Table`): what `kubectl get` prints, for built-in kinds, CRDs and everything else.

Columns of CRDs come from their `additionalPrinterColumns`, those of built-in kinds from `printers.py`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from services.lab.apiserver.errors import Object
from services.lab.apiserver.jsonpath import compile_path
from services.lab.apiserver.printers import AGE, BUILTIN_COLUMNS, NAME, PrintColumn, age
from services.lab.apiserver.resources import Column, Resource
from services.lab.apiserver.store import Stored


@dataclass(frozen=True, slots=True)
class TableForm:
    """How to draw one request's table; `include` is `None`, `Metadata` or `Object`."""

    resource: Resource
    version: str
    include: str

    def table(self, objects: Iterable[Stored], metadata: Object, *, columns: bool = True) -> Object:
        """The whole table; watch events leave the column definitions out after the first."""
        drawn = columns_of(self.resource)
        now = dt.datetime.now(dt.UTC)
        return {
            "kind": "Table",
            "apiVersion": f"meta.k8s.io/{self.version}",
            "metadata": metadata,
            "columnDefinitions": [column.to_object() for column in drawn] if columns else None,
            "rows": [self._row(stored, drawn, now) for stored in objects],
        }

    def _row(self, stored: Stored, columns: tuple[PrintColumn, ...], now: dt.datetime) -> Object:
        row: Object = {"cells": [column.cell(stored.obj, now) for column in columns]}
        if self.include == "Object":
            row["object"] = {
                "kind": self.resource.kind,
                "apiVersion": self.resource.group_version,
                **stored.obj,
            }
        elif self.include != "None":
            row["object"] = partial(stored, self.version)
        return row


def partial(stored: Stored, version: str) -> Object:
    """The object's metadata as `PartialObjectMetadata`."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": stored.obj["metadata"],
    }


@cache
def _custom(columns: tuple[Column, ...]) -> tuple[PrintColumn, ...]:
    drawn = (
        PrintColumn(
            column.name,
            _cell(column.path, column.type),
            column.type,
            column.format,
            column.description,
            column.priority,
        )
        for column in columns
    )
    return (NAME, *drawn)


def columns_of(resource: Resource) -> tuple[PrintColumn, ...]:
    """The columns of a resource; NAME and AGE where nothing better is known."""
    if resource.columns:
        return _custom(resource.columns)
    return BUILTIN_COLUMNS.get(resource.storage_key, (NAME, AGE))


def _cell(path: str, kind: str) -> Callable[[Object, dt.datetime], Any]:
    try:
        values = compile_path(path)
    except ValueError:
        return lambda obj, now: None

    def cell(obj: Object, now: dt.datetime) -> Any:
        found = values(obj)
        if not found or found[0] is None:
            return None
        if kind == "date":
            return age(found[0], now)
        if kind == "string":
            return ",".join(_text(value) for value in found)
        return found[0]

    return cell


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
