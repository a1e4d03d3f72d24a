"""An index of one user on one machine.

It has the catalog's tables and one more. Nobody has to care for it: one that is damaged, of another
store or of another schema is thrown away and made anew from the records.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from deltastore.catalog import schema
from deltastore.catalog.catalog import Catalog
from deltastore.catalog.failures import damaged
from deltastore.catalog.private import MODE, open_private
from deltastore.catalog.sqlite import SqliteDatabase

_TABLES = ("CREATE TABLE local_store (id TEXT NOT NULL)",)


class LocalIndex(Catalog):
    """A catalog outside the store. Made by ``open`` or ``unshared``."""

    _more_tables = _TABLES

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
        where = self._database.where
        if self.revision() is None:
            with self._database.writing() as session:
                if schema.revision(session, where) is None:
                    schema.create_schema(session)
                    for statement in _TABLES:
                        session.run(statement)
                    session.run("INSERT INTO local_store (id) VALUES (:id)", {"id": store_id})
        schema.check_revision(self.revision() or "", where)
        with self._database.reading() as session:
            found = session.rows("PRAGMA quick_check(1)")[0][0]
            if found != "ok":
                raise damaged(where, str(found))
            if session.rows("SELECT id FROM local_store") != [(store_id,)]:
                raise damaged(where, "it is of another store")
