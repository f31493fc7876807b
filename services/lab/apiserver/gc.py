"""Garbage collection by owner references, as kube-controller-manager does it.

An object all of whose owners are gone is deleted; foreground deletion waits for the dependents, orphaning cuts
them loose. Every step gets a uid, reads the store and decides; `controllers.py` queues the steps.
"""

from __future__ import annotations

from collections.abc import Callable

from services.lab.apiserver.deletion import Deletion, delete
from services.lab.apiserver.errors import Object
from services.lab.apiserver.request import NO_OPTIONS, Target
from services.lab.apiserver.resources import Registry, Resource
from services.lab.apiserver.rest import Call, Rest
from services.lab.apiserver.store import Store, Stored

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
_Enqueue = Callable[[Callable[[str], None], str], None]


def call_for(resource: Resource, namespace: str = "", name: str = "") -> Call:
    """A request of the server to itself."""
    return Call(resource, Target(resource.group, resource.version, resource.plural, namespace, name), NO_OPTIONS)


class GarbageCollector:
    """The steps; `enqueue` has them done later, one by one."""

    def __init__(self, store: Store, registry: Registry, rest: Rest, enqueue: _Enqueue) -> None:
        self._store = store
        self._registry = registry
        self._rest = rest
        self._enqueue = enqueue

    def on_removal(self, metadata: Object) -> None:
        """An object is gone: its dependents may go, its owners may have waited for it."""
        self._enqueue(self._collect_dependents, metadata["uid"])
        for owner in metadata.get("ownerReferences") or ():
            self._enqueue(self._finish_owner, owner["uid"])

    def on_write(self, metadata: Object) -> None:
        """An object was written: its owners may be gone, or it may wait for its dependents."""
        if metadata.get("ownerReferences"):
            self._enqueue(self._collect, metadata["uid"])
        if metadata.get("deletionTimestamp") and {FOREGROUND, ORPHAN} & set(metadata.get("finalizers") or ()):
            self._enqueue(self._finish_owner, metadata["uid"])

    def _dependents(self, uid: str) -> list[tuple[str, Stored]]:
        return [
            (storage_key, stored)
            for storage_key, stored in self._store.everything()
            if any(owner["uid"] == uid for owner in stored.obj["metadata"].get("ownerReferences") or ())
        ]

    def _find(self, uid: str) -> tuple[Resource, Stored] | None:
        place = self._store.by_uid(uid)
        if place is None:
            return None
        resource, stored = self._registry.storage(place[0]), self._store.get(*place)
        return None if resource is None or stored is None else (resource, stored)

    def _collect_dependents(self, uid: str) -> None:
        for _, stored in self._dependents(uid):
            self._collect(stored.obj["metadata"]["uid"])

    def _collect(self, uid: str) -> None:
        """Delete the object when no owner is left; forget single owners that are gone."""
        found = self._find(uid)
        if found is None:
            return
        resource, stored = found
        owners: list[Object] = stored.obj["metadata"].get("ownerReferences") or []
        alive = [owner for owner in owners if self._serves(owner) is False or self._find(owner["uid"]) is not None]
        if len(alive) == len(owners):
            return
        if alive:
            self._change(resource, stored, lambda metadata: metadata.update(ownerReferences=alive))
        else:
            self._delete(resource, stored, "")

    def _serves(self, owner: Object) -> bool:
        """Whether the owner's kind is one this server stores; of others it cannot say that they are gone."""
        group = owner["apiVersion"].rpartition("/")[0]
        return self._registry.by_kind(group, owner["kind"]) is not None

    def _finish_owner(self, uid: str) -> None:
        """Take the finalizer of propagation off an owner as soon as nothing is left to wait for."""
        found = self._find(uid)
        if found is None or not found[1].obj["metadata"].get("deletionTimestamp"):
            return
        resource, owner = found
        finalizers = owner.obj["metadata"].get("finalizers") or []
        if ORPHAN in finalizers:
            for storage_key, stored in self._dependents(uid):
                dependent = self._registry.storage(storage_key)
                if dependent is not None:
                    self._change(dependent, stored, lambda metadata: _disown(metadata, uid))
            self.drop_finalizer(resource, owner, ORPHAN)
        elif FOREGROUND in finalizers:
            for storage_key, stored in self._dependents(uid):
                dependent = self._registry.storage(storage_key)
                if dependent is not None and not stored.obj["metadata"].get("deletionTimestamp"):
                    self._delete(dependent, stored, FOREGROUND)
            blocking = any(
                reference.get("blockOwnerDeletion")
                for _, stored in self._dependents(uid)
                for reference in stored.obj["metadata"]["ownerReferences"]
                if reference["uid"] == uid
            )
            if not blocking:
                self.drop_finalizer(resource, owner, FOREGROUND)

    def _delete(self, resource: Resource, stored: Stored, finalizer: str) -> None:
        metadata = stored.obj["metadata"]
        if not metadata.get("deletionTimestamp"):
            call = call_for(resource, metadata.get("namespace", ""), metadata["name"])
            delete(self._rest, call, Deletion(finalizer=finalizer))

    def drop_finalizer(self, resource: Resource, stored: Stored, finalizer: str) -> None:
        """Take one finalizer off; the object goes when it was the last."""

        def without(metadata: Object) -> None:
            metadata["finalizers"] = [name for name in metadata.get("finalizers") or [] if name != finalizer]

        self._change(resource, stored, without)

    def _change(self, resource: Resource, stored: Stored, change: Callable[[Object], None]) -> None:
        obj = stored.copy(resource)
        metadata = obj["metadata"]
        change(metadata)
        for name in ("ownerReferences", "finalizers"):
            if not metadata.get(name):
                metadata.pop(name, None)
        if self._rest.may_go(resource, obj):
            self._store.remove(resource.storage_key, stored)
        else:
            self._store.put(resource.storage_key, obj)


def _disown(metadata: Object, uid: str) -> None:
    owners = metadata.get("ownerReferences") or []
    metadata["ownerReferences"] = [owner for owner in owners if owner["uid"] != uid]
