from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from deltastore.catalog import FileIdentity, schema
from deltastore.errors import CatalogError, StoreNotFoundError, StoreTooNewError
from deltastore.operations.reindex import reindex
from deltastore.operations.verify import verify
from deltastore.store import Artifact, open_store
from deltastore.testing.artifacts import publish


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with open_store(tmp_path / "store") as store:
        publish(store, "a", 1, tags=("prod",))
        publish(store, "a", 2)
        publish(store, "b", 1)
        publish(store, "a", 3)
        store.rm("a:v3")
    return tmp_path / "store"


def listed(path: Path) -> list[Artifact]:
    with open_store(path, create=False) as store:
        assert verify(store).problems == ()
        return store.artifacts()


def test_the_catalog_is_rebuilt_to_the_same(path: Path) -> None:
    before = listed(path)
    with sqlite3.connect(path / "catalog.db") as connection:
        connection.executescript(
            "DELETE FROM tags; DELETE FROM versions WHERE version = 2;"
            "UPDATE versions SET digest = (SELECT max(digest) FROM artifacts), base_label = 'x'"
        )
    connection.close()
    indexed = reindex(path)
    assert (indexed.artifacts, indexed.versions, indexed.tags) == (2, 3, 1)
    assert indexed.problems == ()
    assert listed(path) == before


KINDS = ["header", "pages", "foreign", "gone", "journal", "super-journal", "links", "two names"]
KINDS += ["directory", "older", "other values"]
MAGIC = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalog_that_cannot_be_opened_is_made_anew(path: Path, kind: str) -> None:
    before = listed(path)
    outside = path.parent / "outside"
    outside.write_text("precious")
    database = path / "catalog.db"
    match kind:
        case "header":
            database.write_bytes(b"garbage" * 3000)
        case "pages":
            data = database.read_bytes()
            database.write_bytes(data[:8192] + b"\xff" * (len(data) - 8192))
        case "foreign":
            database.unlink()
            with sqlite3.connect(database) as connection:
                connection.execute("CREATE TABLE recipes (name TEXT)")
            connection.close()
        case "gone":
            database.unlink()
        case "journal":
            # That of the old database must not be rolled back into the new one.
            database.write_bytes(b"garbage" * 3000)
            (path / "catalog.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" * 600)
        case "super-journal":
            name = str(path.parent / "outside").encode()
            end = len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + MAGIC
            (path / "catalog.db-journal").write_bytes(MAGIC.ljust(512, b"\0") + name + end)
        case "links":
            for suffix in ("", "-journal", "-wal", "-shm"):
                (path / f"catalog.db{suffix}").unlink(missing_ok=True)
                (path / f"catalog.db{suffix}").symlink_to(path.parent / "outside")
        case "two names":
            os.link(database, path.parent / "same")
        case "directory":
            (path / "catalog.db-wal").mkdir()
        case "older":
            with sqlite3.connect(database) as connection:
                connection.executescript(
                    ";".join(schema.statements_at("0001")[-2:])
                    + ";UPDATE alembic_version SET version_num = '0001'"
                )
            connection.close()
        case "other values":
            with sqlite3.connect(database) as connection:
                connection.execute("UPDATE versions SET created = 'yesterday'")
            connection.close()
    if kind not in ("header", "pages", "foreign", "gone", "journal", "older", "other values"):
        with pytest.raises(CatalogError) as caught:
            listed(path)
        assert "`deltastore reindex`" in caught.value.hint
    assert reindex(path).versions == 3
    assert listed(path) == before
    assert outside.read_text() == "precious"


def test_what_is_remembered_of_files_is_kept(path: Path) -> None:
    file = FileIdentity("/m/shard", 5, 1, 1, 7, 8, seen_ns=10**15)
    with open_store(path) as store:
        store.remember_digests([(file, {"w": "00"})])
        reindex(path)
        assert store.remembered_digests([file]) == {"/m/shard": {"w": "00"}}


def test_what_reindexing_cannot_help_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path / "catalog.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = (path / "catalog.db").read_bytes()
    with pytest.raises(StoreTooNewError):
        reindex(path)
    assert (path / "catalog.db").read_bytes() == before
    with pytest.raises(StoreNotFoundError):
        reindex(path.parent / "nothing")


def test_a_locked_catalog_is_not_thrown_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltastore.catalog.sqlite.BUSY_TIMEOUT_S", 0.05)
    inode = (path / "catalog.db").stat().st_ino
    blocker = sqlite3.connect(path / "catalog.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CatalogError, match="locked"):
        reindex(path)
    blocker.close()
    assert (path / "catalog.db").stat().st_ino == inode
