"""Build HTTP responses from objects, lists, tables and Statuses."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from lab.apiserver.documents.tables import TablePrinter, partial
from lab.apiserver.endpoints.request import PLAIN_FORM, ResponseForm
from lab.apiserver.endpoints.serializer import encode_json, encode_yaml
from lab.apiserver.endpoints.watch_http import Renderer
from lab.apiserver.errors import Object, bad_request
from lab.apiserver.rest.listing import Page
from lab.apiserver.rest.verbs import RestCall
from lab.apiserver.storage.store import StoredObject

_NO_CACHE = "no-cache, private"


def json_response(body: bytes, code: int = 200, warnings: list[str] | None = None) -> web.Response:
    """Return a response with an encoded body."""
    response = web.Response(body=body, status=code, content_type="application/json")
    response.headers["Cache-Control"] = _NO_CACHE
    for warning in warnings or ():
        quoted = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response


def respond_value(content: Any, code: int = 200, form: ResponseForm = PLAIN_FORM) -> web.Response:
    """Return a response with any JSON value."""
    if form.yaml:
        response = web.Response(body=encode_yaml(content), status=code, content_type="application/yaml")
        response.headers["Cache-Control"] = _NO_CACHE
        return response
    return json_response(encode_json(content), code)


def respond_status(content: Object) -> web.Response:
    """Return a response with a Status, whose code is the HTTP status."""
    response = json_response(encode_json(content), content["code"])
    seconds = (content.get("details") or {}).get("retryAfterSeconds")
    if seconds:
        response.headers["Retry-After"] = str(seconds)
    return response


def respond_object(call: RestCall, stored: StoredObject, form: ResponseForm, code: int = 200) -> web.Response:
    """Return a response with one object in the requested form."""
    if form.as_ == "Table":
        version = {"resourceVersion": stored.obj["metadata"].get("resourceVersion", "")}
        return respond_value(_table(call, form).table([stored], version), code)
    if form.as_ == "PartialObjectMetadata":
        return respond_value(partial(stored, form.version), code)
    body = stored.render(call.resource)
    if form.yaml:
        return respond_value(msgspec.json.decode(body), code, form)
    return json_response(body, code, call.warnings)


def respond_list(call: RestCall, page: Page, form: ResponseForm) -> web.Response:
    """Return a response with a list in the requested form."""
    metadata: Object = {"resourceVersion": str(page.version)}
    if page.next_token:
        metadata["continue"] = page.next_token
        # With a selector, upstream cannot know the number of remaining items without evaluating it, and omits the
        # field.
        if not (call.options.text("labelSelector") or call.options.text("fieldSelector")):
            metadata["remainingItemCount"] = page.remaining
    if form.as_ == "Table":
        return respond_value(_table(call, form).table(page.items, metadata))
    if form.as_ == "PartialObjectMetadataList":
        return respond_value(
            {
                "kind": "PartialObjectMetadataList",
                "apiVersion": f"meta.k8s.io/{form.version}",
                "metadata": metadata,
                "items": [partial(stored, form.version) for stored in page.items],
            }
        )
    resource = call.resource
    head = {"kind": resource.list_name, "apiVersion": resource.group_version, "metadata": metadata}
    # The items of built-in kinds' lists have no kind and apiVersion, as upstream encodes typed lists.
    items = [stored.render(resource) if resource.crd else stored.bare for stored in page.items]
    body = encode_json(head)[:-1] + b',"items":[' + b",".join(items) + b"]}"
    if form.yaml:
        return respond_value(msgspec.json.decode(body), 200, form)
    return json_response(body)


def event_renderer(call: RestCall, form: ResponseForm) -> Renderer:
    """Return the function that encodes a watch's objects."""
    resource = call.resource
    if form.as_ == "Table":
        table = _table(call, form)
        # Only the first event of a watch carries the column definitions.
        first = True

        def render_row(stored: StoredObject) -> bytes:
            nonlocal first
            version = {"resourceVersion": stored.obj["metadata"]["resourceVersion"]}
            encoded = encode_json(table.table([stored], version, columns=first))
            first = False
            return encoded

        return render_row
    if form.as_ == "PartialObjectMetadata":
        return lambda stored: encode_json(partial(stored, form.version))
    return lambda stored: stored.render(resource)


def _table(call: RestCall, form: ResponseForm) -> TablePrinter:
    include = call.options.text("includeObject") or "Metadata"
    if include not in ("None", "Metadata", "Object"):
        raise bad_request(f"unrecognized includeObject value: {include}")
    return TablePrinter(call.resource, form.version, include)
