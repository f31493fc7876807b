"""Deletion: grace periods, finalizers, preconditions, propagation, and whole collections.

An object is removed at once, or it gets a `deletionTimestamp`. Such an object is removed by the update that removes
its last finalizer (`verbs.py`), by its kubelet (grace 0), or, for namespaces and CRDs, by a controller
(`controllers/manager.py`).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from lab.apiserver.endpoints.request import Options
from lab.apiserver.errors import Object, bad_request, conflict
from lab.apiserver.registry.resources import ServedResource
from lab.apiserver.rest.listing import Page, list_objects
from lab.apiserver.rest.verbs import Rest, RestCall
from lab.apiserver.storage.store import StoredObject

_POLICIES = {"Foreground": "foregroundDeletion", "Orphan": "orphan", "Background": ""}


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """Options of a deletion.

    :ivar finalizer: the finalizer by which the garbage collector holds the object; "" for background propagation.
    """

    grace: int | None = None
    finalizer: str = ""
    uid: str = ""
    version: str = ""
    dry_run: bool = False


def parse_delete_options(body: Any, options: Options) -> DeleteOptions:
    """Return the DeleteOptions in the body, or in the query.

    :raises ApiError: 400.
    """
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
    return DeleteOptions(
        grace=None if grace is None else max(grace, 0),
        finalizer=_POLICIES.get(policy, ""),
        uid=conditions.get("uid") or "",
        version=conditions.get("resourceVersion") or "",
        dry_run=options.dry_run or given.get("dryRun") == ["All"],
    )


def delete(rest: Rest, call: RestCall, options: DeleteOptions) -> tuple[StoredObject, bool]:
    """Delete one object; return its last state and whether it is removed already.

    :raises ApiError: 404 or 409.
    """
    stored = rest.find(call)
    _check(call.resource, stored, options)
    return _delete(rest, call.resource, stored, options)


def delete_collection(rest: Rest, call: RestCall, options: DeleteOptions) -> Page:
    """Delete every object that a list with these options returns."""
    page = list_objects(rest.store, call)
    storage_key = call.resource.storage_key
    # A continued list shows objects as they were; some may be gone by now.
    present = [found for item in page.items if (found := rest.store.get(storage_key, *item.key)) is not None]
    removed = [_delete(rest, call.resource, stored, options)[0] for stored in present]
    return Page(removed, page.version, page.next_token, page.remaining)


def _check(resource: ServedResource, stored: StoredObject, options: DeleteOptions) -> None:
    metadata = stored.obj["metadata"]
    for label, expected, actual in (
        ("UID", options.uid, metadata["uid"]),
        ("ResourceVersion", options.version, metadata["resourceVersion"]),
    ):
        if expected and expected != actual:
            reason = f"Precondition failed: {label} in precondition: {expected}, {label} in object meta: {actual}"
            raise conflict(resource.group, resource.plural, metadata["name"], reason)


def _delete(
    rest: Rest, resource: ServedResource, stored: StoredObject, options: DeleteOptions
) -> tuple[StoredObject, bool]:
    strategy = rest.strategy(resource)
    grace = strategy.grace_seconds(stored.obj, options.grace)
    obj = stored.copy(resource)
    metadata = obj["metadata"]
    before = metadata.get("deletionGracePeriodSeconds")
    # A second deletion can only shorten the grace period.
    if metadata.get("deletionTimestamp") and before is not None:
        grace = min(grace, before)
    if options.finalizer and options.finalizer not in metadata.get("finalizers", []) and _propagates(resource):
        metadata.setdefault("finalizers", []).append(options.finalizer)
    if not metadata.get("deletionTimestamp") or grace != before:
        timestamp = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=grace)
        metadata["deletionTimestamp"] = timestamp.strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["deletionGracePeriodSeconds"] = grace
    # The deletion is a change of the desired state, so it counts in the generation, as upstream.
    if strategy.generation and before is None:
        metadata["generation"] = metadata.get("generation", 0) + 1
    if resource.storage_key == "/namespaces":
        obj["status"] = {"phase": "Terminating"}
    removed = rest.can_remove(resource, obj)
    if options.dry_run:
        return stored, removed
    if removed:
        return rest.store.remove(resource.storage_key, stored), True
    # The object is already being deleted with these options; a write would only produce an event without a change.
    if obj == stored.obj | {"kind": obj["kind"], "apiVersion": obj["apiVersion"]}:
        return stored, False
    return rest.store.put(resource.storage_key, obj), False


def _propagates(resource: ServedResource) -> bool:
    """Return whether propagation applies; namespaces are excluded, because their own controller empties them."""
    return resource.storage_key != "/namespaces"
