"""Resource requests: from an HTTP method on a resource path to a verb of `rest.py` and back.

The caller is known already and the path is not that of an aggregated server (`server.py`).
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from services.lab.apiserver import respond, reviews, subresources
from services.lab.apiserver.apply import server_side_apply
from services.lab.apiserver.auth import Authenticator, User
from services.lab.apiserver.builtin_schema import with_schema
from services.lab.apiserver.deletion import delete, delete_collection, read_options
from services.lab.apiserver.errors import (
    Object,
    bad_request,
    method_not_allowed,
    no_such_resource,
    success,
    too_large,
    unsupported_media_type,
)
from services.lab.apiserver.listing import list_objects
from services.lab.apiserver.protobuf import MEDIA_TYPE, decode_protobuf
from services.lab.apiserver.request import Options, Target, accepted_form
from services.lab.apiserver.resources import Registry, Resource
from services.lab.apiserver.rest import APPLY_PATCH, Call, Rest, patch_types
from services.lab.apiserver.watch_http import stream
from services.lab.apiserver.wire import BODY_LIMIT, decode_json, decode_yaml

_YAML_TYPES = ("application/yaml", "text/yaml", APPLY_PATCH)
_RETURNED_WHEN_DELETED = frozenset({"/pods", "/services"})
"""Kinds whose deletion answers with the object rather than a Status, as upstream has it."""


class Handlers:
    """Serves all resources of one store."""

    def __init__(self, rest: Rest, registry: Registry, authenticator: Authenticator, *, bookmark_after: float) -> None:
        self._rest = rest
        self._registry = registry
        self._authenticator = authenticator
        self._bookmark_after = bookmark_after

    async def handle(self, request: web.BaseRequest, target: Target, user: User) -> web.StreamResponse:
        """Answer one resource request. Raises `ApiError` for every refusal."""
        resource = self._registry.find(target.group, target.version, target.plural)
        if resource is None:
            raise no_such_resource()
        if target.namespace and not resource.namespaced:
            raise no_such_resource()
        call = Call(with_schema(resource), target, Options(request.query))
        if resource.verbs == ("create",):
            return await self._review(request, call, user)
        if target.subresource and not (target.subresource == "status" and resource.status):
            return await self._subresource(request, call)
        method = request.method
        if not target.name:
            return await self._collection(request, call, method)
        if resource.namespaced and not target.namespace:
            raise method_not_allowed() if method != "GET" else no_such_resource()
        return await self._object(request, call, method)

    async def _collection(self, request: web.BaseRequest, call: Call, method: str) -> web.StreamResponse:
        rest, resource = self._rest, call.resource
        if method == "GET":
            form = accepted_form(request.headers.get("Accept", ""))
            if call.options.flag("watch"):
                render = respond.event_renderer(call, form)
                return await stream(request, rest.store, call, render, bookmark_after=self._bookmark_after)
            return respond.many(call, list_objects(rest.store, call), form)
        if resource.namespaced and not call.target.namespace:
            raise method_not_allowed()
        if method == "POST":
            form = accepted_form(request.headers.get("Accept", ""))
            obj = await read_object(request, resource)
            return respond.one(call, rest.create(call, obj), form, 201)
        if method == "DELETE" and "deletecollection" in resource.verbs:
            how = read_options(await read_body(request, optional=True), call.options)
            page = delete_collection(rest, call, how)
            return respond.many(call, page, accepted_form(request.headers.get("Accept", "")))
        raise method_not_allowed()

    async def _object(self, request: web.BaseRequest, call: Call, method: str) -> web.StreamResponse:
        rest, resource = self._rest, call.resource
        form = accepted_form(request.headers.get("Accept", ""))
        if method == "GET":
            return respond.one(call, rest.get(call), form)
        if method == "PUT":
            obj = await read_object(request, resource)
            return respond.one(call, rest.replace(call, obj), form)
        if method == "PATCH":
            kind = _media_type(request)
            if kind not in patch_types(resource):
                raise unsupported_media_type(patch_types(resource))
            body = await read_bytes(request)
            if kind == APPLY_PATCH:
                stored, created = server_side_apply(rest, call, decode_yaml(body))
                return respond.one(call, stored, form, 201 if created else 200)
            return respond.one(call, rest.patch(call, kind, decode_json(body)), form)
        if method == "DELETE" and not call.target.subresource:
            how = read_options(await read_body(request, optional=True), call.options)
            stored, gone = delete(rest, call, how)
            if gone and resource.storage_key not in _RETURNED_WHEN_DELETED:
                metadata = stored.obj["metadata"]
                details: Object = {"name": metadata["name"], "kind": resource.plural, "uid": metadata["uid"]}
                if resource.group:
                    details["group"] = resource.group
                return respond.value(success(details))
            return respond.one(call, stored, form)
        raise method_not_allowed()

    async def _subresource(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        if call.target.subresource not in call.resource.subresources:
            raise no_such_resource()
        body = await read_body(request, optional=True)
        return respond.value(subresources.serve(self._rest, call, request.method, body), 201)

    async def _review(self, request: web.BaseRequest, call: Call, user: User) -> web.StreamResponse:
        if request.method != "POST" or call.target.name:
            raise method_not_allowed()
        obj = await read_object(request, call.resource)
        return respond.value(reviews.answer(call.resource, obj, user, self._authenticator), 201)


def _media_type(request: web.BaseRequest) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


async def read_bytes(request: web.BaseRequest) -> bytes:
    """The body of a request. Raises `ApiError` 413 when it is too long."""
    message = f"Request entity too large: limit is {BODY_LIMIT}"
    if (request.content_length or 0) > BODY_LIMIT:
        raise too_large(message)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > BODY_LIMIT:
            raise too_large(message)
        chunks.append(chunk)
    return b"".join(chunks)


async def read_body(request: web.BaseRequest, *, optional: bool = False) -> Any:
    """The decoded body, JSON or YAML. Raises `ApiError` 400, 413, 415."""
    body = await read_bytes(request)
    if optional and not body.strip():
        return None
    media_type = _media_type(request)
    if media_type in ("", "application/json", "*/*"):
        return decode_json(body)
    if media_type in _YAML_TYPES:
        return decode_yaml(body)
    if media_type == MEDIA_TYPE:
        return decode_protobuf(body)
    raise unsupported_media_type(["application/json", "application/yaml"])


async def read_object(request: web.BaseRequest, resource: Resource) -> Object:
    """The body as an object of the resource's kind. Raises `ApiError` 400, 413, 415."""
    obj = await read_body(request)
    if not isinstance(obj, dict):
        raise bad_request(f"the object provided is unrecognized (must be of type {resource.kind})")
    return obj
