"""The objects: one dictionary per resource, one counter for all resourceVersions, one log for watchers.

Stored objects are never changed in place: a change is a new dictionary, encoded once; its bytes serve every
reader and every watcher. Each commit is in SQLite before the caller hears of it (`persist.py`), so a killed
server comes back with the same objects and versions; the event log is not kept, so old versions then give 410.
Everything here runs on the event loop without awaiting: a commit is atomic for all other tasks.
Knows nothing of kinds' rules (`rest.py`); what watchers get is in `watch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from services.lab.apiserver.errors import Object
from services.lab.apiserver.persist import Database
from services.lab.apiserver.resources import Resource
from services.lab.apiserver.watch import Channel, Event

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict).decode


@dataclass(frozen=True, slots=True)
class Stored:
    """One object at one resourceVersion. `tail` is its JSON without the opening brace, kind and apiVersion."""

    obj: Object
    tail: bytes
    version: int

    def render(self, resource: Resource) -> bytes:
        """The whole object as JSON, in the given served version."""
        return resource.type_meta + self.tail

    def copy(self, resource: Resource) -> Object:
        """A private copy to change; decoding is the quickest deep copy there is."""
        found: Object = _decode(resource.type_meta + self.tail)
        return found

    @property
    def bare(self) -> bytes:
        """JSON without kind and apiVersion: how lists of built-in kinds carry their items."""
        return b"{" + self.tail


@dataclass(slots=True)
class Table:
    """All objects of one resource, and the channel that tells their changes."""

    channel: Channel
    objects: dict[tuple[str, str], Stored] = field(default_factory=dict)


class Store:
    """Objects of all resources. `log_size` bounds the events remembered per resource for watches."""

    def __init__(self, database: Database, log_size: int = 10_000) -> None:
        self._database = database
        self._log_size = log_size
        self._tables: dict[str, Table] = {}
        self._uids: dict[str, tuple[str, str, str]] = {}
        self._listeners: list[Callable[[str, Event], None]] = []
        self.version = self._start = database.load_version()
        for storage_key, namespace, name, version, tail in database.load_objects():
            stored = Stored(_decode(b"{" + tail), tail, version)
            self.table(storage_key).objects[(namespace, name)] = stored
            self._uids[stored.obj["metadata"]["uid"]] = (storage_key, namespace, name)

    def table(self, storage_key: str) -> Table:
        found = self._tables.get(storage_key)
        if found is None:
            found = self._tables[storage_key] = Table(Channel(floor=self._start, size=self._log_size))
        return found

    def listen(self, listener: Callable[[str, Event], None]) -> None:
        """Call back, synchronously and after the commit, for every change (storage key, event)."""
        self._listeners.append(listener)

    def get(self, storage_key: str, namespace: str, name: str) -> Stored | None:
        return self.table(storage_key).objects.get((namespace, name))

    def by_uid(self, uid: str) -> tuple[str, str, str] | None:
        """Where the object with that uid is: storage key, namespace, name."""
        return self._uids.get(uid)

    def list(self, storage_key: str, namespace: str = "") -> list[Stored]:
        """Objects in the order of their keys; an empty namespace means all."""
        objects = self.table(storage_key).objects
        return [objects[key] for key in sorted(objects) if not namespace or key[0] == namespace]

    def everything(self) -> Iterator[tuple[str, Stored]]:
        for storage_key, table in self._tables.items():
            for stored in table.objects.values():
                yield storage_key, stored

    def put(self, storage_key: str, obj: Object) -> Stored:
        """Write an object (it becomes the store's own) under the next resourceVersion."""
        self.version += 1
        metadata = obj["metadata"]
        metadata["resourceVersion"] = str(self.version)
        key = (metadata.get("namespace", ""), metadata["name"])
        bare = {name: value for name, value in obj.items() if name not in ("kind", "apiVersion")}
        stored = Stored(bare, _encode(bare)[1:], self.version)
        table = self.table(storage_key)
        before = table.objects.get(key)
        self._database.write(storage_key, key[0], key[1], self.version, stored.tail)
        table.objects[key] = stored
        self._uids[metadata["uid"]] = (storage_key, *key)
        self._tell(storage_key, table, Event("MODIFIED" if before else "ADDED", stored, before))
        return stored

    def remove(self, storage_key: str, stored: Stored) -> Stored:
        """Remove an object; its last state gets the version of the removal."""
        self.version += 1
        metadata = stored.obj["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        last = dict(stored.obj, metadata={**metadata, "resourceVersion": str(self.version)})
        gone = Stored(last, _encode(last)[1:], self.version)
        table = self.table(storage_key)
        self._database.delete(storage_key, key[0], key[1], self.version)
        del table.objects[key]
        self._uids.pop(metadata["uid"], None)
        self._tell(storage_key, table, Event("DELETED", gone, stored))
        return gone

    def _tell(self, storage_key: str, table: Table, event: Event) -> None:
        table.channel.publish(event)
        for listener in self._listeners:
            listener(storage_key, event)

    def forget(self, storage_key: str) -> None:
        """End all watches of a resource that is no longer served."""
        self.table(storage_key).channel.close()

    def close(self) -> None:
        """End all watches and the database."""
        for table in self._tables.values():
            table.channel.close()
        self._database.close()
