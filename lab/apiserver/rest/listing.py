"""Lists: selectors, pages, and the resourceVersion of a list.

A continued list shows the current objects, not a snapshot. Its token contains the last key, so an object that exists
throughout is neither missed nor repeated. All pages name the version of the first page, from which a watch misses
nothing.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec

from lab.apiserver.errors import FieldError, bad_request, expired, invalid, too_large_resource_version
from lab.apiserver.registry.selectors import make_selector
from lab.apiserver.rest.verbs import RestCall
from lab.apiserver.storage.store import Store, StoredObject


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: its objects, the list's resourceVersion, and the token of the next page."""

    items: list[StoredObject]
    version: int
    next_token: str = ""
    remaining: int = 0


def list_objects(store: Store, call: RestCall) -> Page:
    """Return one page of a list.

    :raises ApiError: 400 for an invalid selector or token, 410 for `resourceVersionMatch=Exact` with any version but
        the current one, 504 for a version in the future.
    """
    options = call.options
    requested = options.resource_version()
    if requested is not None and requested > store.version:
        raise too_large_resource_version(requested, store.version)
    match = options.text("resourceVersionMatch")
    token = options.text("continue")
    if match and (requested is None or token):
        reason = "unless resourceVersion is provided" if requested is None else "for continue"
        cause = FieldError(
            "FieldValueForbidden", f"Forbidden: resourceVersionMatch is forbidden {reason}", "resourceVersionMatch"
        )
        raise invalid("meta.k8s.io", "ListOptions", "", [cause])
    # Old states are not stored, so only the current version can be matched exactly.
    if match == "Exact" and requested != store.version:
        raise expired(f"The provided resource version is too old: {requested} ({store.version})")
    selects = make_selector(call.resource, options.text("labelSelector"), options.text("fieldSelector"))
    found = store.list(call.resource.storage_key, call.target.namespace)
    if selects is not None:
        found = [stored for stored in found if selects(stored.obj)]
    # The list and the version are read without awaiting in between, so a watch from this version misses nothing.
    version = store.version
    if token:
        version, start = _read_token(token)
        found = [stored for stored in found if _key(stored) > start]
    limit = options.number("limit") or 0
    if limit <= 0 or len(found) <= limit:
        return Page(found, version)
    page = found[:limit]
    return Page(page, version, _write_token(version, _key(page[-1])), len(found) - limit)


def _key(stored: StoredObject) -> tuple[str, str]:
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
