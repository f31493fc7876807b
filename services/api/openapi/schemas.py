"""The schemas of requests and responses, from the structs: what both versions of OpenAPI can say of a JSON Schema.

OpenAPI 2 and 3.0 know neither ``null`` nor most keywords of JSON Schema 2020-12. kube-apiserver merges the document of
version 2 with its own, and one unknown keyword there takes the merged document from every client.
Next: :mod:`services.api.openapi.documents`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from schemas.bus.hotplug_status import HotplugStatus
from schemas.describe import describe
from schemas.kubernetes.objects import Status
from schemas.kubernetes.options import AddInterfaceOptions, RemoveInterfaceOptions
from schemas.names import NEW_INTERFACE_NAME
from services.api.openapi.operations import OPTIONS

Schema = dict[str, Any]

PREFIX: Final = "io.hotnic.subresources.v1."
"""Prefix of all names: the merged document has no other that begins so."""
TOP_LEVEL: Final[tuple[type, ...]] = (*OPTIONS.values(), HotplugStatus)
"""The types that are a kind of the API."""

REFERENCES: Final = {2: "#/definitions/", 3: "#/components/schemas/"}
"""Where references point to, by version of OpenAPI."""

_KEPT: Final = frozenset({"type", "description", "default", "enum", "properties", "required", "items", "pattern"})
"""The keywords that are taken over as they are; all others are dropped or converted."""
_REQUIRED: Final[dict[type, dict[str, Schema]]] = {
    AddInterfaceOptions: {
        "name": {"pattern": f"^{NEW_INTERFACE_NAME.pattern}$"},
        "networkAttachmentDefinitionName": {},
    },
    RemoveInterfaceOptions: {"name": {}},
}
"""What :mod:`services.api.request` requires, which the structs leave open to refuse it in KubeVirt's words."""


def reference(kind: type, version: int) -> Schema:
    """Return a reference to the schema of a type.

    :param version: the version of OpenAPI, 2 or 3.
    """
    return {"$ref": f"{REFERENCES[version]}{PREFIX}{kind.__name__}"}


def build_schemas(version: int, group_versions: Iterable[tuple[str, str]]) -> dict[str, Schema]:
    """Return the schemas of all types by name.

    :param version: the version of OpenAPI, 2 or 3.
    :param group_versions: group and version of each API that has the kinds.
    """
    types: Sequence[type] = (*TOP_LEVEL, Status)
    _, components = msgspec.json.schema_components(types, ref_template=f"{REFERENCES[version]}{PREFIX}{{name}}")
    for kind in types:
        describe(components, kind)
    for kind, required in _REQUIRED.items():
        schema = components[kind.__name__]
        schema["required"] = sorted(required)
        for name, more in required.items():
            schema["properties"][name].pop("default")
            schema["properties"][name].update(more)
    kinds = {
        kind.__name__: [{"group": group, "version": name, "kind": kind.__name__} for group, name in group_versions]
        for kind in TOP_LEVEL
    }
    return {
        f"{PREFIX}{name}": convert(schema, version)
        | ({"x-kubernetes-group-version-kind": kinds[name]} if name in kinds else {})
        for name, schema in sorted(components.items())
    }


def convert(schema: Schema, version: int) -> Schema:
    """Return a JSON Schema without what OpenAPI does not know; it allows whatever the schema allows, but ``null``.

    :param version: the version of OpenAPI, 2 or 3.
    """
    if "anyOf" in schema:
        # A field that may be null: encoders omit it instead.
        [present] = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
        rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
        return convert(present | rest, version)
    if "$ref" in schema:
        found: Schema = {"$ref": schema["$ref"]}
        if "description" not in schema:
            return found
        # Kubernetes itself writes a description beside a reference of version 2. In version 3 clients ignore it there.
        return (found if version == 2 else {"allOf": [found]}) | {"description": schema["description"]}
    found = {key: value for key, value in schema.items() if key in _KEPT}
    if "enum" in found:
        found["type"] = "string"
    if "properties" in found:
        found["properties"] = {name: convert(one, version) for name, one in found["properties"].items()}
    if "items" in found:
        found["items"] = convert(found["items"], version)
    if not found.get("required", True):
        del found["required"]
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        found["additionalProperties"] = convert(values, version)
    return found
