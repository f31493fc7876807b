"""Strategic merge patch: a merge patch that merges lists of objects by a key.

A table by field name gives the merge key (upstream has `patchMergeKey` tags on Go types; among the kinds served here,
no two fields of one name disagree). `$patch: delete|replace|merge`, `$retainKeys` and `$deleteFromPrimitiveList` are
implemented; `$setElementOrder` is ignored and new items are appended.
"""

from __future__ import annotations

from typing import Any

from lab.apiserver.errors import Object, bad_request

MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey",),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
    "addresses": ("type",),
    "ports": ("containerPort", "port"),
    "secrets": ("name",),
    "resourceClaims": ("name",),
    "podIPs": ("ip",),
    "hostIPs": ("ip",),
    "taints": ("key",),
}
"""Merge keys by list field; where there are two, the key that the items have applies."""

PRIMITIVE_SETS = frozenset({"finalizers", "podCIDRs"})
"""Lists of strings that are merged as sets."""


def strategic_merge(document: Any, patch: Any) -> Any:
    """Merge the patch into the document, in place, and return it.

    :raises ApiError: 400 for an invalid patch.
    """
    if not isinstance(patch, dict):
        raise bad_request("error decoding patch: json: cannot unmarshal into map[string]interface {}")
    return _merge_map(document, patch)


def _merge_map(target: Object, patch: Object) -> Object:
    directive = patch.get("$patch")
    if directive == "replace":
        return {name: value for name, value in patch.items() if name != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise bad_request(f"Unknown patch type found: {directive}")
    retain = patch.get("$retainKeys")
    if isinstance(retain, list):
        for name in [name for name in target if name not in retain]:
            del target[name]
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            target[field] = [item for item in target.get(field) or [] if item not in value]
        elif name.startswith("$"):
            continue
        elif value is None:
            target.pop(name, None)
        elif isinstance(value, dict):
            before = target.get(name)
            target[name] = _merge_map(before if isinstance(before, dict) else {}, value)
        elif isinstance(value, list):
            target[name] = _merge_list(name, target.get(name) or [], value)
        else:
            target[name] = value
    return target


def merge_key(field: str, items: list[Any]) -> str | None:
    """Return the key by which the items of a list field are merged, or None where the list is replaced as a whole."""
    for key in MERGE_KEYS.get(field, ()):
        if all(isinstance(item, dict) and (key in item or "$patch" in item) for item in items):
            return key
    return None


def _merge_list(field: str, target: list[Any], patch: list[Any]) -> list[Any]:
    if field in PRIMITIVE_SETS:
        return target + [item for item in patch if item not in target]
    key = merge_key(field, patch)
    if key is None:
        if field in MERGE_KEYS and patch:
            raise bad_request(f"map does not contain declared merge key: {MERGE_KEYS[field][0]}")
        return _without_directives(patch)
    if any(item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if item.get("$patch") != "replace"]
    merged = list(target)
    for item in patch:
        at = next((i for i, old in enumerate(merged) if old.get(key) == item.get(key)), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del merged[at]
        elif at is None:
            merged.append(_merge_map({}, item))
        else:
            merged[at] = _merge_map(merged[at], item)
    return merged


def _without_directives(items: list[Any]) -> list[Any]:
    return [_merge_map({}, item) if isinstance(item, dict) else item for item in items]
