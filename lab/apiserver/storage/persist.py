"""The store's file: SQLite with a write-ahead log and without fsync.

The file survives a killed process, not a crashed machine; with the machine the lab is gone anyway.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path


class Database:
    """Stores encoded objects by storage key, namespace and name, and the resourceVersion counter."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the file; keep everything in memory when `path` is None."""
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        # Without fsync a commit does not wait for the disk; the operating system keeps the data of a killed process.
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS objects (resource TEXT, namespace TEXT, name TEXT, version INTEGER,"
            " body BLOB, PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, version INTEGER)")
        self._db.execute("INSERT OR IGNORE INTO counter VALUES (1, 1)")

    def load_version(self) -> int:
        """Return the last resourceVersion."""
        row = self._db.execute("SELECT version FROM counter WHERE id = 1").fetchone()
        return int(row[0])

    def load_objects(self) -> Iterator[tuple[str, str, str, int, bytes]]:
        """Yield storage key, namespace, name, resourceVersion and encoded object."""
        yield from self._db.execute("SELECT resource, namespace, name, version, body FROM objects")

    def write(self, resource: str, namespace: str, name: str, version: int, body: bytes) -> None:
        """Insert or replace an object and store the new resourceVersion, in one transaction."""
        self._db.execute("BEGIN")
        self._db.execute(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", (resource, namespace, name, version, body)
        )
        self._finish(version)

    def delete(self, resource: str, namespace: str, name: str, version: int) -> None:
        """Delete an object and store the new resourceVersion, in one transaction."""
        self._db.execute("BEGIN")
        self._db.execute(
            "DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?", (resource, namespace, name)
        )
        self._finish(version)

    def _finish(self, version: int) -> None:
        self._db.execute("UPDATE counter SET version = ? WHERE id = 1", (version,))
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._db.close()
