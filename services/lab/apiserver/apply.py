"""Server-side apply: the verb, and merging by managers.

The applied configuration is merged into the object; what the same manager applied before and leaves out now is
removed, unless another manager applied it too. A field that another *apply* manager holds with another value is a
conflict unless forced. Changes by other verbs own nothing here, the one difference to upstream that users can see.
Field sets and their operations are in `fieldsets.py`.
"""

from __future__ import annotations

from typing import Any

from services.lab.apiserver import metadata as meta
from services.lab.apiserver.errors import Cause, Object, apply_conflict, bad_request, invalid
from services.lab.apiserver.fieldsets import (
    FieldSet,
    fields_of,
    merge_applied,
    overlap,
    path_text,
    remove_fields,
    subtract,
)
from services.lab.apiserver.request import Target
from services.lab.apiserver.rest import Call, Rest
from services.lab.apiserver.store import Stored

_NOT_OWNED = ("apiVersion", "kind")
_NOT_OWNED_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation", "selfLink")


def server_side_apply(rest: Rest, call: Call, config: Any) -> tuple[Stored, bool]:
    """Apply a configuration; returns the object and whether it was created. Raises `ApiError` 400, 409, 422."""
    manager, options = call.options.manager, call.options
    if not manager:
        message = "Required value: is required for apply patch"
        raise invalid("meta.k8s.io", "PatchOptions", "", [Cause("FieldValueRequired", message, "fieldManager")])
    if not isinstance(config, dict):
        raise bad_request("error decoding patch: expected an object")
    metadata = meta.read_metadata(config)
    if metadata.get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    for name in ("apiVersion", "kind"):
        if not config.get(name):
            raise bad_request(f"Object '{name}' is missing in the request body")
    if metadata.setdefault("name", call.target.name) != call.target.name:
        raise bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({call.target.name})"
        )
    applied = _owned_part(config, call)
    stored = rest.store.get(call.resource.storage_key, call.target.namespace, call.target.name)
    if stored is None:
        if call.target.subresource or metadata.get("resourceVersion") or metadata.get("uid"):
            raise call.missing()
        metadata["managedFields"] = [_entry(manager, call, applied)]
        target = call.target
        collection = Target(target.group, target.version, target.plural, target.namespace)
        return rest.create(Call(call.resource, collection, options, call.warnings), config), True
    return _apply_to(rest, call, stored, config, applied), False


def _apply_to(rest: Rest, call: Call, stored: Stored, config: Object, applied: FieldSet) -> Stored:
    manager = call.options.manager
    schema = call.resource.schema
    entries: list[Object] = list(stored.obj["metadata"].get("managedFields") or [])
    mine = next((entry for entry in entries if _is(entry, manager, call)), None)
    others = [e for e in entries if e is not mine and e.get("operation") == "Apply" and e.get("fieldsType")]
    conflicts: list[tuple[str, str]] = []
    kept: list[Object] = [entry for entry in entries if entry is not mine and entry not in others]
    for entry in others:
        differing = overlap(applied, entry["fieldsV1"], config, stored.obj)
        conflicts += [(entry["manager"], path_text(path)) for path in differing]
        if differing:
            entry = {**entry, "fieldsV1": subtract(entry["fieldsV1"], differing)}
        kept.append(entry)
    if conflicts and not call.options.flag("force"):
        raise apply_conflict(conflicts)
    obj = stored.copy(call.resource)
    if mine is not None:
        remove_fields(obj, mine["fieldsV1"], [applied, *(entry["fieldsV1"] for entry in others)])
    obj = merge_applied(obj, config, schema)
    entry = _entry(manager, call, applied)
    if mine is not None and mine["fieldsV1"] == applied:
        entry["time"] = mine["time"]
    obj["metadata"]["managedFields"] = [*kept, entry]
    return rest.update(call, stored, obj)


def _owned_part(config: Object, call: Call) -> FieldSet:
    """The fields an apply sets: all of the configuration but the object's identity."""
    owned = {name: value for name, value in config.items() if name not in _NOT_OWNED}
    owned["metadata"] = {k: v for k, v in config["metadata"].items() if k not in _NOT_OWNED_METADATA}
    if not owned["metadata"]:
        del owned["metadata"]
    return fields_of(owned, call.resource.schema)


def _is(entry: Object, manager: str, call: Call) -> bool:
    return (
        entry.get("operation") == "Apply"
        and entry.get("manager") == manager
        and entry.get("subresource", "") == call.target.subresource
    )


def _entry(manager: str, call: Call, applied: FieldSet) -> Object:
    entry: Object = {
        "manager": manager,
        "operation": "Apply",
        "apiVersion": call.resource.group_version,
        "time": meta.now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": applied,
    }
    if call.target.subresource:
        entry["subresource"] = call.target.subresource
    return entry
