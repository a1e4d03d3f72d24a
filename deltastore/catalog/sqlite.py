"""SQLite as the catalog's database, through Python's own driver.

The rollback journal is kept rather than a write-ahead log. Commits are rare and small, so that
nothing is gained by a log, and much is lost: a reader without write permission could not open the
catalog, a copy of ``catalog.db`` alone would lack what the log holds, and a log does not work on
network file systems.

What a database's file holds may be a stranger's, in an archive that was unpacked: what SQLite
would open is looked at before (``lying``), and how long a query may take, how many rows and how
long values may be, is limited.

SQLAlchemy's import takes longer than all else that a short command does, so that it is left to
what needs it: the tables' definition, migrations, and databases that are servers.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltastore.catalog import lying
from deltastore.catalog.failures import cannot_be_made, damaged, translated
from deltastore.errors import StoreReadOnlyError

if TYPE_CHECKING:
    from sqlalchemy import Engine

BUSY_TIMEOUT_S = 10.0
"""How long a lock is waited for."""

QUERY_TIMEOUT_S = 10.0
"""How long one statement may take: tables of pages that lead to one another may have no end."""

MAX_VALUE_BYTES = 1 << 20
"""Of a text in a row."""

SYNCHRONOUS = "EXTRA"
"""A row must survive a power cut before the lease that would have it added again is gone."""

READER_TIMEOUT_S = 2.0
"""How long a lock is waited for where nothing can be written: a reader can do without."""

_FEW_ROWS = 10_000
_ROW_BYTES = 8
_STEPS_BETWEEN_LOOKS = 20_000
_NO_VALUES: Mapping[str, Any] = {}

_guard = threading.Lock()
_open: Counter[Path] = Counter()
"""How many connections this process has to each file."""


@dataclass(slots=True)
class _Deadline:
    at: float = math.inf

    def is_over(self) -> bool:
        return time.monotonic() > self.at


class Session:
    """One transaction. Values are named in the SQL as ``:name``.

    Args:
        connection: Which is in a transaction.
        deadline: By which the connection's statements are stopped.
        where: The database's place, for messages.
        most: How many rows there may be at most.
    """

    def __init__(
        self, connection: sqlite3.Connection, deadline: _Deadline, where: str, most: int
    ) -> None:
        self._connection = connection
        self._deadline = deadline
        self._most = most
        self.where = where

    def rows(self, sql: str, values: Mapping[str, Any] = _NO_VALUES) -> list[tuple[Any, ...]]:
        """All rows of a query.

        Raises:
            CatalogError: They are more than the file has room for.
        """
        with self._limited():
            found = self._connection.execute(sql, values).fetchmany(self._most + 1)
        if len(found) > self._most:
            raise damaged(self.where, "a query gave more rows than the file has room for")
        return found

    def run(self, sql: str, values: Mapping[str, Any] = _NO_VALUES) -> int:
        """Change something; how many rows it met."""
        with self._limited():
            return self._connection.execute(sql, values).rowcount

    def run_each(self, sql: str, values: Iterable[Mapping[str, Any]]) -> None:
        """Run the same statement for each of these."""
        self._connection.executemany(sql, values)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        self._deadline.at = time.monotonic() + QUERY_TIMEOUT_S
        try:
            yield
        finally:
            self._deadline.at = math.inf


class SqliteDatabase:
    """A SQLite file, or a database in memory that lasts as long as this object.

    No connection to a file outlives its use: nothing to close, nothing that a fork copies.

    Args:
        path: The file, which the first write makes; None for memory.
        read_only: Whether writing is refused.
        mode: The permissions of the file where it is made, less the umask.
        longest: Bytes of the longest value.
        most_rows: How many rows a query may give; None to go by the file's size.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        read_only: bool = False,
        mode: int = 0o666,
        longest: int = MAX_VALUE_BYTES,
        most_rows: int | None = None,
    ) -> None:
        self._path = path
        self._read_only = read_only
        self._mode = mode
        self._longest = longest
        self._most = most_rows
        self._memory: tuple[sqlite3.Connection, _Deadline] | None = None
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
        with translated(self.where), self._transaction(write=False) as session:
            yield session

    @contextlib.contextmanager
    def writing(self, *, wait_s: float = BUSY_TIMEOUT_S) -> Iterator[Session]:
        """A transaction that holds the write lock; an exception in the block undoes it.

        Args:
            wait_s: How long a lock is waited for.

        Raises:
            StoreReadOnlyError: The database cannot be written.
            NoSpaceError: The disk is full.
            CatalogError: The database is damaged, locked, or fails otherwise.
        """
        self._require_writable()
        # The lock is taken at the start: two writers that both read first would otherwise each
        # wait for the other, and one would fail at once, however long it may wait.
        with translated(self.where), self._transaction(write=True, wait_s=wait_s) as session:
            yield session

    def rewrite(self, *statements: str) -> None:
        """Run statements that delete, then write the file anew without anything deleted in it.

        Raises:
            StoreReadOnlyError: The database cannot be written.
            NoSpaceError: The disk is full.
            CatalogError: The database is damaged, locked, or fails otherwise.
        """
        self._require_writable()
        with translated(self.where), self._connection(write=True) as (connection, _):
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)  # VACUUM attaches its own
            for statement in (*statements, "VACUUM"):
                connection.execute(statement)

    def copied(self) -> SqliteDatabase:
        """A database in memory with the same rows; an empty one where there is no file.

        No lock, and no change of others, reaches it.

        Raises:
            StoreReadOnlyError: Something has to be undone in the file first.
            CatalogError: The database is damaged, locked, or fails otherwise.
        """
        # What is added to the copy counts as well.
        most = None if self._path is None else 2 * self._most_rows()
        copy = SqliteDatabase(None, longest=self._longest, most_rows=most)
        if self._path is None or os.path.lexists(self._path):
            with (
                translated(self.where),
                self._connection(write=False) as (source, _),
                copy._connection(write=True) as (target, _),
            ):
                source.backup(target)
        return copy

    def engine(self) -> Engine:
        """The same for SQLAlchemy; every transaction takes the write lock at its start.

        Raises:
            StoreReadOnlyError: The database cannot be written.
        """
        from sqlalchemy import create_engine, event
        from sqlalchemy.pool import NullPool

        self._require_writable()

        def connect() -> sqlite3.Connection:
            with self._looked_at():
                return self._connect(write=True)[0]

        engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)

        @event.listens_for(engine, "begin")
        def _on_begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def close(self) -> None:
        """Release what is open; idempotent."""
        if self._memory is not None:
            self._memory[0].close()
            self._memory = None

    def _require_writable(self) -> None:
        if self._read_only:
            raise StoreReadOnlyError(
                f"The catalog {self.where} cannot be written.",
                hint="Ask the store's owner for write permission.",
            )

    @contextlib.contextmanager
    def _transaction(self, *, write: bool, wait_s: float = BUSY_TIMEOUT_S) -> Iterator[Session]:
        with self._connection(write=write) as (connection, deadline):
            if wait_s != BUSY_TIMEOUT_S:
                connection.execute(f"PRAGMA busy_timeout = {round(wait_s * 1000)}")
            if write or not connection.in_transaction:
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield Session(connection, deadline, self.where, self._most_rows())
                connection.execute("COMMIT")
            except BaseException:
                # An error of the disk may have undone the transaction already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _most_rows(self) -> int:
        """More rows than this a file of its size cannot hold."""
        if self._most is not None:
            return self._most
        if self._path is None:
            return 1 << 30
        with contextlib.suppress(OSError):
            return max(_FEW_ROWS, self._path.lstat().st_size // _ROW_BYTES)
        return _FEW_ROWS

    @contextlib.contextmanager
    def _connection(self, *, write: bool) -> Iterator[tuple[sqlite3.Connection, _Deadline]]:
        if self._path is None:
            with self._lock:
                if self._memory is None:
                    self._memory = self._connect(write=True)
                yield self._memory
            return
        with self._looked_at() as has_journal:
            opened = self._connect(write=True) if write else self._begun(has_journal=has_journal)
            with contextlib.closing(opened[0]):
                yield opened

    @contextlib.contextmanager
    def _looked_at(self) -> Iterator[bool]:
        """While it lasts, a connection may be opened; gives whether there is a journal."""
        if self._path is None:
            yield False
            return
        with _guard:
            if not self._read_only and not os.path.lexists(self._path):
                # SQLite would make it 0644 whatever the umask says; a group could not share it.
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                try:
                    os.close(os.open(self._path, flags, self._mode))
                except OSError as error:
                    raise cannot_be_made(self.where, error) from error
            has_journal = lying.check_files(self._path, header=not _open[self._path])
            _open[self._path] += 1
        try:
            yield has_journal
        finally:
            with _guard:
                _open[self._path] -= 1

    def _begun(self, *, has_journal: bool) -> tuple[sqlite3.Connection, _Deadline]:
        """A connection that has begun to read."""
        # What a process that was killed left half written is undone by whoever reads next, who has
        # to write for that. Nothing else does.
        if has_journal and not self._read_only:
            return self._begin_reading(write=True)
        try:
            return self._begin_reading(write=False)
        except sqlite3.OperationalError as error:
            left = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_ROLLBACK
            if self._read_only or not left:
                raise
        # It was killed just now.
        assert self._path is not None
        lying.check_files(self._path, header=False)
        return self._begin_reading(write=True)

    def _begin_reading(self, *, write: bool) -> tuple[sqlite3.Connection, _Deadline]:
        connection, deadline = self._connect(write=write)
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("BEGIN")
            deadline.at = time.monotonic() + QUERY_TIMEOUT_S + BUSY_TIMEOUT_S
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
            deadline.at = math.inf
        except BaseException:
            connection.close()
            raise
        return connection, deadline

    def _connect(self, *, write: bool) -> tuple[sqlite3.Connection, _Deadline]:
        if self._path is None:
            place = ":memory:"
        else:
            mode = "rw" if write and not self._read_only else "ro"
            place = f"{self._path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            place,
            uri=True,
            timeout=READER_TIMEOUT_S if self._read_only else BUSY_TIMEOUT_S,
            check_same_thread=False,
            # Transactions begin where this module says so, not where the driver guesses.
            isolation_level=None,
        )
        deadline = _Deadline()
        try:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._longest)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            connection.set_progress_handler(deadline.is_over, _STEPS_BETWEEN_LOOKS)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            if write:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        except BaseException:
            connection.close()
            raise
        return connection, deadline
