"""Changes to the catalog within one transaction."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, Table, delete, exists, insert, select, update

from deltastore.catalog.rows import FileIdentity, Summary, VersionRow
from deltastore.catalog.tables import ARTIFACTS, FILES, TAGS, VERSIONS

FILES_KEPT = 4096
"""How many files' digests are remembered; the oldest are forgotten."""

_INSERT_ROWS = 500


class CatalogWriter:
    """A transaction that has the catalog's write lock; made by ``Catalog.writing``.

    Nothing is visible to others before the transaction ends, and nothing of it after a crash.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def versions(self, name: str) -> dict[int, str]:
        """The digests of a name's versions."""
        rows = self._connection.execute(
            select(VERSIONS.c.version, VERSIONS.c.digest).where(VERSIONS.c.name == name)
        )
        return {row.version: row.digest for row in rows}

    def put_version(self, version: VersionRow, summary: Summary) -> None:
        """Add a version, or bring it up to date. Idempotent."""
        values = dataclasses.asdict(summary)
        digest = values.pop("digest")
        known = self._connection.execute(
            update(ARTIFACTS).where(ARTIFACTS.c.digest == digest).values(values)
        )
        if not known.rowcount:
            self._connection.execute(insert(ARTIFACTS).values(digest=digest, **values))
        # Not deleted and inserted anew: that would take the tags away.
        fields = dataclasses.asdict(version)
        key = (VERSIONS.c.name == version.name, VERSIONS.c.version == version.version)
        if not self._connection.execute(update(VERSIONS).where(*key).values(fields)).rowcount:
            self._connection.execute(insert(VERSIONS).values(fields))

    def remove_version(self, name: str, version: int) -> None:
        """Remove a version, its tags, and its artifact where no other version has it."""
        digest = self.versions(name).get(version)
        self._connection.execute(
            delete(VERSIONS).where(VERSIONS.c.name == name, VERSIONS.c.version == version)
        )
        if digest is not None:
            used = exists().where(VERSIONS.c.digest == digest)
            self._connection.execute(delete(ARTIFACTS).where(ARTIFACTS.c.digest == digest, ~used))

    def put_tag(self, name: str, tag: str, version: int) -> None:
        """Set a tag."""
        self.remove_tag(name, tag)
        self._connection.execute(insert(TAGS).values(name=name, tag=tag, version=version))

    def remove_tag(self, name: str, tag: str) -> None:
        """Remove a tag, if it is there."""
        self._connection.execute(delete(TAGS).where(TAGS.c.name == name, TAGS.c.tag == tag))

    def replace_tags(self, name: str, tags: Mapping[str, int]) -> None:
        """Give a name just these tags."""
        self._connection.execute(delete(TAGS).where(TAGS.c.name == name))
        self._insert(TAGS, [{"name": name, "tag": t, "version": v} for t, v in tags.items()])

    def replace_all(
        self,
        summaries: Iterable[Summary],
        versions: Iterable[VersionRow],
        tags: Iterable[tuple[str, str, int]],
    ) -> None:
        """Replace everything that can be rebuilt; what is remembered of files stays."""
        for table in (TAGS, VERSIONS, ARTIFACTS):
            self._connection.execute(delete(table))
        self._insert(ARTIFACTS, [dataclasses.asdict(row) for row in summaries])
        self._insert(VERSIONS, [dataclasses.asdict(row) for row in versions])
        self._insert(TAGS, [{"name": n, "tag": t, "version": v} for n, t, v in tags])

    def remember(self, file: FileIdentity, tensors: Mapping[str, str]) -> None:
        """Remember the BLAKE3 of a file's tensors in place of what was known of its path."""
        self._connection.execute(delete(FILES).where(FILES.c.path == file.path))
        self._connection.execute(
            insert(FILES).values(
                **dataclasses.asdict(file),
                tensors=json.dumps(dict(tensors), separators=(",", ":")),
            )
        )

    def forget_old_files(self) -> None:
        """Forget the files seen longest ago, beyond ``FILES_KEPT``."""
        kept = select(FILES.c.path).order_by(FILES.c.seen_ns.desc()).limit(FILES_KEPT)
        self._connection.execute(delete(FILES).where(FILES.c.path.not_in(kept)))

    def _insert(self, table: Table, rows: list[dict[str, object]]) -> None:
        for start in range(0, len(rows), _INSERT_ROWS):
            self._connection.execute(insert(table), rows[start : start + _INSERT_ROWS])
