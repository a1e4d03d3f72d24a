"""What this user's deltastore computed itself: digests of local files, and which artifacts it made.

It decides whether files are read at all, so that it is never taken from a store, where somebody
else may have written it; and it has paths, which are nobody else's business. There is one for all
stores of a user. It cannot be rebuilt, and need not be: what is not known is computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from deltastore.catalog import private, schema
from deltastore.catalog.checking import DIGEST_COLUMN, check
from deltastore.catalog.sqlite import Session, SqliteDatabase
from deltastore.errors import StoreError

FILES_KEPT = 4096
"""How many files' digests are remembered; the oldest are forgotten."""

MADE_KEPT = 65536
"""How many artifacts are remembered as made; the oldest are forgotten."""

_CLOCK_GRAIN_NS = 2_000_000_000
"""FAT counts in two seconds, no file system in use is coarser."""

_T = TypeVar("_T")
_LONGEST_BYTES = 256 << 20
_TABLES = (
    "CREATE TABLE files (path TEXT NOT NULL PRIMARY KEY, size BIGINT NOT NULL, "
    "mtime_ns BIGINT NOT NULL, ctime_ns BIGINT NOT NULL, inode BIGINT NOT NULL, "
    "device BIGINT NOT NULL, seen_ns BIGINT NOT NULL, tensors TEXT NOT NULL)",
    "CREATE INDEX ix_files_seen ON files (seen_ns)",
    "CREATE TABLE made (base TEXT NOT NULL, post TEXT NOT NULL, codec TEXT NOT NULL, "
    "digest TEXT NOT NULL, made_ns BIGINT NOT NULL, PRIMARY KEY (base, post, codec, digest))",
    "CREATE INDEX ix_made ON made (made_ns)",
)


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What the system says of a file; while it stays the same, so do the file's bytes.

    ``seen_ns`` is when it was asked, in nanoseconds since the epoch: a file changed again within
    the same tick of the clock looks the same, so what was changed just before proves nothing.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    seen_ns: int = field(compare=False)

    @property
    def storable(self) -> bool:
        """Whether a database can hold it: names need not be Unicode, times may be after 2262."""
        numbers = (self.size, self.mtime_ns, self.ctime_ns, self.inode, self.device)
        try:
            self.path.encode("utf-8")
        except UnicodeEncodeError:
            return False
        return all(-(1 << 63) <= number < 1 << 63 for number in numbers)

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileIdentity:
        """Ask the system; before the file is read.

        Raises:
            OSError: There is no such file.
        """
        seen_ns = time.time_ns()
        real = os.path.realpath(path)
        status = os.stat(real)  # noqa: PTH116 - a Path would be made only to be asked once
        return cls(
            path=real,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            # Inodes of 64 bits do not fit the signed integers of SQL.
            inode=status.st_ino & (1 << 63) - 1,
            device=status.st_dev & (1 << 63) - 1,
            seen_ns=seen_ns,
        )

    @classmethod
    def of_content(cls, sha256: str, size: int) -> FileIdentity:
        """A file that is known by its sha256 (hex), wherever it is; no path looks like this."""
        return cls(
            path=f"sha256:{sha256}",
            size=size,
            mtime_ns=0,
            ctime_ns=0,
            inode=0,
            device=0,
            seen_ns=time.time_ns(),
        )


class DigestMemory:
    """What is remembered; opened when it is first asked.

    Methods may be called from several threads and processes at once. None of them fails: what
    cannot be kept in a file is remembered as long as this object lasts, or not at all.

    Args:
        path: The database; None for memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._database: SqliteDatabase | None = None
        self._lock = threading.Lock()

    def remembered(self, files: Iterable[FileIdentity]) -> dict[str, dict[str, str]]:
        """The BLAKE3 of the tensors of those files that are known and have not changed.

        Returns:
            By path, the tensors' hex digests by name.
        """
        asked = [file for file in files if file.storable]

        def read(session: Session) -> dict[str, dict[str, str]]:
            found: dict[str, dict[str, str]] = {}
            for file in asked:
                rows = session.rows(
                    "SELECT tensors FROM files WHERE path = :path AND size = :size "
                    "AND mtime_ns = :mtime_ns AND ctime_ns = :ctime_ns AND inode = :inode "
                    "AND device = :device",
                    dataclasses.asdict(file),
                )
                for (tensors,) in rows:
                    # What is damaged is not remembered: the file is read again.
                    with contextlib.suppress(ValueError, TypeError):
                        found[file.path] = dict(json.loads(tensors))
            return found

        return self._ask(read, otherwise={})

    def files_with(self, blake3: str) -> list[str]:
        """The paths of the known files that had a tensor of this digest, seen last first.

        Whether they have it still, ``remembered`` says.
        """
        query = (
            "SELECT path FROM files WHERE instr(tensors, :blake3) > 0 ORDER BY seen_ns DESC, path"
        )

        def read(session: Session) -> list[str]:
            return [str(path) for (path,) in session.rows(query, {"blake3": blake3})]

        return self._ask(read, otherwise=[])

    def remember(self, files: Iterable[tuple[FileIdentity, Mapping[str, str]]]) -> None:
        """Remember the BLAKE3 of the tensors of files, where what is known of them is proof.

        A file changed shortly before it was looked at could change again without its times
        showing it; it is left out, and is remembered the next time.
        """
        proven = [
            (file, tensors)
            for file, tensors in files
            if file.storable and max(file.mtime_ns, file.ctime_ns) + _CLOCK_GRAIN_NS < file.seen_ns
        ]
        if not proven:
            return

        def write(session: Session) -> None:
            for file, tensors in proven:
                session.run(
                    "INSERT OR REPLACE INTO files "
                    "(path, size, mtime_ns, ctime_ns, inode, device, seen_ns, tensors) VALUES "
                    "(:path, :size, :mtime_ns, :ctime_ns, :inode, :device, :seen_ns, :tensors)",
                    {
                        **dataclasses.asdict(file),
                        "tensors": json.dumps(dict(tensors), separators=(",", ":")),
                    },
                )
            session.run(
                "DELETE FROM files WHERE path NOT IN "
                "(SELECT path FROM files ORDER BY seen_ns DESC LIMIT :kept)",
                {"kept": FILES_KEPT},
            )

        self._ask(write, otherwise=None, write=True)

    def made(self, base_content: str, post_content: str, codec: str) -> set[str]:
        """The digests of the artifacts that were made of this pair of weights with this codec."""
        query = "SELECT digest FROM made WHERE base = :base AND post = :post AND codec = :codec"
        values = {"base": base_content, "post": post_content, "codec": codec}
        return self._digests(query, values)

    def all_made(self) -> set[str]:
        """The digests of all artifacts that were made here."""
        return self._digests("SELECT DISTINCT digest FROM made", {})

    def remember_made(self, base_content: str, post_content: str, codec: str, digest: str) -> None:
        """Remember that this artifact was made of that pair, of which all bytes were read."""

        def write(session: Session) -> None:
            session.run(
                "INSERT OR REPLACE INTO made (base, post, codec, digest, made_ns) "
                "VALUES (:base, :post, :codec, :digest, :now)",
                {
                    "base": base_content,
                    "post": post_content,
                    "codec": codec,
                    "digest": digest,
                    "now": time.time_ns(),
                },
            )
            session.run(
                "DELETE FROM made WHERE made_ns < "
                "(SELECT made_ns FROM made ORDER BY made_ns DESC LIMIT 1 OFFSET :kept)",
                {"kept": MADE_KEPT - 1},
            )

        self._ask(write, otherwise=None, write=True)

    def close(self) -> None:
        """Release what is open; idempotent."""
        with self._lock:
            if self._database is not None:
                self._database.close()

    def _digests(self, query: str, values: Mapping[str, str]) -> set[str]:
        def read(session: Session) -> set[str]:
            rows = session.rows(query, values)
            check((DIGEST_COLUMN,), rows, session.where)
            return {digest for (digest,) in rows}

        return self._ask(read, otherwise=set())

    def _ask(self, action: Callable[[Session], _T], *, otherwise: _T, write: bool = False) -> _T:
        # os.path, as Path's raises an error of what may not be looked at.
        is_there = self._path is not None and os.path.exists(self._path)  # noqa: PTH110
        if not write and self._database is None and not is_there:
            # Nothing was remembered yet, and asking makes no file.
            return otherwise
        database = self._opened()
        try:
            with database.writing() if write else database.reading() as session:
                return action(session)
        except StoreError as error:
            if error.facts.get("damaged") and self._path is not None:
                with self._lock, contextlib.suppress(StoreError):
                    private.discard_private(self._path)
                    self._database = None
        return otherwise

    def _opened(self) -> SqliteDatabase:
        with self._lock:
            if self._database is None and self._path is not None:
                with contextlib.suppress(StoreError):
                    self._database = private.open_private(self._path, _prepared)
            if self._database is None:
                self._database = _prepared(None)
            return self._database


def _prepared(path: Path | None) -> SqliteDatabase:
    database = SqliteDatabase(path, mode=private.MODE, longest=_LONGEST_BYTES)
    with database.reading() as session:
        is_new = schema.is_empty(session)
    if is_new:
        with database.writing() as session:
            for statement in _TABLES if schema.is_empty(session) else ():
                session.run(statement)
    with database.reading() as session:
        schema.check_only(session, _TABLES)
    return database
