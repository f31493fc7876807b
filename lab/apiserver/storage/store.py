"""The object store: a dictionary per resource, one resourceVersion counter, and an event log for watchers.

Stored objects are never changed in place. A change creates a new dictionary and encodes it once; all readers and
watchers share the bytes. Each commit is in SQLite before the caller continues (`persist.py`), so a killed server
restarts with the same objects and versions. The event log is not persisted; after a restart, older versions give 410.
All code here runs on the event loop without awaiting, so a commit is atomic for all other tasks.
`rest/verbs.py` has the rules of kinds; `watch.py` selects what watchers receive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from lab.apiserver.errors import Object
from lab.apiserver.registry.resources import ServedResource
from lab.apiserver.storage.persist import Database
from lab.apiserver.storage.watch import Channel, Event, Key

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict).decode


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object at one resourceVersion.

    :ivar tail: its JSON without the opening brace, kind and apiVersion.
    """

    obj: Object
    tail: bytes
    version: int

    @property
    def key(self) -> Key:
        """Return namespace and name."""
        metadata = self.obj["metadata"]
        return metadata.get("namespace", ""), metadata["name"]

    def render(self, resource: ServedResource) -> bytes:
        """Return the object as JSON in a served version."""
        return resource.type_meta + self.tail

    def copy(self, resource: ServedResource) -> Object:
        """Return a private copy; decoding is the fastest deep copy."""
        found: Object = _decode(resource.type_meta + self.tail)
        return found

    @property
    def bare(self) -> bytes:
        """Return the JSON without kind and apiVersion, the form of items in lists of built-in kinds."""
        return b"{" + self.tail


@dataclass(slots=True)
class ResourceTable:
    """All objects of one resource, and the channel of their changes."""

    channel: Channel
    objects: dict[Key, StoredObject] = field(default_factory=dict)


class Store:
    """The objects of all resources.

    :param log_size: most events kept per resource for watches.
    """

    def __init__(self, database: Database, log_size: int = 10_000) -> None:
        self._database = database
        self._log_size = log_size
        self._tables: dict[str, ResourceTable] = {}
        self._uids: dict[str, tuple[str, str, str]] = {}
        self._listeners: list[Callable[[str, Event], None]] = []
        self.version = self._start = database.load_version()
        for storage_key, namespace, name, version, tail in database.load_objects():
            stored = StoredObject(_decode(b"{" + tail), tail, version)
            self.table(storage_key).objects[(namespace, name)] = stored
            self._uids[stored.obj["metadata"]["uid"]] = (storage_key, namespace, name)

    def table(self, storage_key: str) -> ResourceTable:
        """Return the table of a resource; create it on first use."""
        found = self._tables.get(storage_key)
        if found is None:
            found = self._tables[storage_key] = ResourceTable(Channel(floor=self._start, size=self._log_size))
        return found

    def add_listener(self, listener: Callable[[str, Event], None]) -> None:
        """Call `listener` with storage key and event for every change, synchronously after the commit."""
        self._listeners.append(listener)

    def get(self, storage_key: str, namespace: str, name: str) -> StoredObject | None:
        """Return an object, or None."""
        return self.table(storage_key).objects.get((namespace, name))

    def by_uid(self, uid: str) -> tuple[str, str, str] | None:
        """Return storage key, namespace and name of the object with this uid, or None."""
        return self._uids.get(uid)

    def forget_past(self) -> None:
        """Answer no request any more for a version before the current one."""
        self._start = self.version
        for table in self._tables.values():
            table.channel.forget(self.version)

    def list(self, storage_key: str, namespace: str = "", version: int | None = None) -> list[StoredObject]:
        """Return objects in the order of their keys.

        :param namespace: empty for all namespaces.
        :param version: of the state to return; the current one by default.
        :raises ApiError: 410 when the event log starts later than this version.
        """
        table = self.table(storage_key)
        objects = (
            table.objects
            if version is None or version == self.version
            else table.channel.rewind(table.objects, version)
        )
        return [objects[key] for key in sorted(objects) if not namespace or key[0] == namespace]

    def list_all(self) -> Iterator[tuple[str, StoredObject]]:
        """Yield every object with its storage key."""
        for storage_key, table in self._tables.items():
            for stored in table.objects.values():
                yield storage_key, stored

    def put(self, storage_key: str, obj: Object) -> StoredObject:
        """Write an object under the next resourceVersion; the store takes ownership of `obj`."""
        self.version += 1
        metadata = obj["metadata"]
        metadata["resourceVersion"] = str(self.version)
        key = metadata.get("namespace", ""), metadata["name"]
        bare = {name: value for name, value in obj.items() if name not in ("kind", "apiVersion")}
        stored = StoredObject(bare, _encode(bare)[1:], self.version)
        table = self.table(storage_key)
        before = table.objects.get(key)
        # The file comes first: a watcher must never see a change that a killed server would lose.
        self._database.write(storage_key, key[0], key[1], self.version, stored.tail)
        table.objects[key] = stored
        self._uids[metadata["uid"]] = (storage_key, *key)
        self._publish(storage_key, table, Event("MODIFIED" if before else "ADDED", stored, before))
        return stored

    def remove(self, storage_key: str, stored: StoredObject) -> StoredObject:
        """Remove an object; return its last state, with the resourceVersion of the removal."""
        self.version += 1
        metadata, key = stored.obj["metadata"], stored.key
        # A watcher that continues from the removal needs its version.
        last = dict(stored.obj, metadata={**metadata, "resourceVersion": str(self.version)})
        removed = StoredObject(last, _encode(last)[1:], self.version)
        table = self.table(storage_key)
        self._database.delete(storage_key, key[0], key[1], self.version)
        del table.objects[key]
        self._uids.pop(metadata["uid"], None)
        self._publish(storage_key, table, Event("DELETED", removed, stored))
        return removed

    def _publish(self, storage_key: str, table: ResourceTable, event: Event) -> None:
        table.channel.publish(event)
        for listener in self._listeners:
            listener(storage_key, event)

    def end_watches(self, storage_key: str) -> None:
        """End all watches of a resource that is no longer served."""
        self.table(storage_key).channel.close()

    def close(self) -> None:
        """End all watches and close the database."""
        for table in self._tables.values():
            table.channel.close()
        self._database.close()
