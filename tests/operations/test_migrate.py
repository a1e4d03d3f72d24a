from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from later_schema import later_schema

from deltastore.catalog import HEAD, schema
from deltastore.errors import CatalogError, StoreNotFoundError, StoreOutdatedError, StoreTooNewError
from deltastore.operations.migrate import Migrated, migrate
from deltastore.operations.reindex import reindex
from deltastore.store import open_store
from deltastore.testing.artifacts import publish


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with open_store(tmp_path / "store") as store:
        publish(store)
    return tmp_path / "store"


def set_revision(path: Path, revision: str) -> None:
    with sqlite3.connect(path / "catalog.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    connection.close()


def test_a_store_at_head_has_nothing_to_do(path: Path) -> None:
    assert migrate(path) == Migrated(HEAD, HEAD)


def test_an_old_store_is_refused_until_it_is_migrated(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later_schema(tmp_path, monkeypatch)
    with pytest.raises(StoreOutdatedError) as caught:
        open_store(path)
    assert "deltastore migrate" in caught.value.hint
    assert migrate(path) == Migrated(HEAD, "9000")
    with open_store(path) as store:
        assert store.resolve("model").ref == "model:v1"
        store.tag("model", "prod")
        assert publish(store, seed=2).version == 2


def test_paths_of_local_files_leave_the_store(path: Path) -> None:
    """Neither those that the table has, nor those that were deleted from it long ago."""
    catalog = path / "catalog.db"
    with sqlite3.connect(catalog) as connection:
        connection.executescript(
            "PRAGMA secure_delete = OFF;"
            + ";".join(schema.statements_at("0001")[-2:])
            + ";DROP TABLE seen"
            + ";UPDATE alembic_version SET version_num = '0001'"
        )
        rows = [(f"/home/ann/secret/{n}", "x" * 3000) for n in range(300)]
        connection.executemany("INSERT INTO files VALUES (?, 1, 1, 1, 1, 1, 1, ?)", rows)
        connection.commit()
        connection.execute("DELETE FROM files WHERE rowid % 3 > 0")
    connection.close()
    assert catalog.read_bytes().count(b"/home/ann/secret") > 200
    with pytest.raises(StoreOutdatedError) as caught:
        open_store(path)
    assert "deltastore migrate" in caught.value.hint
    assert migrate(path) == Migrated("0001", HEAD)
    assert b"/home/ann" not in catalog.read_bytes()
    assert [found.name for found in path.glob("catalog.db*")] == ["catalog.db"]
    with open_store(path) as store:
        assert store.resolve("model").ref == "model:v1"


def test_an_old_catalog_that_is_hostile_is_made_anew_by_reindexing(path: Path) -> None:
    with sqlite3.connect(path / "catalog.db") as connection:
        connection.executescript(
            "CREATE TRIGGER t AFTER DELETE ON versions BEGIN DELETE FROM tags; END;"
            "UPDATE alembic_version SET version_num = '0001'"
        )
    connection.close()
    with pytest.raises(CatalogError) as caught:
        migrate(path)
    assert "deltastore reindex" in caught.value.hint
    assert reindex(path).versions == 1
    assert migrate(path) == Migrated(HEAD, HEAD)


def test_a_newer_store_is_left_alone(path: Path) -> None:
    set_revision(path, "9999")
    with pytest.raises(StoreTooNewError):
        migrate(path)


def test_a_store_without_a_catalog_gets_one(path: Path) -> None:
    (path / "catalog.db").unlink()
    assert migrate(path) == Migrated(None, HEAD)
    with open_store(path) as store:
        assert store.resolve("model").ref == "model:v1"
    with pytest.raises(StoreNotFoundError):
        migrate(path.parent / "nothing")
