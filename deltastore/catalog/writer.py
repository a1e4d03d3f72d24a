"""Changes to the catalog within one transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from deltastore.catalog.checking import (
    DIGEST_COLUMN,
    TAG_COLUMN,
    VERSION_COLUMN,
    check,
    columns_of,
)
from deltastore.catalog.rows import UNREADABLE, Record, Summary, columns
from deltastore.catalog.sqlite import Session


def _insert(table: str, kind: type[Record | Summary]) -> str:
    """A statement that inserts a row of ``kind``, whose fields are the table's columns."""
    names, values = ", ".join(columns(kind)), ", ".join(f":{name}" for name in columns(kind))
    return f"INSERT INTO {table} ({names}) VALUES ({values})"  # noqa: S608 - no foreign text


def _update(table: str, kind: type[Record | Summary], key: Sequence[str]) -> str:
    """A statement that brings the row of ``kind`` with the same key up to date."""
    changes = ", ".join(f"{name} = :{name}" for name in columns(kind) if name not in key)
    where = " AND ".join(f"{name} = :{name}" for name in key)
    return f"UPDATE {table} SET {changes} WHERE {where}"  # noqa: S608 - no foreign text


_INSERT_ARTIFACT = _insert("artifacts", Summary)
_UPDATE_ARTIFACT = _update("artifacts", Summary, ["digest"])
_INSERT_VERSION = _insert("versions", Record)
_UPDATE_VERSION = _update("versions", Record, ["name", "version"])
_SELECT_VERSIONS = f"SELECT {', '.join(columns(Record))} FROM versions WHERE name = :name"  # noqa: S608
_RECORD = columns_of(Record)
_INSERT_TAG = "INSERT INTO tags (name, tag, version) VALUES (:name, :tag, :version)"


class CatalogWriter:
    """A transaction that has the catalog's write lock; made by ``Catalog.writing``.

    Nothing is visible to others before the transaction ends, and nothing of it after a crash.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def versions(self, name: str) -> dict[int, str]:
        """The digests of a name's versions."""
        query = "SELECT version, digest FROM versions WHERE name = :name"
        rows = self._session.rows(query, {"name": name})
        check((VERSION_COLUMN, DIGEST_COLUMN), rows, self._session.where)
        return dict(rows)

    def rows(self, name: str) -> dict[int, Record]:
        """The rows of a name's versions."""
        rows = self._session.rows(_SELECT_VERSIONS, {"name": name})
        check(_RECORD, rows, self._session.where)
        return {row.version: row for row in (Record(*fields) for fields in rows)}

    def has_readable(self, digest: str) -> bool:
        """Whether there is a row of this artifact, of when it could be read."""
        query = "SELECT digest FROM artifacts WHERE digest = :digest AND codec <> :unreadable"
        return bool(self._session.rows(query, {"digest": digest, "unreadable": UNREADABLE}))

    def unreadable(self, name: str) -> set[int]:
        """The versions of a name whose artifact could not be read when it was indexed."""
        query = (
            "SELECT v.version FROM versions AS v JOIN artifacts AS a ON a.digest = v.digest "
            "WHERE v.name = :name AND a.codec = :unreadable"
        )
        rows = self._session.rows(query, {"name": name, "unreadable": UNREADABLE})
        check((VERSION_COLUMN,), rows, self._session.where)
        return {version for (version,) in rows}

    def tags(self, name: str) -> dict[str, int]:
        """The versions that a name's tags mean."""
        query = "SELECT tag, version FROM tags WHERE name = :name"
        rows = self._session.rows(query, {"name": name})
        check((TAG_COLUMN, VERSION_COLUMN), rows, self._session.where)
        return dict(rows)

    def put_version(self, version: Record, summary: Summary | None) -> None:
        """Add a version, or bring it up to date. Idempotent.

        Args:
            version: Its row.
            summary: Its artifact's row; None where there is one: see ``has_readable``.
        """
        # Not deleted and inserted anew: that would take the tags away.
        if summary is not None:
            artifact = dataclasses.asdict(summary)
            if not self._session.run(_UPDATE_ARTIFACT, artifact):
                self._session.run(_INSERT_ARTIFACT, artifact)
        fields = dataclasses.asdict(version)
        if not self._session.run(_UPDATE_VERSION, fields):
            self._session.run(_INSERT_VERSION, fields)

    def remove_version(self, name: str, version: int) -> None:
        """Remove a version, its tags, and its artifact where no other version has it."""
        digest = self.versions(name).get(version)
        self._session.run(
            "DELETE FROM versions WHERE name = :name AND version = :version",
            {"name": name, "version": version},
        )
        if digest is not None:
            self._session.run(
                "DELETE FROM artifacts WHERE digest = :digest "
                "AND NOT EXISTS (SELECT 1 FROM versions WHERE digest = :digest)",
                {"digest": digest},
            )

    def put_tag(self, name: str, tag: str, version: int) -> None:
        """Set a tag."""
        self.remove_tag(name, tag)
        self._session.run(_INSERT_TAG, {"name": name, "tag": tag, "version": version})

    def remove_tag(self, name: str, tag: str) -> None:
        """Remove a tag, if it is there."""
        query = "DELETE FROM tags WHERE name = :name AND tag = :tag"
        self._session.run(query, {"name": name, "tag": tag})

    def replace_tags(self, name: str, tags: Mapping[str, int]) -> None:
        """Give a name just these tags."""
        self._session.run("DELETE FROM tags WHERE name = :name", {"name": name})
        self._insert_tags((name, tag, version) for tag, version in tags.items())

    def see(self, name: str, files: str, stamp: str) -> None:
        """Remember how a name's files looked before they were read; empty if that proves nothing.

        Args:
            name: The name.
            files: Their paths in its directory, with spaces between.
            stamp: How they looked.
        """
        self._session.run(
            "INSERT OR REPLACE INTO seen (name, files, stamp) VALUES (:name, :files, :stamp)",
            {"name": name, "files": files, "stamp": stamp},
        )

    def forget(self, name: str) -> None:
        """Remove all there is of a name."""
        for version in self.versions(name):
            self.remove_version(name, version)
        self._session.run("DELETE FROM seen WHERE name = :name", {"name": name})

    def forget_all(self) -> None:
        """Remove everything."""
        for table in ("seen", "tags", "versions", "artifacts"):
            self._session.run(f"DELETE FROM {table}")  # noqa: S608 - one of these four

    def count(self) -> tuple[int, int, int]:
        """How many artifacts, versions and tags there are."""
        tables = ("artifacts", "versions", "tags")
        counts = [f"(SELECT COUNT(*) FROM {table})" for table in tables]  # noqa: S608 - as above
        artifacts, versions, tags = self._session.rows(f"SELECT {', '.join(counts)}")[0]
        return int(artifacts), int(versions), int(tags)

    def _insert_tags(self, tags: Iterable[tuple[str, str, int]]) -> None:
        self._session.run_each(
            _INSERT_TAG, ({"name": n, "tag": t, "version": v} for n, t, v in tags)
        )
