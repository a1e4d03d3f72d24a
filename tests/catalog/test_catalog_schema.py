from __future__ import annotations

import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect

from deltastore.catalog import HEAD, Catalog, schema
from deltastore.catalog.sqlite import SqliteDatabase
from deltastore.errors import CatalogError, StoreOutdatedError, StoreTooNewError
from deltastore.testing.killing import together

GOLDEN = Path(__file__).parents[1] / "golden" / "catalog"


def engine_of(path: Path) -> Engine:
    return SqliteDatabase(path).engine()


def migrated(path: Path) -> Path:
    """A database that only the migrations have made."""
    schema.upgrade(SqliteDatabase(path))
    return path


def set_revision(path: Path, revision: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    connection.close()


def described(path: Path) -> dict[str, object]:
    found = inspect(engine_of(path))
    return {
        table: (
            [{**c, "type": str(c["type"])} for c in found.get_columns(table)],
            found.get_pk_constraint(table),
            found.get_foreign_keys(table),
            sorted(found.get_indexes(table), key=lambda index: str(index["name"])),
        )
        for table in found.get_table_names()
    }


def test_a_new_catalog_is_the_same_as_a_migrated_one(tmp_path: Path) -> None:
    Catalog.at(tmp_path / "new.db", read_only=False).prepare()
    assert described(tmp_path / "new.db") == described(migrated(tmp_path / "migrated.db"))


def test_the_revisions_known_are_those_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.migrations_directory()))
    script = ScriptDirectory.from_config(config)
    assert tuple(r.revision for r in script.walk_revisions())[::-1] == schema.REVISIONS_KNOWN
    assert script.get_current_head() == HEAD


@pytest.mark.parametrize("revision", schema.REVISIONS_KNOWN)
def test_the_catalog_of_each_release_is_upgraded_and_used(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "catalog.db"
    shutil.copy(GOLDEN / f"{revision}.db", path)
    catalog = Catalog.at(path, read_only=False)
    assert catalog.revision() == revision
    if revision != HEAD:
        with pytest.raises(StoreOutdatedError, match=f"schema {revision}") as caught:
            catalog.prepare()
        assert "deltastore migrate" in caught.value.hint
    catalog.upgrade()
    catalog.prepare()
    Catalog.at(tmp_path / "new.db", read_only=False).prepare()
    assert described(path) == described(tmp_path / "new.db")
    assert [(a.ref, a.tags) for a in catalog.artifacts()] == [
        ("instruct:v1", ()),
        ("instruct:v3", ("prod",)),
        ("other:v1", ()),
    ]
    newest = catalog.newest("instruct")
    assert newest is not None
    assert newest.digest == "sha256:" + "b" * 64
    assert newest.base == "org/base"
    assert newest.bits_per_weight == 5.25
    assert catalog.find_pair(newest.base_content, newest.post_content, "exact") == [newest.digest]
    with catalog.writing() as writer:
        writer.remove_version("instruct", 3)
    assert catalog.newest("instruct") == catalog.artifacts(name="instruct")[0]


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    path = migrated(tmp_path / "catalog.db")
    before = described(path)
    Catalog.at(path, read_only=False).upgrade()
    assert described(path) == before


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog.at(path, read_only=False)
    catalog.prepare()
    set_revision(path, "9999")
    for action in (catalog.prepare, catalog.upgrade):
        with pytest.raises(StoreTooNewError, match="9999") as caught:
            action()
        assert "Upgrade deltastore" in caught.value.hint
    assert catalog.revision() == "9999"


def test_a_database_of_something_else_is_no_catalog(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    with pytest.raises(CatalogError, match="not deltastore's") as caught:
        Catalog.at(path, read_only=False).prepare()
    assert caught.value.facts["damaged"]


def test_processes_create_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"

    def prepare() -> None:
        catalog = Catalog.at(path, read_only=False)
        catalog.prepare()
        assert catalog.revision() == HEAD

    together(tmp_path, [prepare] * 6)


def test_a_making_that_fails_leaves_no_half_made_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog.at(tmp_path / "catalog.db", read_only=False)
    with monkeypatch.context() as patched:
        patched.setattr(schema, "statements_at", lambda _: (*half, "no SQL"))
        half = schema._statements_at_head()[:2]
        with pytest.raises(CatalogError):
            catalog.prepare()
    assert catalog.revision() is None
    catalog.prepare()
    assert catalog.revision() == HEAD


def test_opening_a_catalog_does_not_import_alembic(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from deltastore.store import open_store\n"
        f"open_store(Path({str(tmp_path / 'store')!r}))\n"
        "assert not {'alembic', 'torch', 'numpy', 'numba'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
