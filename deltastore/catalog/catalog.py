"""The catalog: what is asked of it, and the transactions that change it."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, func, select

from deltastore.catalog import schema
from deltastore.catalog.engine import WRITE, memory_engine, sqlite_engine
from deltastore.catalog.failures import damaged, translated
from deltastore.catalog.rows import UNREADABLE, Artifact, FileIdentity, Listing
from deltastore.catalog.tables import ARTIFACTS, FILES, TAGS, VERSIONS
from deltastore.catalog.writer import CatalogWriter
from deltastore.errors import StoreReadOnlyError

_CLOCK_GRAIN_NS = 2_000_000_000
"""FAT counts in two seconds, no file system in use is coarser."""

# In the order of Artifact's fields.
_COLUMNS = (
    VERSIONS.c.name,
    VERSIONS.c.version,
    VERSIONS.c.digest,
    VERSIONS.c.created,
    VERSIONS.c.created_by,
    VERSIONS.c.tool,
    VERSIONS.c.base_label,
    VERSIONS.c.post_label,
    ARTIFACTS.c.base_content,
    ARTIFACTS.c.post_content,
    ARTIFACTS.c.base_fingerprint,
    ARTIFACTS.c.base_repo,
    ARTIFACTS.c.base_revision,
    ARTIFACTS.c.post_repo,
    ARTIFACTS.c.post_revision,
    ARTIFACTS.c.codec,
    ARTIFACTS.c.exactness,
    ARTIFACTS.c.restore_only,
    ARTIFACTS.c.raw_bytes,
    ARTIFACTS.c.stored_bytes,
    ARTIFACTS.c.parameters,
    ARTIFACTS.c.tensors,
    ARTIFACTS.c.unchanged,
    ARTIFACTS.c.bits_per_weight,
)

# In the order of Listing's fields.
_LISTED = (
    VERSIONS.c.name,
    VERSIONS.c.version,
    VERSIONS.c.digest,
    VERSIONS.c.base_label,
    VERSIONS.c.post_label,
    ARTIFACTS.c.codec,
    ARTIFACTS.c.raw_bytes,
    ARTIFACTS.c.stored_bytes,
    VERSIONS.c.created,
)


class Catalog:
    """An index over records and manifests; everything but remembered files can be rebuilt.

    Methods may be called from several threads and processes at once. Each reading method sees one
    state; ``writing`` is the one way to change it. Every method may raise CatalogError.

    Args:
        engine: From ``engine``'s functions.
        where: The database's place, for messages.
        read_only: Whether writing is refused.
    """

    def __init__(self, engine: Engine, where: str, *, read_only: bool = False) -> None:
        self._engine = engine
        self._where = where
        self._read_only = read_only

    @classmethod
    def at(cls, path: Path, *, read_only: bool) -> Catalog:
        """The catalog in a SQLite file."""
        return cls(sqlite_engine(path, read_only=read_only), str(path), read_only=read_only)

    @classmethod
    def in_memory(cls) -> Catalog:
        """A catalog that nobody else sees and that does not last."""
        return cls(memory_engine(), "in memory")

    def prepare(self, fill: Callable[[CatalogWriter], None]) -> None:
        """Check the schema; create it, at head, where the database is empty.

        Args:
            fill: Called within the creating transaction, so that nobody ever sees a catalog that
                lacks what the records have.

        Raises:
            StoreOutdatedError: The schema is older than this program.
            StoreTooNewError: The schema is newer.
        """
        with translated(self._where), self._engine.connect() as connection:
            found = schema.revision(connection, self._where)
        if found is None:
            with self._transaction() as connection:
                # Another process may have been first; it had the lock until it was done.
                found = schema.revision(connection, self._where)
                if found is None:
                    schema.create_schema(connection)
                    fill(CatalogWriter(connection))
                    found = schema.HEAD
        schema.check_revision(found, self._where)

    def revision(self) -> str | None:
        """The schema's revision; None where the database is empty."""
        with translated(self._where), self._engine.connect() as connection:
            return schema.revision(connection, self._where)

    def check(self) -> None:
        """Read the whole database.

        Raises:
            CatalogError: It is damaged, with the fact ``damaged``.
        """
        with translated(self._where), self._engine.connect() as connection:
            if connection.dialect.name != "sqlite":
                return
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if found != "ok":
            raise damaged(self._where, str(found))

    def journal_mode(self) -> str:
        """How SQLite undoes what was not committed; the dialect's name where it is another."""
        with translated(self._where), self._engine.connect() as connection:
            if connection.dialect.name != "sqlite":
                return connection.dialect.name
            return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())

    def upgrade(self) -> None:
        """Bring the schema to head. All or nothing.

        Raises:
            StoreTooNewError: The schema is newer than this program.
            StoreReadOnlyError: The catalog cannot be written.
        """
        with self._transaction() as connection:
            found = schema.revision(connection, self._where)
            if found is not None and found not in schema.REVISIONS_KNOWN:
                schema.check_revision(found, self._where)
            schema.upgrade(connection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[CatalogWriter]:
        """A transaction that holds the catalog's write lock until the block ends.

        An exception in the block undoes it.

        Raises:
            StoreReadOnlyError: The catalog cannot be written.
            NoSpaceError: The disk is full.
        """
        with self._transaction() as connection:
            yield CatalogWriter(connection)

    def artifacts(
        self,
        *,
        name: str | None = None,
        version: int | None = None,
        tag: str | None = None,
        digest_prefix: str | None = None,
    ) -> list[Artifact]:
        """The versions that fit everything given, by name and version."""
        conditions: list[ColumnElement[bool]] = []
        if name is not None:
            conditions.append(VERSIONS.c.name == name)
        if version is not None:
            conditions.append(VERSIONS.c.version == version)
        if tag is not None:
            tagged = and_(TAGS.c.name == VERSIONS.c.name, TAGS.c.version == VERSIONS.c.version)
            conditions.append(select(TAGS.c.tag).where(tagged, TAGS.c.tag == tag).exists())
        if digest_prefix is not None:
            # A range rather than LIKE: it uses the index. "g" follows the last hex digit.
            conditions.append(VERSIONS.c.digest >= digest_prefix)
            conditions.append(VERSIONS.c.digest < digest_prefix + "g")
        return self._select(
            select(*_COLUMNS)
            .join_from(VERSIONS, ARTIFACTS)
            .where(*conditions)
            .order_by(VERSIONS.c.name, VERSIONS.c.version),
            name=name,
        )

    def listings(self) -> list[Listing]:
        """All versions by name and version, with what a list shows."""
        query = (
            select(*_LISTED)
            .join_from(VERSIONS, ARTIFACTS)
            .order_by(VERSIONS.c.name, VERSIONS.c.version)
        )
        return [Listing(*fields) for fields in self._tagged(query, name=None)]

    def newest(self, name: str) -> Artifact | None:
        """The name's version with the highest number."""
        highest = select(func.max(VERSIONS.c.version)).where(VERSIONS.c.name == name)
        found = self._select(
            select(*_COLUMNS)
            .join_from(VERSIONS, ARTIFACTS)
            .where(VERSIONS.c.name == name, VERSIONS.c.version == highest.scalar_subquery()),
            name=name,
        )
        return found[0] if found else None

    def names(self) -> list[str]:
        """All names that have a version, sorted."""
        rows = self._rows(select(VERSIONS.c.name).distinct().order_by(VERSIONS.c.name))
        return [row[0] for row in rows]

    def tags(self, name: str | None = None) -> dict[tuple[str, int], tuple[str, ...]]:
        """Tags by name and version, sorted; of one name where it is given."""
        with translated(self._where), self._engine.connect() as connection:
            return _tags(connection, name)

    def find_pair(self, base_content: str, post_content: str, codec: str) -> list[str]:
        """The digests of the artifacts of this pair and codec, the one first extracted first."""
        rows = self._rows(
            select(ARTIFACTS.c.digest)
            .join_from(ARTIFACTS, VERSIONS)
            .where(
                ARTIFACTS.c.base_content == base_content,
                ARTIFACTS.c.post_content == post_content,
                ARTIFACTS.c.codec == codec,
                ARTIFACTS.c.codec != UNREADABLE,
            )
            .order_by(VERSIONS.c.created, ARTIFACTS.c.digest)
        )
        return list(dict.fromkeys(str(row[0]) for row in rows))

    def remembered(self, files: Iterable[FileIdentity]) -> dict[str, dict[str, str]]:
        """The BLAKE3 of the tensors of those files that are known and have not changed.

        Returns:
            By path, the tensors' hex digests by name.
        """
        found: dict[str, dict[str, str]] = {}
        with translated(self._where), self._engine.connect() as connection:
            for file in files:
                if not _encodable(file.path):
                    continue
                row = connection.execute(
                    select(FILES).where(
                        FILES.c.path == file.path,
                        FILES.c.size == file.size,
                        FILES.c.mtime_ns == file.mtime_ns,
                        FILES.c.ctime_ns == file.ctime_ns,
                        FILES.c.inode == file.inode,
                        FILES.c.device == file.device,
                    )
                ).one_or_none()
                if row is not None:
                    found[file.path] = json.loads(row.tensors)
        return found

    def remember(self, files: Iterable[tuple[FileIdentity, Mapping[str, str]]]) -> None:
        """Remember the BLAKE3 of the tensors of files, where what is known of them is proof.

        A file changed shortly before it was looked at could change again without its times
        showing it; it is left out, and is remembered the next time.
        """
        proven = [
            (file, tensors)
            for file, tensors in files
            if _encodable(file.path)
            and max(file.mtime_ns, file.ctime_ns) + _CLOCK_GRAIN_NS < file.seen_ns
        ]
        if proven:
            with self.writing() as writer:
                for file, tensors in proven:
                    writer.remember(file, tensors)
                writer.forget_old_files()

    def close(self) -> None:
        """Release what is open; idempotent."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._read_only:
            raise StoreReadOnlyError(
                f"The catalog {self._where} cannot be written.",
                hint="Ask the store's owner for write permission.",
            )
        # Errors of the caller's block that are not the database's pass through unchanged.
        with translated(self._where), self._engine.connect() as connection:
            writable = connection.execution_options(**{WRITE: True})
            with writable.begin():
                yield writable

    def _select(self, query: Select[Any], *, name: str | None) -> list[Artifact]:
        return [Artifact(*fields) for fields in self._tagged(query, name=name)]

    def _tagged(self, query: Select[Any], *, name: str | None) -> Iterator[tuple[Any, ...]]:
        """The rows of a query that begins with name and version, each with its tags."""
        with translated(self._where), self._engine.connect() as connection:
            rows = connection.execute(query).all()
            tags = _tags(connection, name) if rows else {}
        return ((*row, tags.get((row[0], row[1]), ())) for row in rows)

    def _rows(self, query: Select[Any]) -> list[Any]:
        with translated(self._where), self._engine.connect() as connection:
            return list(connection.execute(query).all())


def _tags(connection: Connection, name: str | None) -> dict[tuple[str, int], tuple[str, ...]]:
    query = select(TAGS.c.name, TAGS.c.version, TAGS.c.tag).order_by(TAGS.c.tag)
    if name is not None:
        query = query.where(TAGS.c.name == name)
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for tagged_name, version, tag in connection.execute(query):
        found[tagged_name, version].append(tag)
    return {key: tuple(tags) for key, tags in found.items()}


def _encodable(path: str) -> bool:
    """File names need not be Unicode; a database's text must."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
