"""Answers: objects, lists, tables and Status as HTTP responses."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from services.lab.apiserver.errors import Object, bad_request
from services.lab.apiserver.listing import Page
from services.lab.apiserver.request import PLAIN, Form
from services.lab.apiserver.rest import Call
from services.lab.apiserver.store import Stored
from services.lab.apiserver.tables import TableForm, partial
from services.lab.apiserver.watch_http import Renderer
from services.lab.apiserver.wire import encode_json, encode_yaml

_NO_CACHE = "no-cache, private"


def json_response(body: bytes, code: int = 200, warnings: list[str] | None = None) -> web.Response:
    response = web.Response(body=body, status=code, content_type="application/json")
    response.headers["Cache-Control"] = _NO_CACHE
    for warning in warnings or ():
        quoted = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response


def value(content: Any, code: int = 200, form: Form = PLAIN) -> web.Response:
    """Any JSON value."""
    if form.yaml:
        response = web.Response(body=encode_yaml(content), status=code, content_type="application/yaml")
        response.headers["Cache-Control"] = _NO_CACHE
        return response
    return json_response(encode_json(content), code)


def status(content: Object) -> web.Response:
    """A Status, with its code as the HTTP code."""
    response = json_response(encode_json(content), content["code"])
    seconds = (content.get("details") or {}).get("retryAfterSeconds")
    if seconds:
        response.headers["Retry-After"] = str(seconds)
    return response


def one(call: Call, stored: Stored, form: Form, code: int = 200) -> web.Response:
    """One object in the form the client asked for."""
    if form.as_ == "Table":
        version = {"resourceVersion": stored.obj["metadata"].get("resourceVersion", "")}
        return value(_table(call, form).table([stored], version), code)
    if form.as_ == "PartialObjectMetadata":
        return value(partial(stored, form.version), code)
    body = stored.render(call.resource)
    if form.yaml:
        return value(msgspec.json.decode(body), code, form)
    return json_response(body, code, call.warnings)


def many(call: Call, page: Page, form: Form) -> web.Response:
    """A list in the form the client asked for."""
    metadata: Object = {"resourceVersion": str(page.version)}
    if page.next_token:
        metadata["continue"] = page.next_token
        if not (call.options.text("labelSelector") or call.options.text("fieldSelector")):
            metadata["remainingItemCount"] = page.remaining
    if form.as_ == "Table":
        return value(_table(call, form).table(page.items, metadata))
    if form.as_ == "PartialObjectMetadataList":
        return value(
            {
                "kind": "PartialObjectMetadataList",
                "apiVersion": f"meta.k8s.io/{form.version}",
                "metadata": metadata,
                "items": [partial(stored, form.version) for stored in page.items],
            }
        )
    resource = call.resource
    head = {"kind": resource.list_name, "apiVersion": resource.group_version, "metadata": metadata}
    # typed lists of built-in kinds carry items without kind and apiVersion, as upstream's encoder makes them
    items = [stored.render(resource) if resource.crd else stored.bare for stored in page.items]
    body = encode_json(head)[:-1] + b',"items":[' + b",".join(items) + b"]}"
    if form.yaml:
        return value(msgspec.json.decode(body), 200, form)
    return json_response(body)


def event_renderer(call: Call, form: Form) -> Renderer:
    """How a watch draws its objects."""
    resource = call.resource
    if form.as_ == "Table":
        table = _table(call, form)
        first = True

        def draw(stored: Stored) -> bytes:
            nonlocal first
            version = {"resourceVersion": stored.obj["metadata"]["resourceVersion"]}
            drawn = encode_json(table.table([stored], version, columns=first))
            first = False
            return drawn

        return draw
    if form.as_ == "PartialObjectMetadata":
        return lambda stored: encode_json(partial(stored, form.version))
    return lambda stored: stored.render(resource)


def _table(call: Call, form: Form) -> TableForm:
    include = call.options.text("includeObject") or "Metadata"
    if include not in ("None", "Metadata", "Object"):
        raise bad_request(f"unrecognized includeObject value: {include}")
    return TableForm(call.resource, form.version, include)
