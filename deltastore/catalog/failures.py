"""The one place where what the database raises becomes an error that a caller can act on."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from deltastore.errors import (
    MAKE_ROOM,
    CatalogError,
    DeltastoreError,
    NoSpaceError,
    StoreReadOnlyError,
)
from deltastore.system import limits

_DOCTOR = "Run `deltastore doctor` for the state of the store."
_JOURNAL_BYTES = 64 << 10
_REBUILD = "Run `deltastore reindex`, which rebuilds the catalog from the records."


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn a database's error into one of ours.

    Args:
        where: The catalog's place, for the message.

    Raises:
        NoSpaceError: The disk is full, or a file may not be larger.
        StoreReadOnlyError: The catalog cannot be written.
        CatalogError: It is locked, damaged or fails otherwise.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _from_driver(error, where) from error
    except UnicodeDecodeError as error:
        raise damaged(where, "a text in it is not UTF-8") from error


def cannot_be_made(where: str, cause: OSError) -> CatalogError | NoSpaceError:
    """There is no database, and none can be made."""
    if cause.errno in limits.NO_SPACE:
        return no_space(where)
    return CatalogError(f"The catalog {where} cannot be made: {cause.strerror}.", hint=_DOCTOR)


def damaged(where: str, why: str) -> CatalogError:
    """The database itself is broken, which only making it anew can help."""
    return CatalogError(f"The catalog {where} is damaged: {why}.", hint=_REBUILD, damaged=True)


def _from_driver(cause: sqlite3.Error, where: str) -> DeltastoreError:
    # Extended result codes have the primary code in their lower eight bits.
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return CatalogError(
            f"The catalog {where} is locked by another process.",
            hint="Run the command again when the other one has finished.",
            locked=True,
        )
    if code == sqlite3.SQLITE_FULL:
        return no_space(where)
    if code == sqlite3.SQLITE_IOERR and limits.has_file_limit():
        # SQLite does not say that a file may not be larger.
        return limits.too_large(where)
    if code == sqlite3.SQLITE_READONLY:
        return StoreReadOnlyError(
            f"The catalog {where} cannot be written.",
            hint="Ask the store's owner for write permission.",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(where, str(cause))
    if code == sqlite3.SQLITE_INTERRUPT:
        return damaged(where, "a query found no end")
    if code == sqlite3.SQLITE_TOOBIG:
        return damaged(where, "a value in it is too long")
    if not code and "decode to UTF-8" in str(cause):
        # The driver's own, which has the text in it.
        return damaged(where, "a text in it is not UTF-8")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) and _is_full(Path(where).parent):
        # No inode is left for the journal, or the user has reached a quota.
        return no_space(where)
    if code == sqlite3.SQLITE_CANTOPEN:
        return CatalogError(
            f"The catalog {where} cannot be opened: {cause}.",
            hint=_DOCTOR,
        )
    if code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH):
        # Statements are fixed and held against the schema by tests: it is the schema or the rows
        # in the file that are not what they were.
        return damaged(where, str(cause))
    return CatalogError(f"The catalog {where} failed: {cause}.", hint=_REBUILD)


def no_space(where: str) -> NoSpaceError:
    """There is no room for what would be written to the database."""
    return NoSpaceError(f"No space is left for the catalog {where}.", hint=MAKE_ROOM, path=where)


def _is_full(directory: Path) -> bool:
    """Whether there is no room for a journal, which SQLite does not say: asked by making a file."""
    probe = directory / f"probe-{secrets.token_hex(8)}"
    try:
        with probe.open("xb") as file:
            file.write(bytes(_JOURNAL_BYTES))
    except OSError as error:
        return error.errno in limits.NO_SPACE
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return False
