"""CustomResourceDefinitions: from the object to served resources.

Checks a CRD, completes its names, and makes one `Resource` per served version. `controllers.py` calls
`serve` when a CRD was written. Structural-schema rules are not enforced; schemas are taken as they are.
"""

from __future__ import annotations

import re
from typing import Any

from services.lab.apiserver.errors import Cause, Object
from services.lab.apiserver.metadata import now
from services.lab.apiserver.resources import Column, Registry, Resource
from services.lab.apiserver.schema import compile_schema

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
"""The finalizer that keeps a CRD until its objects are gone."""


def complete(crd: Object) -> None:
    """Fill in singular, listKind and conversion, as upstream's defaulting does."""
    spec = crd.get("spec")
    if not isinstance(spec, dict):
        return
    names = spec.get("names")
    if isinstance(names, dict) and isinstance(names.get("kind"), str):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", names["kind"] + "List")
    spec.setdefault("conversion", {"strategy": "None"})


def check(crd: Object, old: Object | None) -> list[Cause]:
    """Field errors of a CRD."""
    spec: Object = crd.get("spec") or {}
    names: Object = spec.get("names") or {}
    causes = [
        Cause("FieldValueRequired", "Required value", path)
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
        causes.append(Cause("FieldValueInvalid", message, "metadata.name"))
    if spec["scope"] not in ("Namespaced", "Cluster"):
        message = f'Unsupported value: "{spec["scope"]}": supported values: "Cluster", "Namespaced"'
        causes.append(Cause("FieldValueNotSupported", message, "spec.scope"))
    if sum(bool(version.get("storage")) for version in spec["versions"]) != 1:
        message = "Invalid value: must have exactly one version marked as storage version"
        causes.append(Cause("FieldValueInvalid", message, "spec.versions"))
    for index, version in enumerate(spec["versions"]):
        causes += _schema_causes(version, f"spec.versions[{index}]")
    if old is not None and (old.get("spec") or {}).get("scope") not in (None, spec["scope"]):
        message = f'Invalid value: "{spec["scope"]}": field is immutable'
        causes.append(Cause("FieldValueInvalid", message, "spec.scope"))
    return causes


def _schema_causes(version: Object, path: str) -> list[Cause]:
    raw = (version.get("schema") or {}).get("openAPIV3Schema")
    where = f"{path}.schema.openAPIV3Schema"
    if not isinstance(raw, dict):
        return [Cause("FieldValueRequired", "Required value: schemas are required", where)]
    if raw.get("type") != "object":
        shown = raw.get("type", "")
        return [Cause("FieldValueInvalid", f'Invalid value: "{shown}": must be object at the root', f"{where}.type")]
    try:
        compile_schema(raw)
    except (re.error, AttributeError, TypeError) as error:
        return [Cause("FieldValueInvalid", f"Invalid value: {error}", where)]
    return []


def resources_of(crd: Object) -> list[tuple[Resource, bool]]:
    """The served versions of an accepted CRD, each with whether it is the stored one (which may be unserved)."""
    spec = crd["spec"]
    names = spec["names"]
    found: list[tuple[Resource, bool]] = []
    for version in spec["versions"]:
        subresources = version.get("subresources") or {}
        raw = version["schema"]["openAPIV3Schema"]
        resource = Resource(
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


def _column(raw: Object) -> Column:
    return Column(
        name=raw["name"],
        type=raw.get("type", "string"),
        path=raw["jsonPath"],
        description=raw.get("description", ""),
        priority=raw.get("priority", 0),
        format=raw.get("format", ""),
    )


def serve(registry: Registry, crd: Object) -> None:
    """Serve what the CRD now says, and no longer what it said before."""
    spec = crd["spec"]
    registry.drop(spec["group"], spec["names"]["plural"])
    served = {version["name"] for version in spec["versions"] if version.get("served")}
    for resource, storage in resources_of(crd):
        registry.add(resource, storage=storage, served=resource.version in served)


def established_status(crd: Object) -> Object:
    """The status of a CRD whose API is being served."""
    spec = crd["spec"]
    before: Object = crd.get("status") or {}
    moment = now()
    stored: list[Any] = list(before.get("storedVersions") or [])
    stored += [v["name"] for v in spec["versions"] if v.get("storage") and v["name"] not in stored]
    return {
        "conditions": [
            _condition("NamesAccepted", "NoConflicts", "no conflicts found", moment),
            _condition("Established", "InitialNamesAccepted", "the initial names have been accepted", moment),
        ],
        "acceptedNames": spec["names"],
        "storedVersions": stored,
    }


def _condition(kind: str, reason: str, message: str, moment: str) -> Object:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": moment,
    }
