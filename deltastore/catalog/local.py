"""An index of one user on one machine, which knows what it has seen of each name.

It has the catalog's tables and two more. Nobody has to care for it: one that is damaged, of another
store or of another schema is thrown away and made anew from the records.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from deltastore.catalog import checking, schema
from deltastore.catalog.catalog import Catalog
from deltastore.catalog.failures import damaged
from deltastore.catalog.private import MODE, open_private
from deltastore.catalog.sqlite import Session, SqliteDatabase
from deltastore.catalog.writer import CatalogWriter

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

    _more_tables = _TABLES

    def __init__(self, database: SqliteDatabase) -> None:
        super().__init__(database)
        self._file = database

    @classmethod
    def open(cls, path: Path, store_id: str) -> Self:
        """The index at ``path`` of the store ``store_id``, empty if it had to be made anew.

        Raises:
            StoreError: It cannot be made there.
        """
        return open_private(path, lambda real: cls._opened(real, store_id))

    @classmethod
    def unshared(cls, store_id: str) -> Self:
        """An index in memory, where there is no place for a file."""
        index = cls(SqliteDatabase(None))
        index._prepare(store_id)
        return index

    @classmethod
    def _opened(cls, path: Path, store_id: str) -> Self:
        index = cls(SqliteDatabase(path, mode=MODE))
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

    def seen(self) -> dict[str, str]:
        """What each name looked like when it was last read."""
        with self._file.reading() as session:
            rows = session.rows("SELECT name, stamp FROM local_seen")
        checking.check((checking.NAME_COLUMN, checking.STAMP_COLUMN), rows, self._file.where)
        return dict(rows)

    @contextlib.contextmanager
    def following(self) -> Iterator[FollowingWriter]:
        """As ``writing``, for bringing names up to date."""
        with self._file.writing() as session:
            yield FollowingWriter(session)
