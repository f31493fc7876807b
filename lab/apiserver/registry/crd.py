"""CustomResourceDefinitions: from the object to served resources.

This module validates a CRD, completes its names, and builds one `ServedResource` per served version.
`controllers/manager.py` calls `serve_crd` when a CRD was written. The rules for structural schemas are not enforced.
"""

from __future__ import annotations

import re
from typing import Any

from lab.apiserver.errors import FieldError, Object
from lab.apiserver.registry.metadata import now
from lab.apiserver.registry.resources import CrdColumn, Registry, ServedResource
from lab.apiserver.registry.schema import compile_schema

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
"""The finalizer that keeps a CRD until its objects are deleted."""


def set_defaults(crd: Object) -> None:
    """Set defaults for singular, listKind and conversion, as upstream does."""
    spec = crd.get("spec")
    if not isinstance(spec, dict):
        return
    names = spec.get("names")
    if isinstance(names, dict) and isinstance(names.get("kind"), str):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", names["kind"] + "List")
    spec.setdefault("conversion", {"strategy": "None"})


def validate_crd(crd: Object, old: Object | None) -> list[FieldError]:
    """Return the field errors of a CRD."""
    spec: Object = crd.get("spec") or {}
    names: Object = spec.get("names") or {}
    causes = [
        FieldError("FieldValueRequired", "Required value", path)
        for path, value in (
            ("spec.group", spec.get("group")),
            ("spec.scope", spec.get("scope")),
            ("spec.names.plural", names.get("plural")),
            ("spec.names.kind", names.get("kind")),
            ("spec.versions", spec.get("versions")),
        )
        if not value
    ]
    if causes:
        return causes
    expected = f"{names['plural']}.{spec['group']}"
    if crd["metadata"].get("name") != expected:
        message = f'Invalid value: "{crd["metadata"].get("name")}": must be spec.names.plural+"."+spec.group'
        causes.append(FieldError("FieldValueInvalid", message, "metadata.name"))
    if spec["scope"] not in ("Namespaced", "Cluster"):
        message = f'Unsupported value: "{spec["scope"]}": supported values: "Cluster", "Namespaced"'
        causes.append(FieldError("FieldValueNotSupported", message, "spec.scope"))
    # All versions share one storage key, so exactly one can define the stored schema.
    if sum(bool(version.get("storage")) for version in spec["versions"]) != 1:
        message = "Invalid value: must have exactly one version marked as storage version"
        causes.append(FieldError("FieldValueInvalid", message, "spec.versions"))
    for index, version in enumerate(spec["versions"]):
        causes += _schema_causes(version, f"spec.versions[{index}]")
    if old is not None and (old.get("spec") or {}).get("scope") not in (None, spec["scope"]):
        message = f'Invalid value: "{spec["scope"]}": field is immutable'
        causes.append(FieldError("FieldValueInvalid", message, "spec.scope"))
    return causes


def _schema_causes(version: Object, path: str) -> list[FieldError]:
    raw = (version.get("schema") or {}).get("openAPIV3Schema")
    field = f"{path}.schema.openAPIV3Schema"
    if not isinstance(raw, dict):
        return [FieldError("FieldValueRequired", "Required value: schemas are required", field)]
    if raw.get("type") != "object":
        root_type = raw.get("type", "")
        return [
            FieldError(
                "FieldValueInvalid", f'Invalid value: "{root_type}": must be object at the root', f"{field}.type"
            )
        ]
    try:
        compile_schema(raw)
    except (re.error, AttributeError, TypeError) as error:
        return [FieldError("FieldValueInvalid", f"Invalid value: {error}", field)]
    return []


def resources_of(crd: Object) -> list[tuple[ServedResource, bool]]:
    """Return the versions of an accepted CRD, each with whether it is the storage version (which may be unserved)."""
    spec = crd["spec"]
    names = spec["names"]
    found: list[tuple[ServedResource, bool]] = []
    for version in spec["versions"]:
        subresources = version.get("subresources") or {}
        raw = version["schema"]["openAPIV3Schema"]
        resource = ServedResource(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            singular=names["singular"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            status="status" in subresources,
            crd=True,
            list_kind=names["listKind"],
            schema=compile_schema(raw),
            columns=tuple(_column(raw_column) for raw_column in version.get("additionalPrinterColumns") or ()),
            selectable=tuple(
                field["jsonPath"].lstrip(".") for field in version.get("selectableFields") or () if "jsonPath" in field
            ),
        )
        found.append((resource, bool(version.get("storage"))))
    return found


def _column(raw: Object) -> CrdColumn:
    return CrdColumn(
        name=raw["name"],
        type=raw.get("type", "string"),
        path=raw["jsonPath"],
        description=raw.get("description", ""),
        priority=raw.get("priority", 0),
        format=raw.get("format", ""),
    )


def serve_crd(registry: Registry, crd: Object) -> None:
    """Serve the CRD's versions as they are now, and no others."""
    spec = crd["spec"]
    # A changed CRD may no longer serve a version, so all versions are removed before they are added again.
    registry.drop(spec["group"], spec["names"]["plural"])
    served = {version["name"] for version in spec["versions"] if version.get("served")}
    for resource, storage in resources_of(crd):
        registry.add(resource, storage=storage, served=resource.version in served)


def established_status(crd: Object) -> Object:
    """Return the status of a CRD whose API is served."""
    spec = crd["spec"]
    before: Object = crd.get("status") or {}
    time = now()
    stored: list[Any] = list(before.get("storedVersions") or [])
    stored += [v["name"] for v in spec["versions"] if v.get("storage") and v["name"] not in stored]
    return {
        "conditions": [
            _condition("NamesAccepted", "NoConflicts", "no conflicts found", time),
            _condition("Established", "InitialNamesAccepted", "the initial names have been accepted", time),
        ],
        "acceptedNames": spec["names"],
        "storedVersions": stored,
    }


def _condition(kind: str, reason: str, message: str, time: str) -> Object:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": time,
    }
