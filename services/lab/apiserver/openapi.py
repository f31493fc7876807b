"""OpenAPI documents: `/openapi/v2` as a whole, `/openapi/v3` as an index and one document per group version.

kubectl reads v3 for `explain` and for the kinds' patch types, and v2 where v3 is missing. Schemas of CRDs are
theirs, those of built-in kinds come from `builtin_schema.py`. Documents are made when first asked for and again
after the registry has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from aiohttp import web

from services.lab.apiserver import respond
from services.lab.apiserver.builtin_schema import Model, model, model_name
from services.lab.apiserver.errors import Object, no_such_resource, not_acceptable
from services.lab.apiserver.resources import Registry, Resource
from services.lab.apiserver.wire import encode_json

_PROTO = "application/com.github.proto-openapi.spec"
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
    """The documents of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._epoch = -1
        self._made: dict[str, tuple[bytes, str]] = {}

    def serve(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """Answer a path below `/openapi`. Raises `ApiError` 404, 406."""
        accept = request.headers.get("Accept", "")
        if accept and _PROTO in accept and "json" not in accept and "*/*" not in accept:
            raise not_acceptable(["application/json"])
        if self._epoch != self._registry.epoch:
            self._epoch = self._registry.epoch
            self._made.clear()
        parts = path.strip("/").split("/")[1:]
        if parts == ["v2"]:
            body, tag = self._cached("v2", self._v2)
        elif parts == ["v3"]:
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

    def _cached(self, key: str, make: Callable[[], Object]) -> tuple[bytes, str]:
        found = self._made.get(key)
        if found is None:
            body = encode_json(make())
            found = self._made[key] = (body, hashlib.sha256(body).hexdigest()[:32].upper())
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

    def _v3(self, resources: list[Resource]) -> Object:
        schemas = _Schemas("#/components/schemas/")
        paths: Object = {}
        for resource in resources:
            paths.update(_paths(resource, schemas, v3=True))
        return {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "v1.32.0"},
            "paths": paths,
            "components": {"schemas": schemas.done},
        }

    def _v2(self) -> Object:
        schemas = _Schemas("#/definitions/")
        paths: Object = {}
        for group, versions in self._registry.groups().items():
            for version in versions:
                for resource in self._registry.of(group, version):
                    paths.update(_paths(resource, schemas, v3=False))
        return {
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": "v1.32.0"},
            "paths": paths,
            "definitions": schemas.done,
        }


class _Schemas:
    """Collects component schemas while references to them are handed out."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.done: Object = {}

    def reference(self, name: str) -> Object:
        return {"$ref": self._prefix + name}

    def kind(self, resource: Resource) -> str:
        """The component name of a resource's kind, made on the way."""
        group = ".".join(reversed(resource.group.split("."))) if resource.crd else ""
        name = f"{group}.{resource.version}.{resource.kind}" if group else _component(model_name(resource))
        if name in self.done:
            return name
        self.done[name] = schema = self._custom(resource) if resource.crd else self._model(model_name(resource))
        schema["x-kubernetes-group-version-kind"] = [
            {"group": resource.group, "version": resource.version, "kind": resource.kind}
        ]
        return name

    def _custom(self, resource: Resource) -> Object:
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
            told = self.type(kind)
            if description:
                told = {"allOf": [told]} if "$ref" in told else told
                told["description"] = description
            properties[field] = told
        if found.required:
            schema["required"] = list(found.required)
        return schema

    def type(self, kind: str) -> Object:
        """The schema of a type as the models spell it."""
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        if kind.startswith("list["):
            return {"type": "array", "items": self.type(kind[5:-1])}
        if kind.startswith("dict("):
            return {"type": "object", "additionalProperties": self.type(kind[5:-1].partition(", ")[2])}
        name = _component(kind)
        if name not in self.done:
            self.done[name] = {}
            self.done[name] = self._model(kind)
        return self.reference(name)


def _component(name: str) -> str:
    """The component name of a model: `V1Pod` is `io.k8s.v1.Pod`; kubectl shows the last part."""
    return f"io.k8s.v1.{name[2:]}" if name.startswith("V1") else f"io.k8s.{name}"


def _paths(resource: Resource, schemas: _Schemas, *, v3: bool) -> Object:
    """The paths of one resource, with what kubectl looks for: kinds, patch types and the fieldValidation option."""
    reference = schemas.reference(schemas.kind(resource))
    gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    if resource.namespaced:
        base += "/namespaces/{namespace}"
    operations = _Operations(gvk, reference, v3=v3)
    paths: Object = {
        f"{base}/{resource.plural}": {"get": operations.make("list"), "post": operations.make("post", body=True)}
    }
    if "patch" in resource.verbs:
        types = ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]
        paths[f"{base}/{resource.plural}/{{name}}"] = {
            "get": operations.make("get"),
            "put": operations.make("put", body=True),
            "patch": operations.make("patch", body=True, types=types),
            "delete": operations.make("delete"),
        }
    return paths


class _Operations:
    """Makes the operations of one kind."""

    def __init__(self, gvk: Object, reference: Object, *, v3: bool) -> None:
        self._gvk = gvk
        self._reference = reference
        self._v3 = v3

    def make(self, action: str, *, body: bool = False, types: list[str] | None = None) -> Object:
        kinds = types or ["application/json"]
        parameters: list[Any] = []
        if body:
            for name in ("dryRun", "fieldManager", "fieldValidation"):
                kind: Object = {"schema": {"type": "string"}} if self._v3 else {"type": "string"}
                parameters.append({"name": name, "in": "query", **kind})
        operation: Object = {
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self._gvk,
            "parameters": parameters,
        }
        if self._v3:
            operation["responses"]["200"]["content"] = {"application/json": {"schema": self._reference}}
            if body:
                operation["requestBody"] = {"content": {kind: {"schema": self._reference} for kind in kinds}}
        else:
            operation["responses"]["200"]["schema"] = self._reference
            operation["consumes"] = kinds
            if body:
                operation["parameters"].append({"name": "body", "in": "body", "schema": self._reference})
        return operation
