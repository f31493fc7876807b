"""Server-side apply: the verb, and the merge by field managers.

The applied configuration is merged into the object. Fields that the same manager applied before and now leaves out
are removed, unless another manager applied them too. A field that another *apply* manager owns with another value is
a conflict unless forced. Other verbs own no fields here, which is the one difference from upstream that users can see.
`fieldsets.py` implements field sets and their operations.
"""

from __future__ import annotations

from typing import Any

from lab.apiserver.endpoints.request import ResourceTarget
from lab.apiserver.errors import FieldError, Object, apply_conflict, bad_request, invalid
from lab.apiserver.registry import metadata as meta
from lab.apiserver.rest.fieldsets import FieldSet, fields_of, merge_applied, overlap, path_text, remove_fields, subtract
from lab.apiserver.rest.verbs import Rest, RestCall
from lab.apiserver.storage.store import StoredObject

_NOT_OWNED = ("apiVersion", "kind")
_NOT_OWNED_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation", "selfLink")


def server_side_apply(rest: Rest, call: RestCall, config: Any) -> tuple[StoredObject, bool]:
    """Apply a configuration; return the object and whether it was created.

    :raises ApiError: 400, 409 or 422.
    """
    manager, options = call.options.manager, call.options
    if not manager:
        message = "Required value: is required for apply patch"
        raise invalid("meta.k8s.io", "PatchOptions", "", [FieldError("FieldValueRequired", message, "fieldManager")])
    if not isinstance(config, dict):
        raise bad_request("error decoding patch: expected an object")
    # The server computes managedFields; a client that sends them back, as in a copied object, is rejected as upstream
    # does.
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
            raise call.not_found_error()
        metadata["managedFields"] = [_entry(manager, call, applied)]
        target = call.target
        collection = ResourceTarget(target.group, target.version, target.plural, target.namespace)
        return rest.create(RestCall(call.resource, collection, options, call.warnings, call.user), config), True
    return _apply_to(rest, call, stored, config, applied), False


def _apply_to(rest: Rest, call: RestCall, stored: StoredObject, config: Object, applied: FieldSet) -> StoredObject:
    manager = call.options.manager
    schema = call.resource.schema
    entries: list[Object] = list(stored.obj["metadata"].get("managedFields") or [])
    own_entry = next((entry for entry in entries if _is(entry, manager, call)), None)
    # Entries of other operations than Apply (from an object that was created elsewhere) own nothing here.
    others = [e for e in entries if e is not own_entry and e.get("operation") == "Apply" and e.get("fieldsType")]
    conflicts: list[tuple[str, str]] = []
    remaining: list[Object] = [entry for entry in entries if entry is not own_entry and entry not in others]
    for entry in others:
        differing = overlap(applied, entry["fieldsV1"], config, stored.obj)
        conflicts += [(entry["manager"], path_text(path)) for path in differing]
        if differing:
            # A forced apply takes these fields over from their former manager.
            entry = {**entry, "fieldsV1": subtract(entry["fieldsV1"], differing)}
        remaining.append(entry)
    if conflicts and not call.options.flag("force"):
        raise apply_conflict(conflicts)
    obj = stored.copy(call.resource)
    if own_entry is not None:
        remove_fields(obj, own_entry["fieldsV1"], [applied, *(entry["fieldsV1"] for entry in others)])
    obj = merge_applied(obj, config, schema)
    entry = _entry(manager, call, applied)
    # An apply without a change must not change the time, or every apply would write the object.
    if own_entry is not None and own_entry["fieldsV1"] == applied:
        entry["time"] = own_entry["time"]
    obj["metadata"]["managedFields"] = [*remaining, entry]
    return rest.update(call, stored, obj)


def _owned_part(config: Object, call: RestCall) -> FieldSet:
    """Return the fields that an apply owns: all of the configuration except the object's identity."""
    owned = {name: value for name, value in config.items() if name not in _NOT_OWNED}
    owned["metadata"] = {k: v for k, v in config["metadata"].items() if k not in _NOT_OWNED_METADATA}
    if not owned["metadata"]:
        del owned["metadata"]
    return fields_of(owned, call.resource.schema)


def _is(entry: Object, manager: str, call: RestCall) -> bool:
    return (
        entry.get("operation") == "Apply"
        and entry.get("manager") == manager
        and entry.get("subresource", "") == call.target.subresource
    )


def _entry(manager: str, call: RestCall, applied: FieldSet) -> Object:
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
