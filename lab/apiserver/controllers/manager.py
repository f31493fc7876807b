"""The server's controllers for namespaces, CRDs and Events.

They serve CRDs and mark them established, delete the content of terminating namespaces and CRDs, create each
namespace's service account and CA ConfigMap, and expire old Events. Changes in the store trigger them through one
queue. Every action reads the store again, so a superfluous one is harmless. `gc.py` handles owner references.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable

from lab.apiserver.controllers.gc import GarbageCollector, call_for
from lab.apiserver.errors import ApiError, Object
from lab.apiserver.registry import crd as crds
from lab.apiserver.registry.resources import CRD_KEY, Registry, ServedResource
from lab.apiserver.rest.deletion import DeleteOptions, delete
from lab.apiserver.rest.verbs import Rest
from lab.apiserver.storage.store import Store, StoredObject
from lab.apiserver.storage.watch import Event

EVENT_TTL = dt.timedelta(hours=1)
"""Lifetime of an Event object after its last write, as upstream's `--event-ttl`."""

_log = logging.getLogger("hotnic.lab.apiserver")
_Action = tuple[Callable[[str], None], str]


class Controllers:
    """The controllers of one store; `run` must run as a task."""

    def __init__(self, store: Store, registry: Registry, rest: Rest, ca_pem: str) -> None:
        self._store = store
        self._registry = registry
        self._rest = rest
        self._ca_pem = ca_pem
        self._gc = GarbageCollector(store, registry, rest, self.enqueue)
        self._queue: asyncio.Queue[_Action] = asyncio.Queue()
        self._queued: set[_Action] = set()
        # The registry is not persisted: after a restart, CRDs are served from the stored objects.
        for stored in store.list(CRD_KEY):
            crds.serve_crd(registry, stored.obj)
        for storage_key, stored in list(store.list_all()):
            self._trigger(storage_key, stored)
        store.add_listener(self._on_change)

    async def run(self) -> None:
        """Process the queue until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._expire_events(), name="events expire")
            while True:
                item = await self._queue.get()
                self._queued.discard(item)
                try:
                    item[0](item[1])
                except ApiError as error:
                    _log.warning("controller action rejected: %s", error)
                except Exception:  # a failure with one object must not stop the work on all others
                    _log.exception("controller action %s(%s) failed", item[0].__name__, item[1])

    def enqueue(self, action: Callable[[str], None], argument: str) -> None:
        """Queue `action(argument)` unless it is queued already."""
        item = (action, argument)
        # An action reads the current state, so a second one in the queue would find nothing to do.
        if item not in self._queued:
            self._queued.add(item)
            self._queue.put_nowait(item)

    def _on_change(self, storage_key: str, event: Event) -> None:
        if event.type == "DELETED":
            self._on_removal(storage_key, event.stored.obj)
            return
        if storage_key == CRD_KEY:
            before = event.before.obj["spec"] if event.before else None
            if before != event.stored.obj["spec"]:
                crds.serve_crd(self._registry, event.stored.obj)
        self._trigger(storage_key, event.stored)

    def _on_removal(self, storage_key: str, obj: Object) -> None:
        metadata = obj["metadata"]
        self._gc.on_removal(metadata)
        if storage_key == CRD_KEY:
            group, plural = obj["spec"]["group"], obj["spec"]["names"]["plural"]
            # The API remains until the CRD is removed, which happens after its last object is deleted.
            self._registry.drop(group, plural)
            self._store.end_watches(f"{group}/{plural}")
        namespace = metadata.get("namespace", "")
        if namespace:
            self.enqueue(self._delete_namespace_content, namespace)
        group, _, plural = storage_key.partition("/")
        if group:
            self.enqueue(self._delete_crd_objects, f"{plural}.{group}")

    def _trigger(self, storage_key: str, stored: StoredObject) -> None:
        metadata = stored.obj["metadata"]
        terminating = bool(metadata.get("deletionTimestamp"))
        if storage_key == "/namespaces":
            self.enqueue(self._delete_namespace_content if terminating else self._populate_namespace, metadata["name"])
        elif storage_key == CRD_KEY:
            self.enqueue(self._delete_crd_objects if terminating else self._establish, metadata["name"])
        self._gc.on_write(metadata)

    # -- namespaces

    def _populate_namespace(self, name: str) -> None:
        if self._store.get("/namespaces", "", name) is None:
            return
        content: tuple[tuple[str, Object], ...] = (
            ("/serviceaccounts", {"metadata": {"name": "default"}}),
            ("/configmaps", {"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": self._ca_pem}}),
        )
        for storage_key, obj in content:
            resource = self._registry.storage(storage_key)
            if resource is not None and self._store.get(storage_key, name, obj["metadata"]["name"]) is None:
                self._rest.create(call_for(resource, name), obj)

    def _delete_namespace_content(self, name: str) -> None:
        namespace = self._store.get("/namespaces", "", name)
        if namespace is None or not namespace.obj["metadata"].get("deletionTimestamp"):
            return
        remaining = [self._delete_all(resource, name) for resource in self._registry.stored() if resource.namespaced]
        if not any(remaining) and not namespace.obj["metadata"].get("finalizers"):
            self._store.remove("/namespaces", namespace)

    def _delete_all(self, resource: ServedResource, namespace: str = "") -> int:
        """Delete all objects of a resource; return how many still exist."""
        for stored in self._store.list(resource.storage_key, namespace):
            metadata = stored.obj["metadata"]
            if not metadata.get("deletionTimestamp"):
                call = call_for(resource, metadata.get("namespace", ""), metadata["name"])
                delete(self._rest, call, DeleteOptions())
        return len(self._store.list(resource.storage_key, namespace))

    # -- custom resource definitions

    def _establish(self, name: str) -> None:
        stored = self._store.get(CRD_KEY, "", name)
        if stored is None or (stored.obj.get("status") or {}).get("conditions"):
            return
        resource = self._registry.storage(CRD_KEY)
        assert resource is not None
        obj = stored.copy(resource)
        obj["status"] = crds.established_status(obj)
        # Without the finalizer, a deleted CRD would disappear before its objects.
        finalizers = obj["metadata"].setdefault("finalizers", [])
        if crds.CLEANUP not in finalizers:
            finalizers.append(crds.CLEANUP)
        self._store.put(CRD_KEY, obj)

    def _delete_crd_objects(self, name: str) -> None:
        stored = self._store.get(CRD_KEY, "", name)
        if stored is None or not stored.obj["metadata"].get("deletionTimestamp"):
            return
        spec = stored.obj["spec"]
        resource = self._registry.storage(f"{spec['group']}/{spec['names']['plural']}")
        if resource is None or not self._delete_all(resource):
            definitions = self._registry.storage(CRD_KEY)
            assert definitions is not None
            self._gc.drop_finalizer(definitions, stored, crds.CLEANUP)

    # -- events

    async def _expire_events(self) -> None:
        while True:
            limit = (dt.datetime.now(dt.UTC) - EVENT_TTL).strftime("%Y-%m-%dT%H:%M:%SZ")
            for stored in self._store.list("/events"):
                # Times in the API's format sort like strings.
                last = stored.obj.get("lastTimestamp") or stored.obj["metadata"]["creationTimestamp"]
                if last < limit:
                    self._store.remove("/events", stored)
            await asyncio.sleep(60)
