"""The server's own background work on namespaces, CRDs and Events.

Serves CRDs and marks them established, empties namespaces and CRDs that are going, gives namespaces their
service account and CA, lets old Events expire. Driven by the store's changes through one queue; every step reads
the store again, so a step too many does no harm. Owner references are the business of `gc.py`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable

from services.lab.apiserver import crd as crds
from services.lab.apiserver.deletion import Deletion, delete
from services.lab.apiserver.errors import ApiError, Object
from services.lab.apiserver.gc import GarbageCollector, call_for
from services.lab.apiserver.resources import CRD_KEY, Registry, Resource
from services.lab.apiserver.rest import Rest
from services.lab.apiserver.store import Store, Stored
from services.lab.apiserver.watch import Event

EVENT_LIFE = dt.timedelta(hours=1)
"""How long an Event object lives after it was last written, as upstream's `--event-ttl`."""

_log = logging.getLogger("hotnic.lab.apiserver")
_Step = tuple[Callable[[str], None], str]


class Controllers:
    """Background work on one store; `run` it as a task."""

    def __init__(self, store: Store, registry: Registry, rest: Rest, ca_pem: str) -> None:
        self._store = store
        self._registry = registry
        self._rest = rest
        self._ca_pem = ca_pem
        self._gc = GarbageCollector(store, registry, rest, self.enqueue)
        self._steps: asyncio.Queue[_Step] = asyncio.Queue()
        self._queued: set[_Step] = set()
        for stored in store.list(CRD_KEY):
            crds.serve(registry, stored.obj)
        for storage_key, stored in list(store.everything()):
            self._look_at(storage_key, stored)
        store.listen(self._on_change)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._expire_events(), name="events expire")
            while True:
                step = await self._steps.get()
                self._queued.discard(step)
                try:
                    step[0](step[1])
                except ApiError as error:
                    _log.warning("background step refused: %s", error)
                except Exception:  # one object that nobody thought of must not end the work on all others
                    _log.exception("background step %s(%s) failed", step[0].__name__, step[1])

    def enqueue(self, action: Callable[[str], None], argument: str) -> None:
        """Have `action(argument)` done soon, once however often it is asked for until then."""
        step = (action, argument)
        if step not in self._queued:
            self._queued.add(step)
            self._steps.put_nowait(step)

    def _on_change(self, storage_key: str, event: Event) -> None:
        if event.type == "DELETED":
            self._on_removal(storage_key, event.stored.obj)
            return
        if storage_key == CRD_KEY:
            before = event.before.obj["spec"] if event.before else None
            if before != event.stored.obj["spec"]:
                crds.serve(self._registry, event.stored.obj)
        self._look_at(storage_key, event.stored)

    def _on_removal(self, storage_key: str, obj: Object) -> None:
        metadata = obj["metadata"]
        self._gc.on_removal(metadata)
        if storage_key == CRD_KEY:
            group, plural = obj["spec"]["group"], obj["spec"]["names"]["plural"]
            self._registry.drop(group, plural)
            self._store.forget(f"{group}/{plural}")
        namespace = metadata.get("namespace", "")
        if namespace:
            self.enqueue(self._empty_namespace, namespace)
        group, _, plural = storage_key.partition("/")
        if group:
            self.enqueue(self._empty_crd, f"{plural}.{group}")

    def _look_at(self, storage_key: str, stored: Stored) -> None:
        metadata = stored.obj["metadata"]
        going = bool(metadata.get("deletionTimestamp"))
        if storage_key == "/namespaces":
            self.enqueue(self._empty_namespace if going else self._furnish_namespace, metadata["name"])
        elif storage_key == CRD_KEY:
            self.enqueue(self._empty_crd if going else self._establish, metadata["name"])
        self._gc.on_write(metadata)

    # -- namespaces

    def _furnish_namespace(self, name: str) -> None:
        if self._store.get("/namespaces", "", name) is None:
            return
        furniture: tuple[tuple[str, Object], ...] = (
            ("/serviceaccounts", {"metadata": {"name": "default"}}),
            ("/configmaps", {"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": self._ca_pem}}),
        )
        for storage_key, obj in furniture:
            resource = self._registry.storage(storage_key)
            if resource is not None and self._store.get(storage_key, name, obj["metadata"]["name"]) is None:
                self._rest.create(call_for(resource, name), obj)

    def _empty_namespace(self, name: str) -> None:
        namespace = self._store.get("/namespaces", "", name)
        if namespace is None or not namespace.obj["metadata"].get("deletionTimestamp"):
            return
        left = [self._empty(resource, name) for resource in self._registry.stored() if resource.namespaced]
        if not any(left) and not namespace.obj["metadata"].get("finalizers"):
            self._store.remove("/namespaces", namespace)

    def _empty(self, resource: Resource, namespace: str = "") -> int:
        """Delete all objects of a resource; returns how many are still there."""
        for stored in self._store.list(resource.storage_key, namespace):
            metadata = stored.obj["metadata"]
            if not metadata.get("deletionTimestamp"):
                call = call_for(resource, metadata.get("namespace", ""), metadata["name"])
                delete(self._rest, call, Deletion())
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
        finalizers = obj["metadata"].setdefault("finalizers", [])
        if crds.CLEANUP not in finalizers:
            finalizers.append(crds.CLEANUP)
        self._store.put(CRD_KEY, obj)

    def _empty_crd(self, name: str) -> None:
        stored = self._store.get(CRD_KEY, "", name)
        if stored is None or not stored.obj["metadata"].get("deletionTimestamp"):
            return
        spec = stored.obj["spec"]
        resource = self._registry.storage(f"{spec['group']}/{spec['names']['plural']}")
        if resource is None or not self._empty(resource):
            definitions = self._registry.storage(CRD_KEY)
            assert definitions is not None
            self._gc.drop_finalizer(definitions, stored, crds.CLEANUP)

    # -- events

    async def _expire_events(self) -> None:
        while True:
            limit = (dt.datetime.now(dt.UTC) - EVENT_LIFE).strftime("%Y-%m-%dT%H:%M:%SZ")
            for stored in self._store.list("/events"):
                last = stored.obj.get("lastTimestamp") or stored.obj["metadata"]["creationTimestamp"]
                if last < limit:
                    self._store.remove("/events", stored)
            await asyncio.sleep(60)
