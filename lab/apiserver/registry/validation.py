"""Validation by structural schemas, with the messages of upstream's validators.

`validate` returns every violation as a cause of one 422. CEL rules (`x-kubernetes-validations`) and `format` are not
evaluated.
"""

from __future__ import annotations

import json
from typing import Any

from lab.apiserver.errors import FieldError, Object
from lab.apiserver.registry.schema import FieldPath, Schema, path_text

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def validate(value: Any, schema: Schema) -> list[FieldError]:
    """Return every violation of the schema, as causes of an `Invalid` Status."""
    causes: list[FieldError] = []
    _check(value, schema, None, causes)
    return causes


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"))
    return json.dumps(value)


def _type_name(value: Any) -> str:
    for name in ("boolean", "object", "array", "string", "integer", "number"):
        if isinstance(value, _PYTHON_TYPES[name]):
            return name
    return "null"


def _has_type(value: Any, expected: str) -> bool:
    if isinstance(value, bool):
        return expected == "boolean"
    if expected == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _PYTHON_TYPES.get(expected, (object,)))


def _check(value: Any, schema: Schema, path: FieldPath, causes: list[FieldError]) -> None:
    if value is None and schema.nullable:
        return
    if schema.int_or_string:
        if not isinstance(value, int | str) or isinstance(value, bool):
            causes.append(_wrong_type(value, "integer,string", path))
        return
    if schema.type and not _has_type(value, schema.type):
        causes.append(_wrong_type(value, schema.type, path))
        return
    if schema.constrained:
        _check_rules(value, schema, path, causes)
    if isinstance(value, dict):
        properties, additional = schema.properties, schema.additional
        causes += (
            FieldError("FieldValueRequired", "Required value", path_text((path, name)))
            for name in schema.required
            if name not in value
        )
        for name, item in value.items():
            sub = properties.get(name, additional)
            if sub is not None:
                _check(item, sub, (path, name), causes)
    elif isinstance(value, list) and schema.items is not None:
        for index, item in enumerate(value):
            _check(item, schema.items, (path, index), causes)
        if schema.merge_list:
            _check_duplicates(value, schema, path, causes)


def _wrong_type(value: Any, expected: str, path: FieldPath) -> FieldError:
    kind, field = _type_name(value), path_text(path)
    message = f'Invalid value: "{kind}": {field} in body must be of type {expected}: "{kind}"'
    return FieldError("FieldValueTypeInvalid", message, field)


def _broken(value: Any, path: FieldPath, rule: str) -> FieldError:
    field = path_text(path)
    return FieldError("FieldValueInvalid", f"Invalid value: {_shown(value)}: {field} in body should {rule}", field)


def _check_rules(value: Any, schema: Schema, path: FieldPath, causes: list[FieldError]) -> None:
    if schema.enum and value not in schema.enum:
        choices = ", ".join(_shown(choice) for choice in schema.enum)
        message = f"Unsupported value: {_shown(value)}: supported values: {choices}"
        causes.append(FieldError("FieldValueNotSupported", message, path_text(path)))
    bounds = schema.bounds
    if isinstance(value, str):
        if schema.pattern is not None and schema.pattern.search(value) is None:
            causes.append(_broken(value, path, f"match '{schema.pattern.pattern}'"))
        if len(value) < bounds.get("minLength", 0):
            causes.append(_broken(value, path, f"be at least {bounds['minLength']} chars long"))
        if len(value) > bounds.get("maxLength", len(value)):
            message = f"Too long: may not be more than {bounds['maxLength']} bytes"
            causes.append(FieldError("FieldValueTooLong", message, path_text(path)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(value, bounds, path, causes)
    elif isinstance(value, list | dict):
        low, high, unit = (
            ("minItems", "maxItems", "items")
            if isinstance(value, list)
            else ("minProperties", "maxProperties", "properties")
        )
        if len(value) < bounds.get(low, 0):
            causes.append(_broken(value, path, f"have at least {bounds[low]} {unit}"))
        if len(value) > bounds.get(high, len(value)):
            message = f"Too many: {len(value)}: must have at most {bounds[high]} items"
            causes.append(FieldError("FieldValueTooMany", message, path_text(path)))
    _check_combined(value, schema, path, causes)


def _check_number(value: float, bounds: Object, path: FieldPath, causes: list[FieldError]) -> None:
    if "minimum" in bounds:
        low = bounds["minimum"]
        if bounds.get("exclusiveMinimum") and value <= low:
            causes.append(_broken(value, path, f"be greater than {low}"))
        elif value < low:
            causes.append(_broken(value, path, f"be greater than or equal to {low}"))
    if "maximum" in bounds:
        high = bounds["maximum"]
        if bounds.get("exclusiveMaximum") and value >= high:
            causes.append(_broken(value, path, f"be less than {high}"))
        elif value > high:
            causes.append(_broken(value, path, f"be less than or equal to {high}"))
    if "multipleOf" in bounds and value % bounds["multipleOf"]:
        causes.append(_broken(value, path, f"be a multiple of {bounds['multipleOf']}"))


def _check_combined(value: Any, schema: Schema, path: FieldPath, causes: list[FieldError]) -> None:
    for sub in schema.all_of:
        _check(value, sub, path, causes)
    if schema.any_of and all(validate(value, sub) for sub in schema.any_of):
        causes.append(_not_valid(value, path, "must validate at least one schema (anyOf)"))
    if schema.one_of and sum(not validate(value, sub) for sub in schema.one_of) != 1:
        causes.append(_not_valid(value, path, "must validate one and only one schema (oneOf)"))
    if schema.negated is not None and not validate(value, schema.negated):
        causes.append(_not_valid(value, path, "must not validate the schema (not)"))


def _not_valid(value: Any, path: FieldPath, rule: str) -> FieldError:
    field = path_text(path)
    shown = field or '""'
    return FieldError("FieldValueInvalid", f"Invalid value: {_shown(value)}: {shown} {rule}", field)


def _check_duplicates(value: list[Any], schema: Schema, path: FieldPath, causes: list[FieldError]) -> None:
    seen: set[str] = set()
    for index, item in enumerate(value):
        key = item
        if schema.list_keys and isinstance(item, dict):
            key = {name: item.get(name) for name in schema.list_keys}
        shown = _shown(key)
        if shown in seen:
            causes.append(FieldError("FieldValueDuplicate", f"Duplicate value: {shown}", path_text((path, index))))
        seen.add(shown)
