"""OpenAPI documents: `/openapi/v3`, an index and one document per group version; `/openapi/v2` without any schema.

kubectl reads them for `explain` and for the patch types of kinds. CRDs bring their schemas; those of built-in kinds
come from `registry/builtin_schema.py`. A document is built on its first request, and again after the registry has
changed. kubectl requests v2, in protobuf, to validate the objects of a `List` itself, and it passes kinds that the
document does not have. The server then validates each object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from aiohttp import web

from lab.apiserver.endpoints import respond
from lab.apiserver.endpoints.serializer import encode_json
from lab.apiserver.errors import Object, no_such_resource, not_acceptable
from lab.apiserver.registry.builtin_schema import Model, model, model_name
from lab.apiserver.registry.resources import Registry, ServedResource

_PROTO = "application/com.github.proto-openapi.spec"
_PROTO_V2 = f"{_PROTO}.v2.v1.0+protobuf"
_TITLE, _VERSION = "Kubernetes", "v1.32.0"
_PLAIN: dict[str, Object] = {
    "str": {"type": "string"},
    "int": {"type": "integer", "format": "int64"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "datetime": {"type": "string", "format": "date-time"},
    "object": {},
}
_META = "V1ObjectMeta"


class Documents:
    """The OpenAPI documents of one registry, cached until the registry changes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._epoch = -1
        self._cache: dict[str, tuple[bytes, str]] = {}

    def serve(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """Return the response for a path below `/openapi`.

        :raises ApiError: 404 or 406.
        """
        accept = request.headers.get("Accept", "")
        if path.strip("/") == "openapi/v2":
            return _v2_response(accept)
        # The documents of v3 have no protobuf encoding here.
        if accept and _PROTO in accept and "json" not in accept and "*/*" not in accept:
            raise not_acceptable(["application/json"])
        if self._epoch != self._registry.epoch:
            self._epoch = self._registry.epoch
            self._cache.clear()
        parts = path.strip("/").split("/")[1:]
        if parts == ["v3"]:
            body, tag = self._cached("v3", self._index)
        elif parts[0] == "v3" and len(parts) == 3 and parts[1] == "api":
            body, tag = self._group_version("", parts[2])
        elif parts[0] == "v3" and len(parts) == 4 and parts[1] == "apis":
            body, tag = self._group_version(parts[2], parts[3])
        else:
            raise no_such_resource()
        if request.headers.get("If-None-Match", "").strip('"') == tag:
            return web.Response(status=304, headers={"ETag": f'"{tag}"'})
        response = respond.json_response(body)
        response.headers["ETag"] = f'"{tag}"'
        return response

    def _cached(self, key: str, build: Callable[[], Object]) -> tuple[bytes, str]:
        found = self._cache.get(key)
        if found is None:
            body = encode_json(build())
            found = self._cache[key] = (body, hashlib.sha256(body).hexdigest()[:32].upper())
        return found

    def _group_version(self, group: str, version: str) -> tuple[bytes, str]:
        resources = self._registry.of(group, version)
        if not resources:
            raise no_such_resource()
        return self._cached(f"v3/{group}/{version}", lambda: self._v3(resources))

    def _index(self) -> Object:
        paths: Object = {}
        for group, versions in self._registry.groups().items():
            for version in versions:
                name = f"apis/{group}/{version}" if group else f"api/{version}"
                tag = self._group_version(group, version)[1]
                paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={tag}"}
        return {"paths": paths}

    def _v3(self, resources: list[ServedResource]) -> Object:
        schemas = _Schemas()
        paths: Object = {}
        for resource in resources:
            paths.update(_paths(resource, schemas))
        return {
            "openapi": "3.0.0",
            "info": {"title": _TITLE, "version": _VERSION},
            "paths": paths,
            "components": {"schemas": schemas.done},
        }


def _v2_response(accept: str) -> web.Response:
    """Return the document of OpenAPI v2: its head, without paths and definitions."""
    if _PROTO not in accept:
        head = {"swagger": "2.0", "info": {"title": _TITLE, "version": _VERSION}, "paths": {}}
        return respond.json_response(encode_json(head))
    # `Document` and `Info` of gnostic's OpenAPIv2.proto: the fields 1 and 2 of each.
    info = _bytes_field(1, _TITLE.encode()) + _bytes_field(2, _VERSION.encode())
    return web.Response(body=_bytes_field(1, b"2.0") + _bytes_field(2, info), headers={"Content-Type": _PROTO_V2})


def _bytes_field(number: int, value: bytes) -> bytes:
    """Return a field of a protobuf message with fewer than 128 bytes."""
    return bytes((number << 3 | 2, len(value))) + value


class _Schemas:
    """Collects the component schemas that a document refers to."""

    def __init__(self) -> None:
        self.done: Object = {}

    def reference(self, name: str) -> Object:
        return {"$ref": "#/components/schemas/" + name}

    def kind(self, resource: ServedResource) -> str:
        """Return the component name of a resource's kind; add its schema unless it exists."""
        group = ".".join(reversed(resource.group.split("."))) if resource.crd else ""
        name = f"{group}.{resource.version}.{resource.kind}" if group else _component(model_name(resource))
        if name in self.done:
            return name
        self.done[name] = schema = self._custom(resource) if resource.crd else self._model(model_name(resource))
        schema["x-kubernetes-group-version-kind"] = [
            {"group": resource.group, "version": resource.version, "kind": resource.kind}
        ]
        return name

    def _custom(self, resource: ServedResource) -> Object:
        raw: Object = dict(resource.schema.raw) if resource.schema is not None else {"type": "object"}
        properties: Object = dict(raw.get("properties") or {})
        properties["apiVersion"] = {"type": "string", "description": "The versioned schema of this object."}
        properties["kind"] = {"type": "string", "description": "The kind of this object."}
        properties["metadata"] = self.type(_META)
        raw["properties"] = properties
        return raw

    def _model(self, name: str) -> Object:
        found: Model | None = model(name)
        if found is None:
            return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        properties: Object = {}
        schema: Object = {"type": "object", "properties": properties}
        for field, (kind, description) in found.fields.items():
            schema_of_type = self.type(kind)
            if description:
                schema_of_type = {"allOf": [schema_of_type]} if "$ref" in schema_of_type else schema_of_type
                schema_of_type["description"] = description
            properties[field] = schema_of_type
        if found.required:
            schema["required"] = list(found.required)
        return schema

    def type(self, kind: str) -> Object:
        """Return the schema of a type in the models' notation."""
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        if kind.startswith("list["):
            return {"type": "array", "items": self.type(kind[5:-1])}
        if kind.startswith("dict("):
            return {"type": "object", "additionalProperties": self.type(kind[5:-1].partition(", ")[2])}
        name = _component(kind)
        if name not in self.done:
            # Models refer to each other in cycles; the empty entry ends the recursion.
            self.done[name] = {}
            self.done[name] = self._model(kind)
        return self.reference(name)


def _component(name: str) -> str:
    """Return the component name of a model: `V1Pod` becomes `io.k8s.v1.Pod`, of which kubectl shows the last part."""
    return f"io.k8s.v1.{name[2:]}" if name.startswith("V1") else f"io.k8s.{name}"


def _paths(resource: ServedResource, schemas: _Schemas) -> Object:
    """Return the paths of one resource with what kubectl reads: kinds, patch types and the fieldValidation option."""
    reference = schemas.reference(schemas.kind(resource))
    gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    if resource.namespaced:
        base += "/namespaces/{namespace}"
    operations = _Operations(gvk, reference)
    paths: Object = {
        f"{base}/{resource.plural}": {"get": operations.build("list"), "post": operations.build("post", body=True)}
    }
    if "patch" in resource.verbs:
        types = ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]
        paths[f"{base}/{resource.plural}/{{name}}"] = {
            "get": operations.build("get"),
            "put": operations.build("put", body=True),
            "patch": operations.build("patch", body=True, types=types),
            "delete": operations.build("delete"),
        }
    return paths


class _Operations:
    """Builds the operations of one kind."""

    def __init__(self, gvk: Object, reference: Object) -> None:
        self._gvk = gvk
        self._reference = reference

    def build(self, action: str, *, body: bool = False, types: list[str] | None = None) -> Object:
        """Return one operation.

        :param body: whether the request has a body.
        :param types: media types of the body.
        """
        kinds = types or ["application/json"]
        parameters: list[Any] = []
        if body:
            names = ("dryRun", "fieldManager", "fieldValidation")
            parameters += ({"name": name, "in": "query", "schema": {"type": "string"}} for name in names)
        content = {"application/json": {"schema": self._reference}}
        operation: Object = {
            "responses": {"200": {"description": "OK", "content": content}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self._gvk,
            "parameters": parameters,
        }
        if body:
            operation["requestBody"] = {"content": {kind: {"schema": self._reference} for kind in kinds}}
        return operation
