from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltastore.catalog import Catalog, Record, Summary, sqlite
from deltastore.errors import CatalogError, StoreReadOnlyError

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog.at(tmp_path / "catalog.db", read_only=False)
    opened.prepare()
    yield opened
    opened.close()


def summary(digest: str, *, codec: str = "exact", pair: str = "1") -> Summary:
    return dataclasses.replace(
        Summary(digest=digest),
        codec=codec,
        exactness="exact",
        base_content=f"blake3:{pair * 64}",
        post_content=f"blake3:{'9' * 64}",
        raw_bytes=1 << 40,
        bits_per_weight=5.25,
    )


def row(name: str, version: int, digest: str, *, created: str = "2025") -> Record:
    return Record(name, version, digest, on(created), "ann@host", "deltastore 0", "base", "post")


def on(year: str) -> str:
    return f"{year}-01-31T12:00:00.000000Z"


@pytest.fixture
def filled(catalog: Catalog) -> Catalog:
    with catalog.writing() as writing:
        writing.put_version(row("m", 1, A), summary(A))
        writing.put_version(row("m", 2, B), summary(B))
        writing.put_version(row("m", 10, C), summary(C, codec="quant"))
        writing.put_version(row("n", 1, B), summary(B))
        writing.put_tag("m", "prod", 2)
        writing.put_tag("m", "best", 2)
        writing.put_tag("n", "prod", 1)
    return catalog


def refs(catalog: Catalog, **conditions: object) -> list[str]:
    return [artifact.ref for artifact in catalog.artifacts(**conditions)]  # type: ignore[arg-type]


def test_versions_are_found_by_what_a_ref_says(filled: Catalog) -> None:
    assert refs(filled) == ["m:v1", "m:v2", "m:v10", "n:v1"]
    assert refs(filled, name="m", version=2) == ["m:v2"]
    assert refs(filled, name="m", tag="prod") == ["m:v2"]
    assert refs(filled, name="m", tag="gone") == []
    assert refs(filled, digest_prefix=B) == ["m:v2", "n:v1"]
    assert refs(filled, digest_prefix="sha256:bbbbbbbb") == ["m:v2", "n:v1"]
    assert refs(filled, digest_prefix="sha256:bbbbbbbbf") == []
    assert refs(filled, name="n", digest_prefix=B) == ["n:v1"]
    newest = filled.newest("m")
    assert newest is not None
    assert newest.version == 10
    assert filled.newest("x") is None
    assert filled.names() == ["m", "n"]


def test_an_artifact_has_its_numbers_and_tags(filled: Catalog) -> None:
    (found,) = filled.artifacts(name="m", version=2)
    assert found.tags == ("best", "prod")
    assert (found.raw_bytes, found.bits_per_weight, found.restore_only) == (1 << 40, 5.25, False)
    assert (found.base, found.post, found.created_by) == ("base", "post", "ann@host")


def test_setting_a_tag_again_moves_it(filled: Catalog) -> None:
    with filled.writing() as writing:
        writing.put_tag("m", "prod", 1)
    assert refs(filled, name="m", tag="prod") == ["m:v1"]
    assert refs(filled, name="n", tag="prod") == ["n:v1"]


def test_putting_a_version_again_keeps_its_tags(filled: Catalog) -> None:
    with filled.writing() as writing:
        writing.put_version(row("m", 2, B, created="2026"), summary(B, codec="other"))
    (found,) = filled.artifacts(name="m", version=2)
    assert (found.created, found.codec, found.tags) == (on("2026"), "other", ("best", "prod"))


def test_removing_takes_tags_along_and_leaves_shared_artifacts(filled: Catalog) -> None:
    with filled.writing() as writing:
        writing.remove_version("m", 2)
    assert refs(filled) == ["m:v1", "m:v10", "n:v1"]
    assert filled.tags("m") == {}
    assert set(filled.find_pair("blake3:" + "1" * 64, "blake3:" + "9" * 64, "exact")) == {A, B}
    with filled.writing() as writing:
        writing.remove_version("m", 1)
        writing.remove_version("n", 1)
        writing.remove_version("n", 7)
    assert filled.find_pair("blake3:" + "1" * 64, "blake3:" + "9" * 64, "exact") == []


def test_a_pair_is_found_with_its_codec_first_one_first(catalog: Catalog) -> None:
    with catalog.writing() as writing:
        writing.put_version(row("m", 1, B, created="2024"), summary(B))
        writing.put_version(row("m", 2, A, created="2025"), summary(A))
        writing.put_version(row("m", 3, C), summary(C, codec="quant", pair="2"))
    post = "blake3:" + "9" * 64
    assert catalog.find_pair("blake3:" + "1" * 64, post, "exact") == [B, A]
    assert catalog.find_pair("blake3:" + "2" * 64, post, "quant") == [C]
    assert catalog.find_pair("blake3:" + "2" * 64, post, "exact") == []
    assert catalog.find_pair(post, "blake3:" + "1" * 64, "exact") == []


def test_an_exception_undoes_the_transaction(filled: Catalog) -> None:
    def fail() -> None:
        with filled.writing() as writing:
            writing.remove_version("m", 2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert refs(filled) == ["m:v1", "m:v2", "m:v10", "n:v1"]


def test_everything_is_forgotten(filled: Catalog) -> None:
    with filled.writing() as writing:
        writing.see("m", "v1.json", "1:2:3:4")
        assert writing.count() == (3, 4, 3)
        writing.forget_all()
        assert writing.count() == (0, 0, 0)
    assert refs(filled) == []
    assert filled.tags() == {}
    assert filled.seen() == {}


def test_a_name_is_forgotten_with_all_there_is_of_it(filled: Catalog) -> None:
    with filled.writing() as writing:
        for name in ("m", "n"):
            writing.see(name, "v1.json tags tags/prod.json", "1:2:3:4")
        writing.forget("m")
    assert refs(filled) == ["n:v1"]
    assert filled.seen() == {"n": ("v1.json tags tags/prod.json", "1:2:3:4")}
    assert filled.seen("m") == {}


# --- failures ---------------------------------------------------------------------------------


def test_the_file_has_the_permissions_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        Catalog.at(tmp_path / "catalog.db", read_only=False).prepare()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "catalog.db").stat().st_mode) == 0o664


def test_a_read_only_catalog_is_read_and_not_written(filled: Catalog, tmp_path: Path) -> None:
    catalog = Catalog.at(tmp_path / "catalog.db", read_only=True)
    catalog.prepare()
    assert len(refs(catalog)) == 4
    with pytest.raises(StoreReadOnlyError), catalog.writing():
        pass
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(CatalogError, match="cannot be opened"):
        Catalog.at(tmp_path / "absent.db", read_only=True).names()


def test_a_path_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=ro#%41" / "catalog.db"
    path.parent.mkdir()
    for read_only in (False, True):
        catalog = Catalog.at(path, read_only=read_only)
        catalog.prepare()
        assert catalog.names() == []


def test_a_lock_that_does_not_go_away_is_said(
    filled: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    blocker = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(CatalogError, match="locked by another process"), filled.writing():
        pass
    # Whoever only reads does not wait for a writer that has not committed.
    assert len(refs(filled)) == 4
    blocker.close()


def damage_header(path: Path) -> None:
    path.write_bytes(b"no database at all" * 500)


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 * 2 :] = b"\xff" * (len(data) - 4096 * 2)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_header, damage_pages])
def test_a_damaged_catalog_is_said_to_be(
    filled: Catalog, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    filled.check()
    damage(tmp_path / "catalog.db")
    with pytest.raises(CatalogError) as caught:
        filled.check()
    assert caught.value.facts["damaged"]
    assert "deltastore reindex" in caught.value.hint
