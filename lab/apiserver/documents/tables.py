"""Tables (`as=Table`), which `kubectl get` prints.

Columns of CRDs come from their `additionalPrinterColumns`, those of built-in kinds from `printers.py`; other resources
have a default set.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from lab.apiserver.documents.jsonpath import compile_path
from lab.apiserver.documents.printers import AGE, BUILTIN_COLUMNS, NAME, PrintColumn, age
from lab.apiserver.errors import Object
from lab.apiserver.registry.resources import CrdColumn, ServedResource
from lab.apiserver.storage.store import StoredObject


@dataclass(frozen=True, slots=True)
class TablePrinter:
    """The form of one request's table.

    :ivar include: `None`, `Metadata` or `Object`.
    """

    resource: ServedResource
    version: str
    include: str

    def table(self, objects: Iterable[StoredObject], metadata: Object, *, columns: bool = True) -> Object:
        """Return a table; in a watch, only the first event has column definitions."""
        printed = columns_of(self.resource)
        now = dt.datetime.now(dt.UTC)
        return {
            "kind": "Table",
            "apiVersion": f"meta.k8s.io/{self.version}",
            "metadata": metadata,
            "columnDefinitions": [column.to_object() for column in printed] if columns else None,
            "rows": [self._row(stored, printed, now) for stored in objects],
        }

    def _row(self, stored: StoredObject, columns: tuple[PrintColumn, ...], now: dt.datetime) -> Object:
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


def partial(stored: StoredObject, version: str) -> Object:
    """Return the object's metadata as `PartialObjectMetadata`."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": stored.obj["metadata"],
    }


@cache
def _custom(columns: tuple[CrdColumn, ...]) -> tuple[PrintColumn, ...]:
    printed = (
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
    return (NAME, *printed)


def columns_of(resource: ServedResource) -> tuple[PrintColumn, ...]:
    """Return the printer columns of a resource; NAME and AGE by default."""
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
