"""Lists: selection, pages, and which resourceVersion they are of.

A continued list shows the present, not a snapshot: its token holds the last key, so nothing that stays is missed
or shown twice; the list keeps naming the version of its first page, from which a watch misses nothing.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec

from services.lab.apiserver.errors import Cause, bad_request, expired, invalid, too_large_resource_version
from services.lab.apiserver.rest import Call
from services.lab.apiserver.selectors import make_selector
from services.lab.apiserver.store import Store, Stored


@dataclass(frozen=True, slots=True)
class Page:
    """A list result: the objects, the version they are of, and where the next page begins."""

    items: list[Stored]
    version: int
    next_token: str = ""
    remaining: int = 0


def list_objects(store: Store, call: Call) -> Page:
    """One page of a list.

    Raises `ApiError` 400 for a selector or token that cannot be read, 410 for `resourceVersionMatch=Exact` with
    any version but the present one, 504 for a version of the future.
    """
    options = call.options
    asked = options.resource_version()
    if asked is not None and asked > store.version:
        raise too_large_resource_version(asked, store.version)
    match = options.text("resourceVersionMatch")
    token = options.text("continue")
    if match and (asked is None or token):
        why = "unless resourceVersion is provided" if asked is None else "for continue"
        cause = Cause(
            "FieldValueForbidden", f"Forbidden: resourceVersionMatch is forbidden {why}", "resourceVersionMatch"
        )
        raise invalid("meta.k8s.io", "ListOptions", "", [cause])
    if match == "Exact" and asked != store.version:
        raise expired(f"The provided resource version is too old: {asked} ({store.version})")
    selects = make_selector(call.resource, options.text("labelSelector"), options.text("fieldSelector"))
    found = store.list(call.resource.storage_key, call.target.namespace)
    if selects is not None:
        found = [stored for stored in found if selects(stored.obj)]
    version = store.version
    if token:
        version, start = _read_token(token)
        found = [stored for stored in found if _key(stored) > start]
    limit = options.number("limit") or 0
    if limit <= 0 or len(found) <= limit:
        return Page(found, version)
    page = found[:limit]
    return Page(page, version, _write_token(version, _key(page[-1])), len(found) - limit)


def _key(stored: Stored) -> tuple[str, str]:
    metadata = stored.obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _write_token(version: int, key: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([version, *key])).decode()


def _read_token(token: str) -> tuple[int, tuple[str, str]]:
    try:
        version, namespace, name = msgspec.json.decode(base64.urlsafe_b64decode(token), type=tuple[int, str, str])
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        raise bad_request("continue key is not valid: illegal base64 data") from None
    return version, (namespace, name)
