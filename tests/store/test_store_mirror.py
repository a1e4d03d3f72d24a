"""A store that was copied over another, or changed in place by a tool: what its files say holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deltastore.errors import CatalogError, DeltastoreError
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store, refreshing
from deltastore.testing.artifacts import publish

pytestmark = pytest.mark.blob_files

Copy = Callable[[Path, Path], None]
_TEMPORARY = ("tmp", "leases", "spare")


def _over(source: Path, mirror: Path) -> None:
    """As ``cp -r``: the contents of files that are there are replaced, and nothing else of them."""
    for path in _files(source):
        target = mirror / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(path.read_bytes())


def _over_with_times(source: Path, mirror: Path) -> None:
    """As ``cp -a`` or ``tar x --overwrite``: the same, and the times are those of the source."""
    _over(source, mirror)
    for path in _files(source):
        shutil.copystat(path, mirror / path.relative_to(source))
    for above, _, _ in os.walk(source):
        if not set(Path(above).relative_to(source).parts) & set(_TEMPORARY):
            shutil.copystat(above, mirror / Path(above).relative_to(source))


def _new_files(source: Path, mirror: Path) -> None:
    """As ``rsync``: files come under a name of their own first; what is gone is removed."""
    for path in _files(source):
        target = mirror / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target.with_name(f".{target.name}.new"))
        target.with_name(f".{target.name}.new").replace(target)
    for path in _files(mirror):
        if not (source / path.relative_to(mirror)).exists():
            path.unlink()


def _tar(source: Path, mirror: Path) -> None:
    archive = source.parent / "store.tar"
    with tarfile.open(archive, "w") as tar:
        for path in _files(source):
            tar.add(path, path.relative_to(source))
    subprocess.run(["tar", "x", "--overwrite", "-f", archive, "-C", mirror], check=True)


def _files(store: Path) -> list[Path]:
    found = (path for path in store.rglob("*") if path.is_file())
    return sorted(path for path in found if path.relative_to(store).parts[0] not in _TEMPORARY)


def _without_catalog(copy: Copy) -> Copy:
    def copied(source: Path, mirror: Path) -> None:
        kept = source.parent / "kept.db"
        (source / "catalog.db").replace(kept)
        try:
            copy(source, mirror)
        finally:
            kept.replace(source / "catalog.db")

    copied.__name__ = f"{copy.__name__} without catalog.db"
    return copied


def _said(path: Path, index: str | None = None) -> list[tuple[str, str, tuple[str, ...], str]]:
    with open_store(path, create=False, index=index) as store:
        found = [(a.ref, a.digest, a.tags, a.created_by) for a in store.artifacts()]
        assert [f"{x.name}:v{x.version}" for x in store.listings()] == [ref for ref, *_ in found]
        for ref, digest, tags, _ in found:
            assert all(store.resolve(f"{ref.split(':')[0]}:{tag}").digest == digest for tag in tags)
        return found


def _tag(store: Store) -> None:
    store.tag("a:v2", "prod")


def _remove(store: Store) -> None:
    store.rm("a:v2")


def _publish(store: Store) -> None:
    publish(store, "a", 3, tags=("prod",))
    publish(store, "b", 4)


@pytest.fixture(autouse=True)
def short_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old at once, so that it is their looks that tell of a change."""
    monkeypatch.setattr(refreshing, "GRAIN_NS", 0)


@pytest.mark.parametrize("index", ["store", "local"])
@pytest.mark.parametrize("change", [_tag, _remove, _publish])
@pytest.mark.parametrize(
    "copy",
    [
        copy
        for way in (_over, _over_with_times, _new_files, _tar)
        for copy in (way, _without_catalog(way))
    ],
    ids=lambda copy: copy.__name__.strip("_"),
)
def test_a_mirror_says_what_its_source_says(
    tmp_path: Path, copy: Copy, change: Callable[[Store], None], index: str
) -> None:
    source, mirror = tmp_path / "source", tmp_path / "mirror"
    own = str(tmp_path / "index") if index == "local" else None
    with open_store(source) as store:
        publish(store, "a", 1, tags=("prod",))
        publish(store, "a", 2)
    mirror.mkdir()
    copy(source, mirror)
    assert _said(mirror, own) == _said(source)
    assert _said(mirror, own) == _said(source)
    with open_store(source) as store:
        change(store)
    copy(source, mirror)
    assert _said(mirror, own) == _said(source)


def test_what_is_removed_at_the_source_is_removed_from_a_mirror_that_follows(
    tmp_path: Path,
) -> None:
    source, mirror = tmp_path / "source", tmp_path / "mirror"
    with open_store(source) as store:
        publish(store, "a", 1, tags=("prod", "best"))
        publish(store, "b", 1)
        _new_files(source, mirror)
        assert _said(mirror) == _said(source)
        store.untag("a:v1", "prod")
        _new_files(source, mirror)
        assert _said(mirror) == _said(source)
    # A name that is not there any more: whoever has an index of his own lists it no longer.
    own = str(tmp_path / "index")
    assert len(_said(mirror, own)) == 2
    shutil.rmtree(mirror / "names" / "b")
    assert [(ref, tags) for ref, _, tags, _ in _said(mirror, own)] == [("a:v1", ("best",))]


@pytest.mark.parametrize("lost", ["names/a/v2.json", "names/a"])
def test_a_record_that_was_lost_is_missed(store: Store, lost: str) -> None:
    """No command takes a record away without leaving a tombstone."""
    publish(store, "a", 1)
    publish(store, "a", 2)
    path = store.path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with open_store(store.path) as again:
        assert "a:v2" in [artifact.ref for artifact in again.artifacts()]
        assert any("a:v2" in problem.refs for problem in verify(again).problems)
        before = set(again.blobs.digests())
        with pytest.raises(DeltastoreError, match=r"a:v|a/v") as caught:
            again.collect(grace_s=0)
        assert "`deltastore rm a:v" in caught.value.hint
        assert set(again.blobs.digests()) == before


def test_a_record_that_was_changed_in_place_is_seen(store: Store) -> None:
    publish(store, "a", 1)
    _said(store.path)
    path = store.path / "names" / "a" / "v1.json"
    before = path.stat()
    by = store.artifacts()[0].created_by
    path.write_bytes(path.read_bytes().replace(by.encode(), by[::-1].encode()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ino == before.st_ino
    assert [created_by for *_, created_by in _said(store.path)] == [by[::-1]]


def test_what_changes_while_a_store_is_open_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "store"
    publish_into = str(tmp_path / "one")
    with (
        open_store(path, index=str(tmp_path / "other")) as reader,
        open_store(path, index=publish_into) as writer,
    ):
        publish(writer, "a", 1, tags=("prod",))
        first = reader.resolve("a:prod")
        publish(writer, "a", 2, tags=("prod",))
        assert reader.resolve("a:prod").version == first.version + 1
        assert reader.resolve("a").version == 2
        writer.rm("a:v2")
        assert reader.resolve("a").version == 1


def test_verify_takes_what_another_changes_meanwhile_for_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with (
        open_store(path, index=str(tmp_path / "other")) as reader,
        open_store(path, index=str(tmp_path / "one")) as writer,
    ):
        publish(writer, "a", 1, tags=("prod",))
        publish(writer, "a", 2, tags=("best",))
        assert verify(reader).problems == ()
        writer.rm("a:v1")
        writer.untag("a:v2", "best")
        assert verify(reader).problems == ()
        # What is wrong stays a finding, whatever else changes.
        (path / "names" / "a" / "tags" / "bad.json").write_text("{")
        publish(writer, "b", 3)
        (problem,) = verify(reader).problems
        assert problem.where == "names/a/tags/bad.json"


def test_who_reads_does_not_wait_for_who_makes_the_index_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refreshing, "_PATIENCE_S", 0.05)
    publish(store, "a", 1)
    with store.parts.catalog.writing():
        # As it was committed, and as the files say.
        with open_store(store.path) as reader:
            assert [a.ref for a in reader.artifacts()] == ["a:v1"]
            with pytest.raises(CatalogError, match="locked"):
                reader.reindex()
            publish(reader, "b", 2)
        with open_store(store.path) as reader:
            assert [a.ref for a in reader.artifacts()] == ["a:v1", "b:v1"]
    with open_store(store.path) as after:
        assert [a.ref for a in after.artifacts()] == ["a:v1", "b:v1"]
        assert after.parts.catalog.detached is None
        assert verify(after).problems == ()


@pytest.mark.parametrize("how", ["{", "gone to a directory"])
def test_no_older_version_is_taken_for_the_newest_that_is_damaged(store: Store, how: str) -> None:
    publish(store, "a", 1)
    publish(store, "a", 2)
    path = store.path / "names" / "a" / "v2.json"
    path.unlink()
    if how == "{":
        path.write_text("{")
    else:
        path.mkdir()
    store.reindex()
    with open_store(store.path) as again:
        assert [a.ref for a in again.artifacts()] == ["a:v1"]
        for action in (again.resolve, again.rm):
            with pytest.raises(DeltastoreError, match=r"v2\.json"):
                action("a")
        assert again.resolve("a:v1").version == 1
        again.rm("a:v2")
        assert again.resolve("a").version == 1


def test_nothing_is_read_where_nothing_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The change and the look at the clock fall into one tick of it, and the time is a float.
    monkeypatch.setattr(refreshing, "GRAIN_NS", -(10**7))
    for number in range(3):
        publish(store, f"n{number}", number, tags=("t",))
    _said(store.path)
    read: list[str] = []
    real = refreshing.indexing.index_name
    monkeypatch.setattr(
        refreshing.indexing,
        "index_name",
        lambda *args, **more: (read.append(args[3]), real(*args, **more))[1],
    )
    _said(store.path)
    assert read == []
    os.utime(store.path / "names" / "n1" / "tags" / "t.json")
    _said(store.path)
    assert read == ["n1"]
