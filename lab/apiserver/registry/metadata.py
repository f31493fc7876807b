"""ObjectMeta: the fields that the server owns, and validation.

Rules and messages follow k8s.io/apimachinery/pkg/api/validation. `strategies.py` has the rules of single kinds.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
import uuid
from typing import Any

from lab.apiserver.errors import ApiError, FieldError, Object, bad_request, conflict, invalid
from lab.apiserver.registry.resources import ServedResource

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
# The alphabet of apimachinery's `util/rand`, without vowels, so that no words arise.
_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"

_KNOWN = frozenset(
    {
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
        "ownerReferences",
        "finalizers",
        "managedFields",
        "selfLink",
    }
)
_SYSTEM = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink")
ANNOTATIONS_LIMIT = 256 * 1024
"""Most bytes of all annotations of one object together."""

SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start"
    " and end with an alphanumeric character (e.g. 'example.com', regex used for validation is"
    " '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end"
    " with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is"
    " '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)


def now() -> str:
    """Return the current time in the API's format, with a precision of a second."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_metadata(obj: Object) -> Object:
    """Return the object's metadata after checking types and dropping unknown fields.

    :raises ApiError: 400.
    """
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = obj["metadata"] = {}
    if not isinstance(metadata, dict):
        raise bad_request("metadata: expected an object")
    # ObjectMeta has a fixed set of fields; upstream's decoder drops unknown ones and nulls.
    for name in [name for name, value in metadata.items() if name not in _KNOWN or value is None]:
        del metadata[name]
    for name in ("labels", "annotations"):
        value = metadata.get(name)
        if value is None:
            continue
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise bad_request(f"json: cannot unmarshal into Go struct field ObjectMeta.metadata.{name} of type string")
        if not value:
            del metadata[name]
    for name in ("ownerReferences", "finalizers", "managedFields"):
        value = metadata.get(name)
        if value is not None and not isinstance(value, list):
            raise bad_request(f"json: cannot unmarshal into Go struct field ObjectMeta.metadata.{name} of type array")
        if value == []:
            del metadata[name]
    for name in ("name", "generateName", "namespace", "uid", "resourceVersion"):
        if not isinstance(metadata.get(name, ""), str):
            raise bad_request(f"json: cannot unmarshal number into Go struct field ObjectMeta.metadata.{name}")
    return metadata


def initialize(metadata: Object) -> None:
    """Set the uid and creation time of a new object, and a generated name where `generateName` asks for one."""
    for name in (*_SYSTEM, "resourceVersion"):
        metadata.pop(name, None)
    if not metadata.get("name") and metadata.get("generateName"):
        # A name has at most 63 characters, 5 of which are random.
        prefix = metadata["generateName"][:58]
        metadata["name"] = prefix + "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(5))
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now()


def deletion_causes(new: Object, old: Object) -> list[FieldError]:
    """Return the field errors of an update that changes the deletion of an object, which only DELETE does."""
    return [
        _invalid_value(new[name], f"metadata.{name}", "field is immutable")
        for name in ("deletionTimestamp", "deletionGracePeriodSeconds")
        # A client may leave the field out.
        if name in new and new[name] != old.get(name)
        for _ in ("core", "strategy")  # kube-apiserver validates the metadata twice
    ]


def restore_system_fields(new: Object, old: Object) -> None:
    """Restore the fields that only the server writes to their old values."""
    for name in _SYSTEM:
        if name in old:
            new[name] = old[name]
        else:
            new.pop(name, None)


def check_preconditions(resource: ServedResource, new: Object, old: Object) -> None:
    """Check the preconditions of an update.

    :raises ApiError: 409 for another uid or resourceVersion, 400 for another name.
    """
    name = old["name"]
    if new.get("name", name) != name:
        raise bad_request(f"the name of the object ({new['name']}) does not match the name on the URL ({name})")
    uid = new.get("uid")
    if uid and uid != old["uid"]:
        reason = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {old['uid']}"
        raise conflict(resource.group, resource.plural, name, reason)
    version = new.get("resourceVersion")
    # No resourceVersion, or 0, means an unconditional update.
    if version and version != "0" and version != old["resourceVersion"]:
        raise conflict(resource.group, resource.plural, name)


def metadata_causes(resource: ServedResource, metadata: Object, old: Object | None = None) -> list[FieldError]:
    """Return the field errors of name, labels, annotations, owner references and finalizers."""
    causes: list[FieldError] = []
    name = metadata.get("name", "")
    if not name:
        causes.append(
            FieldError("FieldValueRequired", "Required value: name or generateName is required", "metadata.name")
        )
    # A name is immutable, so it is validated only on creation.
    elif old is None:
        causes += _name_causes(resource, name)
    causes += _label_causes(metadata.get("labels") or {})
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        if _QUALIFIED.fullmatch(key.lower()) is None:
            causes.append(
                _invalid_value(key, "metadata.annotations", "name part must consist of alphanumeric characters")
            )
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > ANNOTATIONS_LIMIT:
        message = f"Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"
        causes.append(FieldError("FieldValueTooLong", message, "metadata.annotations"))
    causes += _owner_causes(metadata.get("ownerReferences") or [])
    causes += _finalizer_causes(metadata, old)
    return causes


def _invalid_value(value: Any, path: str, rule: str) -> FieldError:
    shown = f'"{value}"' if isinstance(value, str) else value
    return FieldError("FieldValueInvalid", f"Invalid value: {shown}: {rule}", path)


def _name_causes(resource: ServedResource, name: str) -> list[FieldError]:
    if resource.storage_key in ("/namespaces", "/services"):
        if len(name) > 63:
            return [_invalid_value(name, "metadata.name", "must be no more than 63 bytes")]
        return [] if _LABEL.fullmatch(name) else [_invalid_value(name, "metadata.name", LABEL_RULE)]
    if len(name) > 253:
        return [_invalid_value(name, "metadata.name", "must be no more than 253 bytes")]
    return [] if _SUBDOMAIN.fullmatch(name) else [_invalid_value(name, "metadata.name", SUBDOMAIN_RULE)]


def _label_causes(labels: dict[str, str]) -> list[FieldError]:
    causes = []
    for key, value in labels.items():
        if _QUALIFIED.fullmatch(key) is None or len(key.rpartition("/")[2]) > 63:
            causes.append(_invalid_value(key, "metadata.labels", "name part must consist of alphanumeric characters"))
        if len(value) > 63:
            causes.append(_invalid_value(value, "metadata.labels", "must be no more than 63 bytes"))
        elif _LABEL_VALUE.fullmatch(value) is None:
            rule = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'"
            causes.append(_invalid_value(value, "metadata.labels", rule))
    return causes


def _owner_causes(owners: list[Any]) -> list[FieldError]:
    causes: list[FieldError] = []
    controllers = 0
    for owner in owners:
        path = "metadata.ownerReferences"
        if not isinstance(owner, dict):
            raise bad_request(f"{path}: expected an object")
        causes += (
            _invalid_value("", f"{path}.{name}", f"{subject}must not be empty")
            for name, subject in (("apiVersion", "version "), ("kind", ""), ("name", ""), ("uid", ""))
            if not owner.get(name)
        )
        controllers += owner.get("controller") is True
    if controllers > 1:
        causes.append(
            _invalid_value("", "metadata.ownerReferences", "Only one reference can have Controller set to true")
        )
    return causes


def _finalizer_causes(metadata: Object, old: Object | None) -> list[FieldError]:
    finalizers = metadata.get("finalizers") or []
    causes = [
        _invalid_value(name, "metadata.finalizers", "name part must consist of alphanumeric characters")
        for name in finalizers
        if not isinstance(name, str) or _QUALIFIED.fullmatch(name) is None
    ]
    if old is not None and old.get("deletionTimestamp"):
        added = sorted(set(finalizers) - set(old.get("finalizers") or []))
        if added:
            shown = ", ".join(f'"{name}"' for name in added)
            message = (
                "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers"
                f" []string{{{shown}}}"
            )
            causes.append(FieldError("FieldValueForbidden", message, "metadata.finalizers"))
    return causes


def raise_if_invalid(causes: list[FieldError], resource: ServedResource, metadata: Object) -> None:
    """Raise `ApiError` 422 when there are causes."""
    if causes:
        raise invalid(resource.group, resource.kind, metadata.get("name", ""), causes)


def wrong_namespace() -> ApiError:
    """Return the error for an object whose namespace is not the request's."""
    return bad_request("the namespace of the provided object does not match the namespace sent on the request")
