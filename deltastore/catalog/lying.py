"""What SQLite would open: the database's file and what lies beside it, looked at before.

An own store may have been unpacked from a stranger's archive. SQLite plays back a journal that lies
beside a database, and one that ends in the name of a super-journal has any file deleted; it follows
links; it makes tables and logs in whatever is there. None of it is ever deltastore's: no database
is attached, so that there is no super-journal, and there is no write-ahead log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from deltastore.catalog.failures import damaged

MAX_BYTES = 4 << 30
"""Of a database, or what a journal would make it: some millions of artifacts."""

LONGEST_PATH_BYTES = 504
"""Of a database: with the journal's suffix it is as long as SQLite allows, whatever the system."""

_JOURNAL, _WAL, _SHM = "-journal", "-wal", "-shm"
_COMPANIONS = (_JOURNAL, _WAL, _SHM)

_MAGIC = bytes.fromhex("d9d505f920a163d7")
_LOG_VERSION = 2
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def files(path: Path) -> tuple[Path, ...]:
    """A database and all that SQLite would take for a part of it."""
    return (path, *(_beside(path, companion) for companion in _COMPANIONS))


def check_files(path: Path, *, header: bool) -> bool:
    """Refuse what SQLite should not open.

    Args:
        path: The database; it need not exist.
        header: Whether to read its header as well. Not while this process has it open: the file is
            closed afterwards, and with it the system drops all locks of the process.

    Returns:
        Whether there is a journal.

    Raises:
        CatalogError: There is such a thing, with the fact ``damaged``.
    """
    where = str(path)
    if _is_there(path, where) and header:
        head = _read(path, 0, 20, where)
        if _LOG_VERSION in head[18:20]:
            raise damaged(where, "it has a write-ahead log, which deltastore never makes")
    for companion in (_WAL, _SHM):
        if os.path.lexists(_beside(path, companion)):
            raise damaged(where, f"{path.name}{companion} lies beside it, which is no part of it")
    journal = _beside(path, _JOURNAL)
    if not _is_there(journal, where):
        return False
    head = _read(journal, 0, 28, where)
    if head.startswith(_MAGIC):
        pages, page = (int.from_bytes(head[at : at + 4], "big") for at in (16, 24))
        if pages * page > MAX_BYTES:
            raise damaged(where, f"{journal.name} would make it {pages * page} bytes long")
    # Where SQLite looks for the name of a super-journal: at the end, whatever is before it.
    if _read(journal, -len(_MAGIC), len(_MAGIC), where) == _MAGIC:
        raise damaged(where, f"{journal.name} names another file, which SQLite would delete")
    return True


def discard_files(path: Path) -> None:
    """Remove a database and what lies beside it; nothing is opened or followed.

    The database first: a journal that is left beside none is discarded by SQLite, but a database
    without its journal may be half of what it was.

    Raises:
        OSError: Something cannot be removed.
    """
    for found in files(path):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(found.lstat().st_mode):
                found.rmdir()
            else:
                found.unlink()


def _is_there(path: Path, where: str) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        # SQLite says what is the matter.
        return False
    what = "it" if str(path) == where else path.name
    if not stat.S_ISREG(status.st_mode):
        raise damaged(where, f"{what} is no regular file")
    # None, where another process has removed it just now.
    if status.st_nlink > 1:
        raise damaged(where, f"{what} has {status.st_nlink} names, so that others would change too")
    if status.st_uid != os.geteuid():
        raise damaged(where, f"{what} belongs to user {status.st_uid}")
    if status.st_size > MAX_BYTES:
        raise damaged(where, f"{what} has {status.st_size} bytes")
    return True


def _read(path: Path, start: int, size: int, where: str) -> bytes:
    """A few bytes; from the end where ``start`` is negative, and none if there are not so many."""
    try:
        descriptor = os.open(path, _OPEN)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise damaged(where, f"{path.name} is no regular file") from error
        return b""
    try:
        begin = start if start >= 0 else os.fstat(descriptor).st_size + start
        return os.pread(descriptor, size, begin) if begin >= 0 else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _beside(path: Path, companion: str) -> Path:
    return path.with_name(path.name + companion)
