"""The verbs that all kinds share: create, get, update and patch.

Each verb is a synchronous function from a request to a stored object and therefore atomic. The order of checks follows
k8s.io/apiserver's registry/generic/registry. Lists are in `listing.py`, deletion is in `deletion.py`, and the rules of
single kinds are in `registry/strategies.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from lab.apiserver.endpoints.request import Options, ResourceTarget
from lab.apiserver.errors import (
    FieldError,
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
from lab.apiserver.registry import metadata as meta
from lab.apiserver.registry.resources import ServedResource
from lab.apiserver.registry.schema import fill_defaults, prune
from lab.apiserver.registry.strategies import CustomResourceStrategy, Strategy
from lab.apiserver.registry.validation import validate
from lab.apiserver.rest.comparison import same, spec_changed
from lab.apiserver.rest.patch import PatchFailed, apply_json_patch, apply_merge_patch
from lab.apiserver.rest.strategic import strategic_merge
from lab.apiserver.storage.store import Store, StoredObject

_encode = msgspec.json.encode

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


Admission: TypeAlias = Callable[[str, ServedResource, Object, Object | None], Object]
"""Returns the object that is stored, or rejects the request with an :class:`ApiError`.

The arguments are the user, the resource, the new object and the old one, which is `None` at a creation.
"""


@dataclass(slots=True)
class RestCall:
    """One resource request, and the warnings to return with its response.

    :ivar user: name of the user; empty for the server's own changes, which need no admission.
    """

    resource: ServedResource
    target: ResourceTarget
    options: Options
    warnings: list[str] = field(default_factory=list)
    user: str = ""

    def not_found_error(self) -> Exception:
        """Return the error for an object that does not exist."""
        return not_found(self.resource.group, self.resource.plural, self.target.name)


class Rest:
    """The verbs on one store.

    :param admission: decides on writes of users; `None` admits all.
    """

    def __init__(self, store: Store, strategies: Mapping[str, Strategy], admission: Admission | None = None) -> None:
        self.store = store
        self._admission = admission
        self._strategies = strategies
        self._custom = CustomResourceStrategy()

    def strategy(self, resource: ServedResource) -> Strategy:
        """Return the strategy of a resource."""
        found = self._strategies.get(resource.storage_key)
        if found is not None:
            return found
        return self._custom if resource.crd else _PLAIN

    # -- reading

    def find(self, call: RestCall) -> StoredObject:
        """Return the object that a request names.

        :raises ApiError: 404.
        """
        stored = self.store.get(call.resource.storage_key, call.target.namespace, call.target.name)
        if stored is None:
            raise call.not_found_error()
        return stored

    def get(self, call: RestCall) -> StoredObject:
        """Return the object that a request names, at least at the requested resourceVersion.

        :raises ApiError: 404, or 504 for a resourceVersion in the future.
        """
        requested = call.options.resource_version()
        if requested is not None and requested > self.store.version:
            raise too_large_resource_version(requested, self.store.version)
        return self.find(call)

    # -- writing

    def create(self, call: RestCall, obj: Object) -> StoredObject:
        """Store a new object.

        :raises ApiError: 400, 404 (no such namespace), 403 (the namespace terminates), 409 or 422.
        """
        resource, target = call.resource, call.target
        call.options.check()
        _check_kind(resource, obj)
        metadata = meta.read_metadata(obj)
        if metadata.get("resourceVersion") not in (None, "", "0"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        self._set_namespace(call, metadata)
        meta.initialize(metadata)
        strategy = self.strategy(resource)
        self._check_namespace(call, metadata)
        self._apply_schema(call, obj)
        obj = self._admit(call, obj, None)
        # With a status subresource, the status of a new custom resource comes from a controller only.
        if resource.status and resource.crd:
            obj.pop("status", None)
        strategy.on_create(obj)
        if strategy.generation:
            metadata["generation"] = 1
        causes = meta.metadata_causes(resource, metadata) + strategy.causes(obj, None)
        meta.raise_if_invalid(causes, resource, metadata)
        # Checked after validation, as upstream does: an invalid object is Invalid even if its name is taken.
        if self.store.get(resource.storage_key, target.namespace, metadata["name"]) is not None:
            raise already_exists(resource.group, resource.plural, metadata["name"])
        return self._commit(call, obj)

    def _set_namespace(self, call: RestCall, metadata: Object) -> None:
        if call.resource.namespaced:
            namespace = call.target.namespace
            if metadata.setdefault("namespace", namespace) != namespace:
                raise meta.wrong_namespace()
        else:
            metadata.pop("namespace", None)

    def _check_namespace(self, call: RestCall, metadata: Object) -> None:
        namespace = call.target.namespace
        if not call.resource.namespaced:
            return
        found = self.store.get("/namespaces", "", namespace)
        if found is None:
            raise not_found("", "namespaces", namespace)
        if found.obj["metadata"].get("deletionTimestamp"):
            reason = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = FieldError(
                "NamespaceTerminating", f"namespace {namespace} is being terminated", "metadata.namespace"
            )
            raise forbidden(call.resource.group, call.resource.plural, metadata.get("name", ""), reason, [cause])

    def _apply_schema(self, call: RestCall, obj: Object) -> None:
        """Prune, default and validate by the schema; reject unknown fields or warn about them, as requested."""
        resource = call.resource
        if resource.schema is None:
            return
        unknown: list[str] = []
        prune(obj, resource.schema, unknown)
        if unknown:
            validation_level = call.options.field_validation
            if validation_level == "Strict":
                shown = ", ".join(f'unknown field "{path}"' for path in unknown)
                if resource.crd:
                    raise bad_request(f"strict decoding error: {shown}")
                raise bad_request(
                    f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}:'
                    f" strict decoding error: {shown}"
                )
            if validation_level == "Warn":
                call.warnings += [f'unknown field "{path}"' for path in unknown]
        fill_defaults(obj, resource.schema)
        causes = validate(obj, resource.schema)
        if not causes:
            return
        if resource.crd:
            raise invalid(resource.group, resource.kind, obj["metadata"].get("name", ""), causes)
        problems = "; ".join(cause.message for cause in causes)
        raise bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {problems}'
        )

    def replace(self, call: RestCall, obj: Object) -> StoredObject:
        """Replace an object (PUT).

        :raises ApiError: 400, 404, 409 or 422.
        """
        call.options.check()
        stored = self.find(call)
        _check_kind(call.resource, obj)
        metadata = meta.read_metadata(obj)
        self._set_namespace(call, metadata)
        # Upstream allows an update without a resourceVersion for built-in kinds only.
        if call.resource.crd and metadata.get("resourceVersion") in (None, "", "0"):
            message = "Invalid value: 0: must be specified for an update"
            cause = FieldError("FieldValueInvalid", message, "metadata.resourceVersion")
            raise invalid(call.resource.group, call.resource.kind, call.target.name, [cause])
        return self.update(call, stored, obj)

    def patch(self, call: RestCall, kind: str, patch: Any) -> StoredObject:
        """Apply a decoded patch of media type `kind` (PATCH).

        :raises ApiError: 400, 404, 409, 415 or 422.
        """
        call.options.check()
        stored = self.find(call)
        resource = call.resource
        # The patch changes its document in place.
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
        self._set_namespace(call, meta.read_metadata(obj))
        return self.update(call, stored, obj)

    def update(self, call: RestCall, stored: StoredObject, obj: Object) -> StoredObject:
        """Replace `stored` by `obj`; PUT, PATCH and apply all end here.

        :raises ApiError: 400, 409 or 422.
        """
        resource, strategy = call.resource, self.strategy(call.resource)
        old = stored.obj
        metadata = obj["metadata"]
        meta.check_preconditions(resource, metadata, old["metadata"])
        metadata["name"] = old["metadata"]["name"]
        meta.raise_if_invalid(meta.deletion_causes(metadata, old["metadata"]), resource, metadata)
        meta.restore_system_fields(metadata, old["metadata"])
        # The comparison with the old object below must not see a resourceVersion that the client left out.
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
        self._split_status(call, obj, old)
        self._apply_schema(call, obj)
        obj = self._admit(call, obj, old)
        metadata = obj["metadata"]
        if call.target.subresource != "status":
            strategy.on_update(obj, old)
        if strategy.generation and spec_changed(resource, obj, old):
            metadata["generation"] = old["metadata"].get("generation", 0) + 1
        causes = meta.metadata_causes(resource, metadata, old["metadata"])
        if call.target.subresource != "status":
            causes += strategy.causes(obj, old)
        meta.raise_if_invalid(causes, resource, metadata)
        # An update without a change writes nothing: no new version, no event.
        if same(obj, old):
            return stored
        if self.can_remove(resource, obj):
            if call.options.dry_run:
                return stored
            # Commit first, so that watchers see the removal of the last finalizer in the last state of the object.
            return self.store.remove(resource.storage_key, self._commit(call, obj))
        return self._commit(call, obj)

    def _admit(self, call: RestCall, obj: Object, old: Object | None) -> Object:
        if self._admission is None or not call.user or call.target.subresource:
            return obj
        return self._admission(call.user, call.resource, obj, old)

    def _split_status(self, call: RestCall, obj: Object, old: Object) -> None:
        """Restrict a write to the part that belongs to it: the status, or everything else."""
        if not call.resource.status:
            return
        if call.target.subresource == "status":
            status = obj.get("status")
            metadata = obj["metadata"]
            if call.resource.crd:
                restored = {k: v for k, v in old["metadata"].items() if k != "managedFields"}
                if "managedFields" in metadata:
                    restored["managedFields"] = metadata["managedFields"]
                metadata = restored
            for name in [name for name in obj if name not in ("apiVersion", "kind")]:
                del obj[name]
            obj.update({name: value for name, value in old.items() if name not in ("metadata", "status")})
            obj["metadata"] = metadata
            if status is not None:
                obj["status"] = status
            self.strategy(call.resource).on_status_update(obj, old)
        elif "status" in old:
            obj["status"] = old["status"]
        else:
            obj.pop("status", None)

    def can_remove(self, resource: ServedResource, obj: Object) -> bool:
        """Return whether a deleted object can be removed: no finalizers, and no grace period for a kubelet to end."""
        metadata = obj["metadata"]
        return (
            bool(metadata.get("deletionTimestamp"))
            and not metadata.get("deletionGracePeriodSeconds")
            and not self.strategy(resource).has_finalizers(obj)
        )

    def _commit(self, call: RestCall, obj: Object) -> StoredObject:
        if call.options.dry_run:
            bare = {name: value for name, value in obj.items() if name not in ("kind", "apiVersion")}
            return StoredObject(bare, _encode(bare)[1:], self.store.version)
        return self.store.put(call.resource.storage_key, obj)


_PLAIN = Strategy()


def patch_types(resource: ServedResource) -> list[str]:
    """Return the patch media types that a resource accepts; custom resources have no strategic merge patch."""
    if resource.crd:
        return [JSON_PATCH, MERGE_PATCH, APPLY_PATCH]
    return [JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH]


def _check_kind(resource: ServedResource, obj: Object) -> None:
    """Check that the object is of the path's kind and version; both may be missing for built-in kinds."""
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
