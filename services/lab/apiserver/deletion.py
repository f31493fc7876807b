"""Deleting: grace periods, finalizers, preconditions, propagation, and whole collections.

An object is removed at once, or marked with `deletionTimestamp` and removed by the update that takes its last
finalizer (`rest.py`), by its kubelet (grace 0), or by a controller (`controllers.py`) for namespaces and CRDs.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from services.lab.apiserver.errors import Object, bad_request, conflict
from services.lab.apiserver.listing import Page, list_objects
from services.lab.apiserver.request import Options
from services.lab.apiserver.resources import Resource
from services.lab.apiserver.rest import Call, Rest
from services.lab.apiserver.store import Stored

_POLICIES = {"Foreground": "foregroundDeletion", "Orphan": "orphan", "Background": ""}


@dataclass(frozen=True, slots=True)
class Deletion:
    """How to delete: `finalizer` holds the object for the garbage collector ("" for background)."""

    grace: int | None = None
    finalizer: str = ""
    uid: str = ""
    version: str = ""
    dry_run: bool = False


def read_options(body: Any, options: Options) -> Deletion:
    """DeleteOptions from the body, or from the query. Raises `ApiError` 400."""
    given: Object = body if isinstance(body, dict) else {}
    grace = given.get("gracePeriodSeconds", options.number("gracePeriodSeconds"))
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool)):
        raise bad_request("gracePeriodSeconds must be a whole number")
    policy = given.get("propagationPolicy") or options.text("propagationPolicy")
    if not policy and (given.get("orphanDependents") or options.flag("orphanDependents")):
        policy = "Orphan"
    if policy and policy not in _POLICIES:
        raise bad_request(f'invalid propagationPolicy "{policy}": supported values: Foreground, Background, Orphan')
    conditions = given.get("preconditions") or {}
    return Deletion(
        grace=None if grace is None else max(grace, 0),
        finalizer=_POLICIES.get(policy, ""),
        uid=conditions.get("uid") or "",
        version=conditions.get("resourceVersion") or "",
        dry_run=options.dry_run or given.get("dryRun") == ["All"],
    )


def delete(rest: Rest, call: Call, how: Deletion) -> tuple[Stored, bool]:
    """Delete one object; returns its last state and whether it is gone already. Raises `ApiError` 404, 409."""
    stored = rest.find(call)
    _check(call.resource, stored, how)
    return _delete(rest, call.resource, stored, how)


def delete_collection(rest: Rest, call: Call, how: Deletion) -> Page:
    """Delete everything that a list with these options would show."""
    page = list_objects(rest.store, call)
    gone = [_delete(rest, call.resource, stored, how)[0] for stored in page.items]
    return Page(gone, page.version, page.next_token, page.remaining)


def _check(resource: Resource, stored: Stored, how: Deletion) -> None:
    metadata = stored.obj["metadata"]
    for label, wanted, found in (
        ("UID", how.uid, metadata["uid"]),
        ("ResourceVersion", how.version, metadata["resourceVersion"]),
    ):
        if wanted and wanted != found:
            why = f"Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {found}"
            raise conflict(resource.group, resource.plural, metadata["name"], why)


def _delete(rest: Rest, resource: Resource, stored: Stored, how: Deletion) -> tuple[Stored, bool]:
    strategy = rest.strategy(resource)
    grace = strategy.grace_seconds(stored.obj, how.grace)
    obj = stored.copy(resource)
    metadata = obj["metadata"]
    before = metadata.get("deletionGracePeriodSeconds")
    if metadata.get("deletionTimestamp") and before is not None:
        grace = min(grace, before)  # a second deletion may only shorten the wait
    if how.finalizer and how.finalizer not in metadata.get("finalizers", []) and _owns_matter(resource):
        metadata.setdefault("finalizers", []).append(how.finalizer)
    if not metadata.get("deletionTimestamp") or grace != before:
        moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=grace)
        metadata["deletionTimestamp"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["deletionGracePeriodSeconds"] = grace
    if strategy.generation and before is None:
        metadata["generation"] = metadata.get("generation", 0) + 1
    if resource.storage_key == "/namespaces":
        obj["status"] = {"phase": "Terminating"}
    gone = rest.may_go(resource, obj)
    if how.dry_run:
        return stored, gone
    if gone:
        return rest.store.remove(resource.storage_key, stored), True
    if obj == stored.obj | {"kind": obj["kind"], "apiVersion": obj["apiVersion"]}:
        return stored, False
    return rest.store.put(resource.storage_key, obj), False


def _owns_matter(resource: Resource) -> bool:
    """Namespaces are emptied by their own controller, so propagation means nothing for them."""
    return resource.storage_key != "/namespaces"
