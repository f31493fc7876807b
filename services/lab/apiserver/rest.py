"""Create, read, update and patch: what every kind has in common.

Each verb is one synchronous function from request to stored object, so it is atomic. The order of checks is that
of k8s.io/apiserver's registry/generic/registry. Lists are in `listing.py`, deleting is in `deletion.py`, kinds' own
rules are in `strategies.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.lab.apiserver import metadata as meta
from services.lab.apiserver.errors import (
    Cause,
    Object,
    already_exists,
    bad_request,
    forbidden,
    invalid,
    not_found,
    too_large_resource_version,
    unprocessable,
    unsupported_media_type,
)
from services.lab.apiserver.patch import PatchFailed, apply_json_patch, apply_merge_patch
from services.lab.apiserver.request import Options, Target
from services.lab.apiserver.resources import Resource
from services.lab.apiserver.schema import fill_defaults, prune
from services.lab.apiserver.store import Store, Stored
from services.lab.apiserver.strategic import strategic_merge
from services.lab.apiserver.strategies import CustomResources, Strategy
from services.lab.apiserver.validation import validate

_sorted_json = msgspec.json.Encoder(order="deterministic").encode
_encode = msgspec.json.encode

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(slots=True)
class Call:
    """One resource request: what is asked of which resource, and the warnings to send along."""

    resource: Resource
    target: Target
    options: Options
    warnings: list[str] = field(default_factory=list)

    def missing(self) -> Exception:
        return not_found(self.resource.group, self.resource.plural, self.target.name)


class Rest:
    """The verbs on one store."""

    def __init__(self, store: Store, strategies: Mapping[str, Strategy]) -> None:
        self.store = store
        self._strategies = strategies
        self._custom = CustomResources()

    def strategy(self, resource: Resource) -> Strategy:
        found = self._strategies.get(resource.storage_key)
        if found is not None:
            return found
        return self._custom if resource.crd else _PLAIN

    # -- reading

    def find(self, call: Call) -> Stored:
        """The object a request names. Raises `ApiError` 404, or 504 for a resourceVersion of the future."""
        stored = self.store.get(call.resource.storage_key, call.target.namespace, call.target.name)
        if stored is None:
            raise call.missing()
        return stored

    def get(self, call: Call) -> Stored:
        asked = call.options.resource_version()
        if asked is not None and asked > self.store.version:
            raise too_large_resource_version(asked, self.store.version)
        return self.find(call)

    # -- writing

    def create(self, call: Call, obj: Object) -> Stored:
        """Store a new object. Raises `ApiError` 400, 404 (namespace), 403 (it is going), 409, 422."""
        resource, target = call.resource, call.target
        call.options.check()
        _check_kind(resource, obj)
        metadata = meta.read_metadata(obj)
        if metadata.get("resourceVersion") not in (None, "", "0"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        self._place(call, metadata)
        meta.start_life(metadata)
        strategy = self.strategy(resource)
        self._check_namespace(call, metadata)
        self._shape(call, obj)
        if resource.status and resource.crd:
            obj.pop("status", None)
        strategy.on_create(obj)
        if strategy.generation:
            metadata["generation"] = 1
        causes = meta.metadata_causes(resource, metadata) + strategy.causes(obj, None)
        meta.refuse_if(causes, resource, metadata)
        if self.store.get(resource.storage_key, target.namespace, metadata["name"]) is not None:
            raise already_exists(resource.group, resource.plural, metadata["name"])
        return self._commit(call, obj)

    def _place(self, call: Call, metadata: Object) -> None:
        if call.resource.namespaced:
            namespace = call.target.namespace
            if metadata.setdefault("namespace", namespace) != namespace:
                raise meta.wrong_namespace()
        else:
            metadata.pop("namespace", None)

    def _check_namespace(self, call: Call, metadata: Object) -> None:
        namespace = call.target.namespace
        if not call.resource.namespaced:
            return
        found = self.store.get("/namespaces", "", namespace)
        if found is None:
            raise not_found("", "namespaces", namespace)
        if found.obj["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = Cause("NamespaceTerminating", f"namespace {namespace} is being terminated", "metadata.namespace")
            raise forbidden(call.resource.group, call.resource.plural, metadata.get("name", ""), why, [cause])

    def _shape(self, call: Call, obj: Object) -> None:
        """Prune, fill defaults, validate by the schema; unknown fields are refused or warned about as asked."""
        resource = call.resource
        if resource.schema is None:
            return
        unknown: list[str] = []
        prune(obj, resource.schema, unknown)
        if unknown:
            how = call.options.field_validation
            if how == "Strict":
                shown = ", ".join(f'unknown field "{path}"' for path in unknown)
                if resource.crd:
                    raise bad_request(f"strict decoding error: {shown}")
                raise bad_request(
                    f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}:'
                    f" strict decoding error: {shown}"
                )
            if how == "Warn":
                call.warnings += [f'unknown field "{path}"' for path in unknown]
        fill_defaults(obj, resource.schema)
        causes = validate(obj, resource.schema)
        if not causes:
            return
        if resource.crd:
            raise invalid(resource.group, resource.kind, obj["metadata"].get("name", ""), causes)
        told = "; ".join(cause.message for cause in causes)
        raise bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {told}'
        )

    def replace(self, call: Call, obj: Object) -> Stored:
        """PUT. Raises `ApiError` 400, 404, 409, 422."""
        call.options.check()
        stored = self.find(call)
        _check_kind(call.resource, obj)
        metadata = meta.read_metadata(obj)
        self._place(call, metadata)
        if call.resource.crd and metadata.get("resourceVersion") in (None, "", "0"):
            message = "Invalid value: 0: must be specified for an update"
            cause = Cause("FieldValueInvalid", message, "metadata.resourceVersion")
            raise invalid(call.resource.group, call.resource.kind, call.target.name, [cause])
        return self.update(call, stored, obj)

    def patch(self, call: Call, kind: str, patch: Any) -> Stored:
        """PATCH with a decoded patch of media type `kind`. Raises `ApiError` 400, 404, 409, 415, 422."""
        call.options.check()
        stored = self.find(call)
        resource = call.resource
        obj = stored.copy(resource)
        try:
            if kind == JSON_PATCH:
                obj = apply_json_patch(obj, patch)
            elif kind == MERGE_PATCH:
                if not isinstance(patch, dict):
                    raise bad_request("error decoding patch: json: cannot unmarshal into map[string]interface {}")
                obj = apply_merge_patch(obj, patch)
            elif kind == STRATEGIC_PATCH and not resource.crd:
                obj = strategic_merge(obj, patch)
            else:
                raise unsupported_media_type(patch_types(resource))
        except PatchFailed:
            raise unprocessable() from None
        if not isinstance(obj, dict):
            raise bad_request("the patched document is not an object")
        _check_kind(resource, obj)
        self._place(call, meta.read_metadata(obj))
        return self.update(call, stored, obj)

    def update(self, call: Call, stored: Stored, obj: Object) -> Stored:
        """Put `obj` in the place of `stored`: the common end of PUT, PATCH and apply."""
        resource, strategy = call.resource, self.strategy(call.resource)
        old = stored.obj
        metadata = obj["metadata"]
        meta.check_preconditions(resource, metadata, old["metadata"])
        metadata["name"] = old["metadata"]["name"]
        meta.keep_system_fields(metadata, old["metadata"])
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
        self._split_status(call, obj, old)
        self._shape(call, obj)
        if call.target.subresource != "status":
            strategy.on_update(obj, old)
        if strategy.generation and _wish_changed(resource, obj, old):
            metadata["generation"] = old["metadata"].get("generation", 0) + 1
        causes = meta.metadata_causes(resource, metadata, old["metadata"])
        if call.target.subresource != "status":
            causes += strategy.causes(obj, old)
        meta.refuse_if(causes, resource, metadata)
        if _same(obj, old):
            return stored
        if self.may_go(resource, obj):
            if call.options.dry_run:
                return stored
            return self.store.remove(resource.storage_key, self._commit(call, obj))
        return self._commit(call, obj)

    def _split_status(self, call: Call, obj: Object, old: Object) -> None:
        """With a status subresource, each end writes its own part only."""
        if not call.resource.status:
            return
        if call.target.subresource == "status":
            status = obj.get("status")
            metadata = obj["metadata"]
            if call.resource.crd:
                kept = {k: v for k, v in old["metadata"].items() if k != "managedFields"}
                if "managedFields" in metadata:
                    kept["managedFields"] = metadata["managedFields"]
                metadata = kept
            for name in [name for name in obj if name not in ("apiVersion", "kind")]:
                del obj[name]
            obj.update({name: value for name, value in old.items() if name not in ("metadata", "status")})
            obj["metadata"] = metadata
            if status is not None:
                obj["status"] = status
        elif "status" in old:
            obj["status"] = old["status"]
        else:
            obj.pop("status", None)

    def may_go(self, resource: Resource, obj: Object) -> bool:
        """Marked as deleted, held by nobody any more, and with no kubelet that has to end it first."""
        metadata = obj["metadata"]
        return (
            bool(metadata.get("deletionTimestamp"))
            and not metadata.get("deletionGracePeriodSeconds")
            and not self.strategy(resource).held(obj)
        )

    def _commit(self, call: Call, obj: Object) -> Stored:
        if call.options.dry_run:
            bare = {name: value for name, value in obj.items() if name not in ("kind", "apiVersion")}
            return Stored(bare, _encode(bare)[1:], self.store.version)
        return self.store.put(call.resource.storage_key, obj)


_PLAIN = Strategy()


def patch_types(resource: Resource) -> list[str]:
    """The patch media types a resource takes; custom resources know no strategic merge."""
    if resource.crd:
        return [JSON_PATCH, MERGE_PATCH, APPLY_PATCH]
    return [JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH]


def _check_kind(resource: Resource, obj: Object) -> None:
    """The object must be of the kind and version of the path; both may be left out for built-in kinds."""
    kind, version = obj.get("kind"), obj.get("apiVersion")
    if resource.crd and not (kind and version):
        name = "Kind" if not kind else "apiVersion"
        raise bad_request(f"Object '{name}' is missing in the request body")
    kind, version = kind or resource.kind, version or resource.group_version
    if kind != resource.kind or version != resource.group_version:
        raise bad_request(
            f'{kind} in version "{version}" cannot be handled as a {resource.kind}: the API version in the data'
            f" ({version}) and kind ({kind}) do not match the expected {resource.group_version}, {resource.kind}"
        )
    obj["kind"], obj["apiVersion"] = kind, version


def _wish_changed(resource: Resource, new: Object, old: Object) -> bool:
    """Whether anything but metadata (and status, where that has its own subresource) differs."""
    skipped = {"metadata", "kind", "apiVersion"}
    if resource.status:
        skipped.add("status")
    names = (new.keys() | old.keys()) - skipped
    return any(not _same_value(new.get(name), old.get(name)) for name in names)


def _same_value(new: Any, old: Any) -> bool:
    return new == old and _sorted_json(new) == _sorted_json(old)


def _same(new: Object, old: Object) -> bool:
    bare = {name: value for name, value in new.items() if name not in ("kind", "apiVersion")}
    return _same_value(bare, old)
