"""SQLite as the catalog's database, through Python's own driver.

The rollback journal is kept rather than a write-ahead log. Commits are rare and small, so that
nothing is gained by a log, and much is lost: a reader without write permission could not open the
catalog, a copy of ``catalog.db`` alone would lack what the log holds, and a log does not work on
network file systems.

SQLAlchemy's import takes longer than all else that a short command does, so that it is left to
what needs it: the tables' definition, migrations, and databases that are servers.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltastore.catalog.failures import translated
from deltastore.errors import StoreReadOnlyError

if TYPE_CHECKING:
    from sqlalchemy import Engine

BUSY_TIMEOUT_S = 30.0
SYNCHRONOUS = "EXTRA"
"""A row must survive a power cut before the lease that would have it added again is gone."""

_NO_VALUES: Mapping[str, Any] = {}


class Session:
    """One transaction. Values are named in the SQL as ``:name``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, values: Mapping[str, Any] = _NO_VALUES) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return self._connection.execute(sql, values).fetchall()

    def run(self, sql: str, values: Mapping[str, Any] = _NO_VALUES) -> int:
        """Change something; how many rows it met."""
        return self._connection.execute(sql, values).rowcount

    def run_each(self, sql: str, values: Iterable[Mapping[str, Any]]) -> None:
        """Run the same statement for each of these."""
        self._connection.executemany(sql, values)


class SqliteDatabase:
    """A SQLite file, or a database in memory that lasts as long as this object.

    No connection to a file outlives its use: nothing to close, nothing that a fork copies.

    Args:
        path: The file, which the first write makes; None for memory.
        read_only: Whether writing is refused.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._memory: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        """The database's place, for messages."""
        return "in memory" if self._path is None else str(self._path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one state.

        Raises:
            CatalogError: The database is damaged, locked, or fails otherwise.
        """
        with translated(self.where), self._transaction("BEGIN") as connection:
            yield Session(connection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that holds the write lock; an exception in the block undoes it.

        Raises:
            StoreReadOnlyError: The database cannot be written.
            NoSpaceError: The disk is full.
            CatalogError: The database is damaged, locked, or fails otherwise.
        """
        self._require_writable()
        # The lock is taken at the start: two writers that both read first would otherwise each
        # wait for the other, and one would fail at once, however long it may wait.
        with translated(self.where), self._transaction("BEGIN IMMEDIATE") as connection:
            yield Session(connection)

    def engine(self) -> Engine:
        """The same for SQLAlchemy; every transaction takes the write lock at its start.

        Raises:
            StoreReadOnlyError: The database cannot be written.
        """
        from sqlalchemy import create_engine, event
        from sqlalchemy.pool import NullPool

        self._require_writable()
        engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)

        @event.listens_for(engine, "begin")
        def _on_begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def close(self) -> None:
        """Release what is open; idempotent."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _require_writable(self) -> None:
        if self._read_only:
            raise StoreReadOnlyError(
                f"The catalog {self.where} cannot be written.",
                hint="Ask the store's owner for write permission.",
            )

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # An error of the disk may have undone the transaction already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if self._path is None:
            with self._lock:
                if self._memory is None:
                    self._memory = self._connect()
                yield self._memory
            return
        with contextlib.closing(self._connect()) as connection:
            yield connection

    def _connect(self) -> sqlite3.Connection:
        if self._path is None:
            place = ":memory:"
        else:
            if not self._read_only and not self._path.exists():
                # SQLite would make it 0644 whatever the umask says; a group could not share it.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            mode = "ro" if self._read_only else "rw"
            place = f"{self._path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            place,
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            check_same_thread=False,
            # Transactions begin where this module says so, not where the driver guesses.
            isolation_level=None,
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        return connection
