"""Whatever a database holds: other tables, values of other types, queries without an end."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_catalog_queries import A, row, summary

from deltastore.catalog import Catalog, LocalIndex
from deltastore.catalog import sqlite as module
from deltastore.catalog.sqlite import SqliteDatabase
from deltastore.errors import CatalogError, RefSyntaxError
from deltastore.refs import NAME, TAG, validate_name, validate_tag


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "catalog.db"
    catalog = Catalog.at(found, read_only=False)
    catalog.prepare()
    with catalog.writing() as writer:
        writer.put_version(row("m", 1, A), summary(A))
        writer.put_tag("m", "prod", 1)
    return found


def change(path: Path, script: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(script)
    connection.close()


VIEW = (
    "PRAGMA foreign_keys = OFF; DROP TABLE tags; ALTER TABLE versions RENAME TO v;"
    "CREATE VIEW versions AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "
    "SELECT 'm' AS name, n AS version, '' AS digest, '' AS created, '' AS created_by, "
    "'' AS tool, '' AS base_label, '' AS post_label FROM r;"
    "CREATE TABLE tags (name, tag, version)"
)
SCHEMAS = {
    "an endless view": VIEW,
    "a view of the revision": "DROP TABLE alembic_version; CREATE VIEW alembic_version AS WITH "
    "RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n AS version_num FROM r",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON tags BEGIN DELETE FROM versions; END",
    "one more table": "CREATE TABLE more (a)",
    "one more index": "CREATE INDEX more ON tags (tag)",
    "an index over an expression": "DROP INDEX ix_versions_digest; "
    "CREATE INDEX ix_versions_digest ON versions (substr(digest, 1, 1))",
    "a column less": "ALTER TABLE versions DROP COLUMN tool",
    "a column more": "ALTER TABLE versions ADD COLUMN more TEXT",
    "a default": "PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = "
    "replace(sql, 'tool TEXT NOT NULL', 'tool TEXT NOT NULL DEFAULT (abs(1))')",
    "a table less": "DROP TABLE tags",
    "statistics": "ANALYZE",
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_other_tables_are_refused(path: Path, kind: str) -> None:
    change(path, SCHEMAS[kind])
    began = time.monotonic()
    for attempt in (
        lambda: Catalog.at(path, read_only=True).prepare(),
        lambda: Catalog.at(path, read_only=False).upgrade(),
    ):
        with pytest.raises(CatalogError) as caught:
            attempt()
        assert caught.value.facts["damaged"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_local_index_with_other_tables_is_made_anew(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "own" / "index.db"
    index = LocalIndex.open(path, "id")
    with index.writing() as writer:
        writer.put_version(row("m", 1, A), summary(A))
    change(path, SCHEMAS[kind])
    assert LocalIndex.open(path, "id").artifacts() == []


VALUES = {
    "versions": {
        "name": [b"7", "no name", "a\nb", "\x1b[2J", "../x", "w;id", "con", "x" * 129, b"m", "a."],
        "version": ["v1", 1.5, 0, -1, 10**9, b"1"],
        "digest": ["sha256:../../x", b"7", "", "sha256:" + "A" * 64, b"x"],
        "created": ["yesterday", b"\x00\xff", b"7", "2025-01-31T12:00:00.000000Z\n", ""],
        "created_by": ["", b"7", "\x1b", "x" * 1025, "a\u202eb", b"\xc3", "a\0b"],
        "tool": ["", b"7"],
        "base_label": ["", b"7", "a\nb"],
        "post_label": ["", b"7", "x" * (2 << 20)],
    },
    "artifacts": {
        "base_content": ["x", b"7", "blake3:1"],
        "post_content": ["x", b"7"],
        "base_fingerprint": ["x", b"7"],
        "base_repo": ["", b"7", "\x1b"],
        "base_revision": [b"7"],
        "post_repo": [b"7"],
        "post_revision": [b"7"],
        "codec": ["", b"7", "x" * 65],
        "exactness": ["perfect", b"7"],
        "restore_only": ["no", 2, 0.5],
        "raw_bytes": ["many", -1, 1e300, 1.5],
        "stored_bytes": ["many", -1],
        "parameters": [-1, b"x"],
        "tensors": [-5, 1.5],
        "unchanged": ["x"],
        "bits_per_weight": ["x", -1.0, float("inf"), b"x"],
    },
    "tags": {"name": [b"7", "a b"], "tag": ["v1", "a\nb", b"7", "--x", ""], "version": ["x", 0]},
}


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [(t, c, v) for t, columns in VALUES.items() for c, values in columns.items() for v in values],
)
def test_a_value_that_deltastore_would_not_write_is_refused(
    path: Path, table: str, column: str, value: object
) -> None:
    with sqlite3.connect(path) as connection:
        # A name that is changed in both tables, as tags are read where there are versions.
        connection.execute(f"UPDATE {table} SET {column} = ?", [value])
        if table == "versions" and column == "digest":
            connection.execute("UPDATE artifacts SET digest = ?", [value])
    connection.close()
    catalog = Catalog.at(path, read_only=False)
    catalog.prepare()
    with pytest.raises(CatalogError) as caught:
        catalog.artifacts()
    assert caught.value.facts["damaged"]
    assert len(caught.value.message) < 500
    listed = {"name", "version", "digest", "created", "base_label", "post_label", "codec"}
    if table == "tags" or column in listed | {"raw_bytes", "stored_bytes"}:
        with pytest.raises(CatalogError):
            catalog.listings()


def test_what_a_writer_reads_is_checked_too(path: Path) -> None:
    change(path, "UPDATE versions SET digest = 7; UPDATE tags SET tag = 'v1'")
    catalog = Catalog.at(path, read_only=False)
    with catalog.writing() as writer:
        for read in (writer.versions, writer.tags):
            with pytest.raises(CatalogError):
                read("m")


def test_text_that_is_no_text_is_refused(path: Path) -> None:
    change(path, "UPDATE versions SET tool = CAST(x'c328' AS TEXT)")
    with pytest.raises(CatalogError, match="UTF-8") as caught:
        Catalog.at(path, read_only=False).artifacts()
    assert caught.value.facts["damaged"]


ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r"


def test_a_query_has_a_deadline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_TIMEOUT_S", 0.2)
    with (
        pytest.raises(CatalogError, match="no end") as caught,
        SqliteDatabase(path).reading() as session,
    ):
        session.rows(f"SELECT count(*) FROM ({ENDLESS})")
    assert caught.value.facts["damaged"]


def test_a_query_gives_no_more_rows_than_the_file_has_room_for(path: Path) -> None:
    with (
        pytest.raises(CatalogError, match="more rows") as caught,
        SqliteDatabase(path).reading() as session,
    ):
        session.rows(ENDLESS)
    assert caught.value.facts["damaged"]


def test_who_reads_cannot_write(path: Path) -> None:
    with SqliteDatabase(path).reading() as session:
        for statement in ("DELETE FROM tags", "PRAGMA user_version = 7"):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                session.run(statement)


@given(
    st.one_of(
        st.text(max_size=140),
        st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,140}\Z"),
        st.sampled_from(["con", "CON.x", "conx", "nul", "v1", "V01", "v1x", "a.", "a\n", "ſha256"]),
    )
)
def test_names_are_the_same_for_one_as_for_thousands(text: str) -> None:
    for pattern, validate in ((NAME, validate_name), (TAG, validate_tag)):
        try:
            validate(text)
        except RefSyntaxError:
            assert not pattern.match(text)
        else:
            assert pattern.match(text)
