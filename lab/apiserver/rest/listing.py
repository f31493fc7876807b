"""Lists: selectors, pages, and the resourceVersion of a list.

All pages of a list show the state of the first one, as long as the event log reaches back to it; then the next page
fails with 410, as after a compaction of etcd. A token has upstream's form: the version of the list and the last key.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec

from lab.apiserver.errors import (
    FieldError,
    bad_request,
    expired_token,
    invalid,
    too_large_resource_version,
)
from lab.apiserver.registry.selectors import make_selector
from lab.apiserver.rest.verbs import RestCall
from lab.apiserver.storage.store import Store, StoredObject
from lab.apiserver.storage.watch import Key

_CURRENT = -1
"""The version of a token that continues a list with the current objects."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: its objects, the list's resourceVersion, and the token of the next page."""

    items: list[StoredObject]
    version: int
    next_token: str = ""
    remaining: int = 0


class _Token(msgspec.Struct, frozen=True):
    """A decoded continue token.

    :ivar start: the last key with a zero byte, which is less than any other key after it.
    """

    v: str
    rv: int
    start: str

    @property
    def after(self) -> Key:
        namespace, _, name = self.start.rstrip("\0").rpartition("/")
        return namespace, name


def list_objects(store: Store, call: RestCall) -> Page:
    """Return one page of a list.

    :raises ApiError: 400 for an invalid selector or token, 410 for a version that the event log does not reach, 504 for
        a version in the future.
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
    # Upstream answers version 0 from its watch cache, which has no pages.
    limit = 0 if requested == 0 and not token else options.number("limit") or 0
    # The list and its version are read without awaiting in between, so a watch from this version misses nothing.
    version, after = store.version, None
    if token:
        if requested:
            raise bad_request("specifying resource version is not allowed when using continue")
        version, after = _resume(store, call, token)
    elif requested and (match == "Exact" or (limit and not match)):
        version = requested
    found = store.list(call.resource.storage_key, call.target.namespace, version)
    if after is not None:
        found = [stored for stored in found if stored.key > after]
    selects = make_selector(call.resource, options.text("labelSelector"), options.text("fieldSelector"))
    if selects is not None:
        found = [stored for stored in found if selects(stored.obj)]
    if limit <= 0 or len(found) <= limit:
        return Page(found, version)
    page = found[:limit]
    return Page(page, version, _write_token(version, page[-1].key), len(found) - limit)


def _resume(store: Store, call: RestCall, text: str) -> tuple[int, Key]:
    """Return the version of a continued list and the key after which it continues.

    :raises ApiError: 400, 410 or 504.
    """
    token = _read_token(text)
    if token.rv == _CURRENT:
        return store.version, token.after
    if token.rv > store.version:
        raise too_large_resource_version(token.rv, store.version)
    if not store.table(call.resource.storage_key).channel.reaches(token.rv):
        raise expired_token(_write_token(_CURRENT, token.after))
    return token.rv, token.after


def _write_token(version: int, key: Key) -> str:
    start = "/".join(part for part in key if part) + "\0"
    encoded = msgspec.json.encode(_Token("meta.k8s.io/v1", version, start))
    return base64.urlsafe_b64encode(encoded).rstrip(b"=").decode()


def _read_token(text: str) -> _Token:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=_Token)
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        raise bad_request("continue key is not valid: illegal base64 data") from None
