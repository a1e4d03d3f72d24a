from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltastore.catalog import Catalog, FileIdentity, Summary, VersionRow, sqlite, writer
from deltastore.errors import CatalogError, StoreReadOnlyError

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog.at(tmp_path / "catalog.db", read_only=False)
    opened.prepare(lambda _: None)
    yield opened
    opened.close()


def summary(digest: str, *, codec: str = "exact", pair: str = "1") -> Summary:
    return dataclasses.replace(
        Summary.unreadable(digest),
        codec=codec,
        exactness="exact",
        base_content=f"blake3:{pair * 64}",
        post_content=f"blake3:{'9' * 64}",
        raw_bytes=1 << 40,
        bits_per_weight=5.25,
    )


def row(name: str, version: int, digest: str, *, created: str = "2025") -> VersionRow:
    return VersionRow(name, version, digest, created, "ann@host", "deltastore 0", "base", "post")


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
    assert (found.created, found.codec, found.tags) == ("2026", "other", ("best", "prod"))


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


def test_replacing_everything_keeps_what_is_remembered(filled: Catalog, tmp_path: Path) -> None:
    file = settled(tmp_path / "shard")
    filled.remember([(file, {"w": "00"})])
    with filled.writing() as writing:
        writing.replace_all([summary(A)], [row("k", 1, A)], [("k", "t", 1)])
    assert refs(filled) == ["k:v1"]
    assert filled.tags() == {("k", 1): ("t",)}
    assert filled.remembered([file]) == {file.path: {"w": "00"}}


# --- remembered files -------------------------------------------------------------------------


def settled(path: Path, text: str = "data") -> FileIdentity:
    """A file that was last changed long ago, as far as its identity says."""
    path.write_text(text)
    found = FileIdentity.of(path)
    return dataclasses.replace(found, seen_ns=found.seen_ns + 10**11)


def test_a_file_is_remembered_by_its_content(catalog: Catalog) -> None:
    catalog.remember([(FileIdentity.of_content("ab" * 32, 7), {"a": "00"})])
    again = FileIdentity.of_content("ab" * 32, 7)
    assert catalog.remembered([again]) == {"sha256:" + "ab" * 32: {"a": "00"}}
    for other in (FileIdentity.of_content("ab" * 32, 8), FileIdentity.of_content("ac" * 32, 7)):
        assert catalog.remembered([other]) == {}


def test_an_unchanged_file_is_remembered(catalog: Catalog, tmp_path: Path) -> None:
    file = settled(tmp_path / "shard")
    assert catalog.remembered([file]) == {}
    catalog.remember([(file, {"a": "00", "b": "11"})])
    again = FileIdentity.of(tmp_path / "shard")
    assert catalog.remembered([again]) == {str(tmp_path / "shard"): {"a": "00", "b": "11"}}
    catalog.remember([(file, {"a": "22"})])
    assert catalog.remembered([again]) == {again.path: {"a": "22"}}


@pytest.mark.parametrize("damage", ['{"a": "0', "7", "null", '[["a", "b", "c"]]', ""])
def test_damaged_digests_are_not_remembered(catalog: Catalog, tmp_path: Path, damage: str) -> None:
    file = settled(tmp_path / "shard")
    catalog.remember([(file, {"a": "00"})])
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute("UPDATE files SET tensors = ?", [damage])
    connection.close()
    assert catalog.remembered([file]) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("other"),
        lambda path: os.utime(path, ns=(0, 0)),
        lambda path: path.chmod(0o600),
        lambda path: (path.rename(path.with_name("old")), path.write_text("data")),
    ],
    ids=["bytes", "mtime", "ctime", "inode"],
)
def test_a_changed_file_is_not(
    catalog: Catalog, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = tmp_path / "shard"
    catalog.remember([(settled(path), {"a": "00"})])
    change(path)
    assert catalog.remembered([FileIdentity.of(path)]) == {}


def test_a_file_changed_just_before_it_was_looked_at_proves_nothing(
    catalog: Catalog, tmp_path: Path
) -> None:
    path = tmp_path / "shard"
    path.write_text("data")
    fresh = FileIdentity.of(path)
    catalog.remember([(fresh, {"a": "00"})])
    assert catalog.remembered([fresh]) == {}
    # The time of the bytes may be set at will; that of the last change of any kind may not.
    os.utime(path, ns=(0, 0))
    backdated = FileIdentity.of(path)
    catalog.remember([(backdated, {"a": "00"})])
    assert catalog.remembered([backdated]) == {}


def test_a_file_is_known_by_its_real_path(catalog: Catalog, tmp_path: Path) -> None:
    file = settled(tmp_path / "shard")
    (tmp_path / "link").symlink_to("shard")
    catalog.remember([(file, {"a": "00"})])
    assert catalog.remembered([FileIdentity.of(tmp_path / "link")]) == {file.path: {"a": "00"}}


def test_names_that_are_no_text_are_passed_over(catalog: Catalog, tmp_path: Path) -> None:
    file = settled(tmp_path / os.fsdecode(b"bad\xff"))
    catalog.remember([(file, {"a": "00"})])
    assert catalog.remembered([file]) == {}


def test_the_files_seen_longest_ago_are_forgotten(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FILES_KEPT", 3)
    first = settled(tmp_path / "0")
    files = [dataclasses.replace(first, path=f"/{i}", seen_ns=first.seen_ns + i) for i in range(5)]
    for file in files:
        catalog.remember([(file, {})])
    assert sorted(catalog.remembered(files)) == ["/2", "/3", "/4"]


# --- failures ---------------------------------------------------------------------------------


def test_the_file_has_the_permissions_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        Catalog.at(tmp_path / "catalog.db", read_only=False).prepare(lambda _: None)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "catalog.db").stat().st_mode) == 0o664


def test_a_read_only_catalog_is_read_and_not_written(filled: Catalog, tmp_path: Path) -> None:
    catalog = Catalog.at(tmp_path / "catalog.db", read_only=True)
    catalog.prepare(lambda _: None)
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
        catalog.prepare(lambda _: None)
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
