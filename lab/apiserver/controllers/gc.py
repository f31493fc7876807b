"""Garbage collection by owner references, as in kube-controller-manager.

An object is deleted once all of its owners are gone. Foreground deletion waits for the dependents; orphaning removes
their owner references. Every action gets a uid, reads the store and decides; `manager.py` queues the actions.
"""

from __future__ import annotations

from collections.abc import Callable

from lab.apiserver.endpoints.request import NO_OPTIONS, ResourceTarget
from lab.apiserver.errors import Object
from lab.apiserver.registry.resources import Registry, ServedResource
from lab.apiserver.rest.deletion import DeleteOptions, delete
from lab.apiserver.rest.verbs import Rest, RestCall
from lab.apiserver.storage.store import Store, StoredObject

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
_Enqueue = Callable[[Callable[[str], None], str], None]


def call_for(resource: ServedResource, namespace: str = "", name: str = "") -> RestCall:
    """Return a request of the server to itself."""
    return RestCall(
        resource, ResourceTarget(resource.group, resource.version, resource.plural, namespace, name), NO_OPTIONS
    )


class GarbageCollector:
    """The garbage collector's actions.

    :param enqueue: queues an action with its argument.
    """

    def __init__(self, store: Store, registry: Registry, rest: Rest, enqueue: _Enqueue) -> None:
        self._store = store
        self._registry = registry
        self._rest = rest
        self._enqueue = enqueue

    def on_removal(self, metadata: Object) -> None:
        """Queue the dependents and owners of a removed object."""
        self._enqueue(self._collect_dependents, metadata["uid"])
        for owner in metadata.get("ownerReferences") or ():
            self._enqueue(self._finish_owner, owner["uid"])

    def on_write(self, metadata: Object) -> None:
        """Queue a written object whose owners may be gone, or that may wait for its dependents."""
        if metadata.get("ownerReferences"):
            self._enqueue(self._collect, metadata["uid"])
        if metadata.get("deletionTimestamp") and {FOREGROUND, ORPHAN} & set(metadata.get("finalizers") or ()):
            self._enqueue(self._finish_owner, metadata["uid"])

    def _dependents(self, uid: str) -> list[tuple[str, StoredObject]]:
        return [
            (storage_key, stored)
            for storage_key, stored in self._store.list_all()
            if any(owner["uid"] == uid for owner in stored.obj["metadata"].get("ownerReferences") or ())
        ]

    def _find(self, uid: str) -> tuple[ServedResource, StoredObject] | None:
        location = self._store.by_uid(uid)
        if location is None:
            return None
        resource, stored = self._registry.storage(location[0]), self._store.get(*location)
        return None if resource is None or stored is None else (resource, stored)

    def _collect_dependents(self, uid: str) -> None:
        for _, stored in self._dependents(uid):
            self._collect(stored.obj["metadata"]["uid"])

    def _collect(self, uid: str) -> None:
        """Delete the object if none of its owners is left; remove references to owners that are gone."""
        found = self._find(uid)
        if found is None:
            return
        resource, stored = found
        owners: list[Object] = stored.obj["metadata"].get("ownerReferences") or []
        # An owner whose kind this server does not store cannot be looked up; such an owner never counts as deleted.
        remaining = [
            owner for owner in owners if self._is_served(owner) is False or self._find(owner["uid"]) is not None
        ]
        if len(remaining) == len(owners):
            return
        if remaining:
            self._change(resource, stored, lambda metadata: metadata.update(ownerReferences=remaining))
        else:
            self._delete(resource, stored, "")

    def _is_served(self, owner: Object) -> bool:
        """Return whether this server stores the owner's kind; it cannot decide whether other owners exist."""
        group = owner["apiVersion"].rpartition("/")[0]
        return self._registry.by_kind(group, owner["kind"]) is not None

    def _finish_owner(self, uid: str) -> None:
        """Remove the propagation finalizer from an owner once it has nothing left to wait for."""
        found = self._find(uid)
        if found is None or not found[1].obj["metadata"].get("deletionTimestamp"):
            return
        resource, owner = found
        finalizers = owner.obj["metadata"].get("finalizers") or []
        if ORPHAN in finalizers:
            for storage_key, stored in self._dependents(uid):
                dependent = self._registry.storage(storage_key)
                if dependent is not None:
                    self._change(dependent, stored, lambda metadata: _remove_owner(metadata, uid))
            self.drop_finalizer(resource, owner, ORPHAN)
        elif FOREGROUND in finalizers:
            for storage_key, stored in self._dependents(uid):
                dependent = self._registry.storage(storage_key)
                if dependent is not None and not stored.obj["metadata"].get("deletionTimestamp"):
                    self._delete(dependent, stored, FOREGROUND)
            # Only references with blockOwnerDeletion keep the owner in foreground deletion.
            blocking = any(
                reference.get("blockOwnerDeletion")
                for _, stored in self._dependents(uid)
                for reference in stored.obj["metadata"]["ownerReferences"]
                if reference["uid"] == uid
            )
            if not blocking:
                self.drop_finalizer(resource, owner, FOREGROUND)

    def _delete(self, resource: ServedResource, stored: StoredObject, finalizer: str) -> None:
        metadata = stored.obj["metadata"]
        if not metadata.get("deletionTimestamp"):
            call = call_for(resource, metadata.get("namespace", ""), metadata["name"])
            delete(self._rest, call, DeleteOptions(finalizer=finalizer))

    def drop_finalizer(self, resource: ServedResource, stored: StoredObject, finalizer: str) -> None:
        """Remove one finalizer; the object is removed if it was the last."""

        def without(metadata: Object) -> None:
            metadata["finalizers"] = [name for name in metadata.get("finalizers") or [] if name != finalizer]

        self._change(resource, stored, without)

    def _change(self, resource: ServedResource, stored: StoredObject, change: Callable[[Object], None]) -> None:
        obj = stored.copy(resource)
        metadata = obj["metadata"]
        change(metadata)
        # Empty lists are omitted, as upstream's encoder does.
        for name in ("ownerReferences", "finalizers"):
            if not metadata.get(name):
                metadata.pop(name, None)
        if self._rest.can_remove(resource, obj):
            self._store.remove(resource.storage_key, stored)
        else:
            self._store.put(resource.storage_key, obj)


def _remove_owner(metadata: Object, uid: str) -> None:
    owners = metadata.get("ownerReferences") or []
    metadata["ownerReferences"] = [owner for owner in owners if owner["uid"] != uid]
