"""The catalog: what is asked of it, and the transactions that change it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from deltastore.catalog import schema
from deltastore.catalog.checking import (
    DIGEST_COLUMN,
    FILES_COLUMN,
    NAME_COLUMN,
    STAMP_COLUMN,
    TAG_COLUMN,
    VERSION_COLUMN,
    Column,
    check,
    columns_of,
)
from deltastore.catalog.failures import damaged
from deltastore.catalog.rows import UNREADABLE, Artifact, Listing, Record, columns
from deltastore.catalog.sqlite import BUSY_TIMEOUT_S, Session, SqliteDatabase
from deltastore.catalog.writer import CatalogWriter
from deltastore.errors import CatalogError, DeltastoreError

_MAX_COPIED_BYTES = 256 << 20


def _select(kind: type[Artifact | Listing]) -> str:
    """A query for versions and their artifacts, with the columns that ``kind`` has."""
    own = columns(Record)
    selected = ", ".join(f"{'v' if name in own else 'a'}.{name}" for name in columns(kind))
    return f"SELECT {selected} FROM versions AS v JOIN artifacts AS a ON a.digest = v.digest"  # noqa: S608 - no foreign text


_ARTIFACTS = _select(Artifact)
_LISTINGS = f"{_select(Listing)} ORDER BY v.name, v.version"
_ARTIFACT, _LISTING = columns_of(Artifact), columns_of(Listing)


class Catalog:
    """An index over records and manifests, from which it can be rebuilt.

    What comes out of it was checked, whatever its database holds.

    Methods may be called from several threads and processes at once. Each reading method sees one
    state; ``writing`` is the one way to change it. Every method may raise CatalogError.

    Args:
        database: Where the tables are.
    """

    _more_tables: ClassVar[tuple[str, ...]] = ()
    """Statements that make what a kind of catalog has besides."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self.detached: DeltastoreError | None = None
        """Why it is a copy in memory by now, which its file does not follow; None if it is not."""

    @classmethod
    def at(cls, path: Path, *, read_only: bool) -> Catalog:
        """The catalog in a SQLite file."""
        return cls(SqliteDatabase(path, read_only=read_only))

    @classmethod
    def read_from(cls, path: Path) -> Catalog:
        """A copy in memory of the catalog in a SQLite file that cannot be written.

        Raises:
            StoreError: It cannot be used: it is of another schema, damaged, locked, or a process
                that was killed left it half written.
        """
        with contextlib.suppress(OSError):
            if path.lstat().st_size > _MAX_COPIED_BYTES:
                raise CatalogError(f"The catalog {path} is too large to be read into memory.")
        catalog = cls(SqliteDatabase(path, read_only=True).copied())
        if catalog.revision() is None:
            raise CatalogError(f"The catalog {path} is empty.")
        catalog.prepare()
        with catalog._database.reading() as session:
            found = session.rows("PRAGMA quick_check(1)")[0][0]
        if found != "ok":
            raise damaged(str(path), str(found))
        return catalog

    def prepare(self) -> None:
        """Check the schema; create it, at head, where the database is empty.

        Raises:
            StoreOutdatedError: The schema is older than this program.
            StoreTooNewError: The schema is newer.
            CatalogError: It has other tables than its revision, a view or a trigger, with the fact
                ``damaged``.
        """
        where = self._database.where
        found = self.revision()
        if found is None:
            with self._database.writing() as session:
                # Another process may have been first; it had the lock until it was done.
                found = schema.revision(session, where)
                if found is None:
                    schema.create_schema(session)
                    found = schema.HEAD
        schema.check_revision(found, where)

    def detach(self, because: DeltastoreError) -> None:
        """Go on with a copy in memory, where the file cannot be written: its disk is full, say.

        What is written from now on nobody else sees, and it does not last: the next command sees
        that the records are not as they were, and brings the file up to date.

        Args:
            because: Why it cannot.

        Raises:
            CatalogError: The file cannot be read either.
        """
        if self.detached is None:
            self._database = self._database.copied()
            self.detached = because

    def require_file(self) -> None:
        """Refuse what makes no sense in memory.

        Raises:
            DeltastoreError: Why the catalog is detached.
        """
        if self.detached is not None:
            raise self.detached

    def revision(self) -> str | None:
        """The schema's revision; None where the database is empty.

        Raises:
            CatalogError: It does not have the tables of that revision, with the fact ``damaged``.
        """
        with self._database.reading() as session:
            found = schema.revision(session, self._database.where)
            if found in schema.REVISIONS_KNOWN:
                schema.check_tables(session, self._more_tables, at=found)
        return found

    def check(self) -> None:
        """Read the whole database.

        Raises:
            CatalogError: It is damaged, with the fact ``damaged``.
        """
        with self._database.reading() as session:
            found = session.rows("PRAGMA integrity_check(1)")[0][0]
        if found != "ok":
            raise damaged(self._database.where, str(found))

    def journal_mode(self) -> str:
        """How SQLite undoes what was not committed."""
        with self._database.reading() as session:
            return str(session.rows("PRAGMA journal_mode")[0][0])

    def upgrade(self, *, written: Callable[[], None] = lambda: None) -> None:
        """Bring the schema to head. All or nothing.

        Args:
            written: Called when the new schema is there, before it is committed.

        Raises:
            StoreTooNewError: The schema is newer than this program.
            StoreReadOnlyError: The catalog cannot be written.
        """
        schema.upgrade(self._database, written=written)

    @contextlib.contextmanager
    def writing(self, *, wait_s: float = BUSY_TIMEOUT_S) -> Iterator[CatalogWriter]:
        """A transaction that holds the catalog's write lock until the block ends.

        An exception in the block undoes it.

        Args:
            wait_s: How long a lock of another process is waited for.

        Raises:
            StoreReadOnlyError: The catalog cannot be written.
            NoSpaceError: The disk is full.
        """
        with self._database.writing(wait_s=wait_s) as session:
            yield CatalogWriter(session)

    def artifacts(
        self,
        *,
        name: str | None = None,
        version: int | None = None,
        tag: str | None = None,
        digest_prefix: str | None = None,
    ) -> list[Artifact]:
        """The versions that fit everything given, by name and version."""
        conditions = []
        values: dict[str, Any] = {}
        if name is not None:
            conditions.append("v.name = :name")
            values["name"] = name
        if version is not None:
            conditions.append("v.version = :version")
            values["version"] = version
        if tag is not None:
            conditions.append(
                "EXISTS (SELECT 1 FROM tags AS t "
                "WHERE t.name = v.name AND t.version = v.version AND t.tag = :tag)"
            )
            values["tag"] = tag
        if digest_prefix is not None:
            # A range rather than LIKE: it uses the index. "g" follows the last hex digit.
            conditions.append("v.digest >= :low AND v.digest < :high")
            values |= {"low": digest_prefix, "high": digest_prefix + "g"}
        where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
        rows = self._tagged(f"{_ARTIFACTS} {where} ORDER BY v.name, v.version", values, _ARTIFACT)
        return [_artifact(row) for row in rows]

    def listings(self) -> list[Listing]:
        """All versions by name and version, with what a list shows."""
        return [Listing(*fields) for fields in self._tagged(_LISTINGS, {}, _LISTING)]

    def newest(self, name: str) -> Artifact | None:
        """The name's version with the highest number."""
        query = f"{_ARTIFACTS} WHERE v.name = :name ORDER BY v.version DESC LIMIT 1"
        for row in self._tagged(query, {"name": name}, _ARTIFACT):
            return _artifact(row)
        return None

    def names(self) -> list[str]:
        """All names that have a version, sorted."""
        rows = self._rows("SELECT DISTINCT name FROM versions ORDER BY name", (NAME_COLUMN,))
        return [name for (name,) in rows]

    def tags(self, name: str | None = None) -> dict[tuple[str, int], tuple[str, ...]]:
        """Tags by name and version, sorted; of one name where it is given."""
        with self._database.reading() as session:
            return _tags(session, name)

    def find_pair(self, base_content: str, post_content: str, codec: str) -> list[str]:
        """The digests of the artifacts of this pair and codec, the one first extracted first."""
        rows = self._rows(
            "SELECT a.digest FROM artifacts AS a JOIN versions AS v ON v.digest = a.digest "
            "WHERE a.base_content = :base AND a.post_content = :post AND a.codec = :codec "
            "AND a.codec <> :unreadable ORDER BY v.created, a.digest",
            (DIGEST_COLUMN,),
            {"base": base_content, "post": post_content, "codec": codec, "unreadable": UNREADABLE},
        )
        return list(dict.fromkeys(digest for (digest,) in rows))

    def seen(self, name: str | None = None) -> dict[str, tuple[str, str]]:
        """The files of each name, or of one, and how they looked when they were last read."""
        query = "SELECT name, files, stamp FROM seen"
        if name is not None:
            query += " WHERE name = :name"
        columns = (NAME_COLUMN, FILES_COLUMN, STAMP_COLUMN)
        rows = self._rows(query, columns, {} if name is None else {"name": name})
        return {found: (files, stamp) for found, files, stamp in rows}

    def unproven(self) -> list[str]:
        """The names that the next opening reads again: they just changed, or could not be read."""
        rows = self._rows("SELECT name FROM seen WHERE stamp = '' ORDER BY name", (NAME_COLUMN,))
        return [name for (name,) in rows]

    def close(self) -> None:
        """Release what is open; idempotent."""
        self._database.close()

    def _tagged(
        self, query: str, values: Mapping[str, Any], columns: Sequence[Column]
    ) -> Iterator[tuple[Any, ...]]:
        """The rows of a query that begins with name and version, each with its tags."""
        with self._database.reading() as session:
            rows = session.rows(query, values)
            check(columns, rows, session.where)
            tags = _tags(session, values.get("name")) if rows else {}
        return ((*row, tags.get((row[0], row[1]), ())) for row in rows)

    def _rows(
        self, query: str, columns: Sequence[Column], values: Mapping[str, Any] | None = None
    ) -> list[Any]:
        with self._database.reading() as session:
            rows = session.rows(query, values or {})
            check(columns, rows, session.where)
        return rows


def _artifact(row: tuple[Any, ...]) -> Artifact:
    artifact = Artifact(*row)
    # SQL's truth comes as a number.
    return dataclasses.replace(artifact, restore_only=bool(artifact.restore_only))


def _tags(session: Session, name: str | None) -> dict[tuple[str, int], tuple[str, ...]]:
    query = "SELECT name, version, tag FROM tags"
    if name is not None:
        query += " WHERE name = :name"
    rows = session.rows(f"{query} ORDER BY tag", {} if name is None else {"name": name})
    check((NAME_COLUMN, VERSION_COLUMN, TAG_COLUMN), rows, session.where)
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for tagged_name, version, tag in rows:
        found[tagged_name, version].append(tag)
    return {key: tuple(tags) for key, tags in found.items()}
