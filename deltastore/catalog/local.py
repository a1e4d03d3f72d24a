"""An index of one user on one machine, which knows what it has seen of each name.

It has the catalog's tables and two more. Nobody has to care for it: one that is damaged, of another
store or of another schema is thrown away and made anew from the records.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from deltastore.catalog import schema
from deltastore.catalog.catalog import Catalog
from deltastore.catalog.failures import damaged
from deltastore.catalog.sqlite import Session, SqliteDatabase
from deltastore.catalog.writer import CatalogWriter
from deltastore.errors import CatalogError, StoreError, StoreOutdatedError, StoreTooNewError

_TABLES = (
    "CREATE TABLE local_store (id TEXT NOT NULL)",
    "CREATE TABLE local_seen (name TEXT PRIMARY KEY, stamp TEXT NOT NULL) WITHOUT ROWID",
)


class FollowingWriter(CatalogWriter):
    """A transaction that brings names up to date; made by ``LocalIndex.following``."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._local = session

    def see(self, name: str, stamp: str) -> None:
        """Remember what a name looked like when it was read; empty if that proves nothing."""
        self._local.run(
            "INSERT OR REPLACE INTO local_seen (name, stamp) VALUES (:name, :stamp)",
            {"name": name, "stamp": stamp},
        )

    def forget(self, name: str) -> None:
        """Remove all there is of a name."""
        for version in self.versions(name):
            self.remove_version(name, version)
        self._local.run("DELETE FROM local_seen WHERE name = :name", {"name": name})


class LocalIndex(Catalog):
    """A catalog outside the store. Made by ``open`` or ``unshared``."""

    def __init__(self, database: SqliteDatabase) -> None:
        super().__init__(database)
        self._file = database

    @classmethod
    def open(cls, path: Path, store_id: str) -> Self:
        """The index at ``path`` of the store ``store_id``, empty if it had to be made anew.

        Raises:
            StoreError: It cannot be made there.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Of several processes that find the index damaged one throws it away: the others
            # look again when they have the lock, and find the new one.
            with open(path.with_name(f"{path.name}.lock"), "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    return cls._opened(path, store_id)
                except (CatalogError, StoreOutdatedError, StoreTooNewError) as error:
                    if isinstance(error, CatalogError) and not error.facts.get("damaged"):
                        raise
                path.unlink(missing_ok=True)
                path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
                return cls._opened(path, store_id)
        except OSError as error:
            raise StoreError(f"The index {path} cannot be made: {error.strerror}.") from error

    @classmethod
    def unshared(cls, store_id: str) -> Self:
        """An index in memory, where there is no place for a file."""
        index = cls(SqliteDatabase(None))
        index._prepare(store_id)
        return index

    @classmethod
    def _opened(cls, path: Path, store_id: str) -> Self:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise damaged(str(path), "it is no regular file")
        index = cls(SqliteDatabase(path))
        index._prepare(store_id)
        return index

    def _prepare(self, store_id: str) -> None:
        where = self._file.where
        if self.revision() is None:
            with self._file.writing() as session:
                if schema.revision(session, where) is None:
                    schema.create_schema(session)
                    for statement in _TABLES:
                        session.run(statement)
                    session.run("INSERT INTO local_store (id) VALUES (:id)", {"id": store_id})
        schema.check_revision(self.revision() or "", where)
        with self._file.reading() as session:
            found = session.rows("PRAGMA quick_check(1)")[0][0]
            if found != "ok":
                raise damaged(where, str(found))
            if session.rows("SELECT id FROM local_store") != [(store_id,)]:
                raise damaged(where, "it is of another store")
            # A table that is missing is found here, where the index can still be made anew.
            session.rows("SELECT name, stamp FROM local_seen LIMIT 0")

    def seen(self) -> dict[str, str]:
        """What each name looked like when it was last read."""
        with self._file.reading() as session:
            return dict(session.rows("SELECT name, stamp FROM local_seen"))

    @contextlib.contextmanager
    def following(self) -> Iterator[FollowingWriter]:
        """As ``writing``, for bringing names up to date."""
        with self._file.writing() as session:
            yield FollowingWriter(session)
