"""Map an HTTP method on a resource path to a verb of `rest/verbs.py`, and its result to a response.

The user is authenticated already, and the path is not one of an aggregated server (`server.py`).
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from lab.apiserver.endpoints import respond
from lab.apiserver.endpoints.protobuf import MEDIA_TYPE, decode_protobuf
from lab.apiserver.endpoints.request import Options, ResourceTarget, accepted_form
from lab.apiserver.endpoints.serializer import BODY_LIMIT, decode_json, decode_yaml
from lab.apiserver.endpoints.watch_http import stream
from lab.apiserver.errors import (
    Object,
    bad_request,
    method_not_allowed,
    no_such_resource,
    success_status,
    too_large,
    unsupported_media_type,
    unsupported_patch_type,
)
from lab.apiserver.identity import reviews
from lab.apiserver.identity.auth import Authenticator, User
from lab.apiserver.registry.builtin_schema import with_schema
from lab.apiserver.registry.resources import Registry, ServedResource
from lab.apiserver.rest import subresources
from lab.apiserver.rest.apply import server_side_apply
from lab.apiserver.rest.deletion import delete, delete_collection, parse_delete_options
from lab.apiserver.rest.listing import list_objects
from lab.apiserver.rest.verbs import APPLY_PATCH, Rest, RestCall, patch_types

_YAML_TYPES = ("application/yaml", "text/yaml", APPLY_PATCH)
_RETURNED_WHEN_DELETED = frozenset({"/pods", "/services"})
"""Kinds whose deletion returns the object rather than a Status, as upstream does."""


class Handlers:
    """Handles the requests for all resources of one store."""

    def __init__(self, rest: Rest, registry: Registry, authenticator: Authenticator, *, bookmark_after: float) -> None:
        self._rest = rest
        self._registry = registry
        self._authenticator = authenticator
        self._bookmark_after = bookmark_after

    async def handle(self, request: web.BaseRequest, target: ResourceTarget, user: User) -> web.StreamResponse:
        """Return the response to one resource request.

        :raises ApiError: the request is rejected.
        """
        resource = self._registry.find(target.group, target.version, target.plural)
        if resource is None:
            raise no_such_resource()
        if target.namespace and not resource.namespaced:
            raise no_such_resource()
        call = RestCall(with_schema(resource), target, Options(request.query), user=user.name)
        # Reviews are created only; they are answered and not stored.
        if resource.verbs == ("create",):
            return await self._review(request, call, user)
        if target.subresource and not (target.subresource == "status" and resource.status):
            return await self._subresource(request, call)
        method = request.method
        if not target.name:
            return await self._collection(request, call, method)
        if resource.namespaced and not target.namespace:
            # A path without the namespace names no object of a namespaced resource.
            raise method_not_allowed() if method != "GET" else no_such_resource()
        return await self._object(request, call, method)

    async def _collection(self, request: web.BaseRequest, call: RestCall, method: str) -> web.StreamResponse:
        rest, resource = self._rest, call.resource
        if method == "GET":
            form = accepted_form(request.headers.get("Accept", ""))
            if call.options.flag("watch"):
                render = respond.event_renderer(call, form)
                return await stream(request, rest.store, call, render, bookmark_after=self._bookmark_after)
            return respond.respond_list(call, list_objects(rest.store, call), form)
        if resource.namespaced and not call.target.namespace:
            raise method_not_allowed()
        if method == "POST":
            form = accepted_form(request.headers.get("Accept", ""))
            obj = await read_object(request, resource)
            return respond.respond_object(call, rest.create(call, obj), form, 201)
        if method == "DELETE" and "deletecollection" in resource.verbs:
            options = parse_delete_options(await read_body(request, optional=True), call.options)
            page = delete_collection(rest, call, options)
            return respond.respond_list(call, page, accepted_form(request.headers.get("Accept", "")))
        raise method_not_allowed()

    async def _object(self, request: web.BaseRequest, call: RestCall, method: str) -> web.StreamResponse:
        rest, resource = self._rest, call.resource
        form = accepted_form(request.headers.get("Accept", ""))
        if method == "GET":
            return respond.respond_object(call, rest.get(call), form)
        if method == "PUT":
            obj = await read_object(request, resource)
            return respond.respond_object(call, rest.replace(call, obj), form)
        if method == "PATCH":
            kind = _media_type(request)
            if kind not in patch_types(resource):
                raise unsupported_media_type(patch_types(resource)) if resource.crd else unsupported_patch_type()
            body = await read_bytes(request)
            if kind == APPLY_PATCH:
                stored, created = server_side_apply(rest, call, decode_yaml(body))
                return respond.respond_object(call, stored, form, 201 if created else 200)
            return respond.respond_object(call, rest.patch(call, kind, decode_json(body)), form)
        if method == "DELETE" and not call.target.subresource:
            options = parse_delete_options(await read_body(request, optional=True), call.options)
            stored, removed = delete(rest, call, options)
            if removed and resource.storage_key not in _RETURNED_WHEN_DELETED:
                metadata = stored.obj["metadata"]
                details: Object = {"name": metadata["name"], "kind": resource.plural, "uid": metadata["uid"]}
                if resource.group:
                    details["group"] = resource.group
                return respond.respond_value(success_status(details))
            return respond.respond_object(call, stored, form)
        raise method_not_allowed()

    async def _subresource(self, request: web.BaseRequest, call: RestCall) -> web.StreamResponse:
        if call.target.subresource not in call.resource.subresources:
            raise no_such_resource()
        body = await read_body(request, optional=True)
        return respond.respond_value(subresources.serve(self._rest, call, request.method, body), 201)

    async def _review(self, request: web.BaseRequest, call: RestCall, user: User) -> web.StreamResponse:
        if request.method != "POST" or call.target.name:
            raise method_not_allowed()
        obj = await read_object(request, call.resource)
        return respond.respond_value(reviews.review(call.resource, obj, user, self._authenticator), 201)


def _media_type(request: web.BaseRequest) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


async def read_bytes(request: web.BaseRequest) -> bytes:
    """Return the body of a request.

    :raises ApiError: 413 when it is too long.
    """
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
    """Return the decoded body: JSON, YAML or protobuf.

    :raises ApiError: 400, 413 or 415.
    """
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


async def read_object(request: web.BaseRequest, resource: ServedResource) -> Object:
    """Return the body as an object of the resource's kind.

    :raises ApiError: 400, 413 or 415.
    """
    obj = await read_body(request)
    if not isinstance(obj, dict):
        raise bad_request(f"the object provided is unrecognized (must be of type {resource.kind})")
    return obj
