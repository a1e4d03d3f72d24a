from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from later_schema import later_schema

from deltastore.catalog import HEAD
from deltastore.errors import StoreNotFoundError, StoreOutdatedError, StoreTooNewError
from deltastore.operations.migrate import Migrated, migrate
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
