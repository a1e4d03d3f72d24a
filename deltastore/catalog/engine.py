"""Engines: how a database is connected to. The rest of the package works with any of them.

SQLite keeps its rollback journal rather than a write-ahead log. Commits are rare and small, so
that nothing is gained by a log, and much is lost: a reader without write permission could not
open the catalog, a copy of ``catalog.db`` alone would lack what the log holds, and a log does not
work on network file systems.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool, StaticPool

BUSY_TIMEOUT_S = 30.0
SYNCHRONOUS = "EXTRA"
"""A row must survive a power cut before the lease that would have it added again is gone."""

WRITE = "deltastore_write"
"""Execution option of a connection that is going to write."""


def sqlite_engine(path: Path, *, read_only: bool) -> Engine:
    """An engine for a SQLite file, which is made on the first connection unless ``read_only``."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"

    def connect() -> sqlite3.Connection:
        if not read_only and not path.exists():
            # SQLite would make it 0644 whatever the umask says, and a group could not share it.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)

    # Without a pool no connection outlives its use: nothing to close, nothing that a fork copies.
    return _configured(create_engine("sqlite://", creator=connect, poolclass=NullPool))


def memory_engine() -> Engine:
    """An engine for a catalog that lasts as long as the engine does."""
    return _configured(
        create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    )


def _configured(engine: Engine) -> Engine:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # Transactions begin where SQLAlchemy says so, not where sqlite3 guesses.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # Taking the write lock at the start: two writers that both read first would otherwise
        # each wait for the other, and one would fail at once, however long it may wait.
        writes = connection.get_execution_options().get(WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
