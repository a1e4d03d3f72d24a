from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from other_users import without_privileges

from deltastore.blobs.owner import owner_token
from deltastore.errors import (
    CatalogError,
    NotAStoreError,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreTooNewError,
)
from deltastore.operations.verify import verify
from deltastore.store import Store, default_store_path, open_store
from deltastore.system import directory
from deltastore.system.directory import Directory, Place
from deltastore.testing.artifacts import publish
from deltastore.testing.killing import start, succeeds, together


def refs(store: Store) -> list[str]:
    return [artifact.ref for artifact in store.artifacts()]


def test_a_new_store_is_empty_and_keeps_its_id(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store"
    with open_store(path) as store:
        assert store.artifacts() == []
        assert store.writable
        assert store.free_bytes() > 0
        first = store.id
    with open_store(str(path), create=False) as store:
        assert store.id == first
    assert sorted(p.name for p in path.iterdir()) == [
        "blobs",
        "catalog.db",
        "leases",
        "names",
        "spare",
        "store.json",
        "tmp",
    ]


def test_where_there_is_none_it_is_made_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=str(tmp_path)):
        open_store(tmp_path / "store", create=False)
    assert not (tmp_path / "store").exists()


def test_an_empty_directory_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert open_store(tmp_path / "store").artifacts() == []


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    for create in (True, False):
        with pytest.raises((NotAStoreError, StoreNotFoundError)):
            open_store(tmp_path, create=create)
    with pytest.raises(NotAStoreError, match=r"config\.json"):
        open_store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(NotAStoreError, match="is a file"):
        open_store(tmp_path / "config.json")


def test_an_exported_layout_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "index.json").touch()
    with pytest.raises(NotAStoreError, match=r"index\.json"):
        open_store(tmp_path)


def test_a_store_whose_making_was_interrupted_is_finished(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    assert open_store(tmp_path).artifacts() == []


@pytest.mark.parametrize(
    ("marker", "error"),
    [
        (b"", NotAStoreError),
        (b"[]", NotAStoreError),
        (b"{", NotAStoreError),
        (b'{"format":1}', NotAStoreError),
        (b'{"format":true,"id":"x","created":"x"}', NotAStoreError),
        (b'{"format":0,"id":"x","created":"x"}', NotAStoreError),
        (b'{"format":1,"id":"x","created":"x","id":"y"}', NotAStoreError),
        (b'{"format":2,"id":"x","created":"x"}', StoreTooNewError),
        (b'{"format":2,"anything":"else"}', StoreTooNewError),
    ],
)
def test_a_marker_that_cannot_be_read_is_said_to_be(
    store: Store, marker: bytes, error: type[Exception]
) -> None:
    (store.path / "store.json").write_bytes(marker)
    with pytest.raises(error, match=str(store.path)):
        open_store(store.path)


def test_of_processes_that_make_the_store_at_once_all_have_the_same(tmp_path: Path) -> None:
    path = tmp_path / "store"

    def make() -> None:
        with open_store(path) as store:
            (tmp_path / f"id-{os.getpid()}").write_text(store.id)
            publish(store, f"name-{os.getpid()}", os.getpid())

    together(tmp_path, [make] * 5)
    ids = {p.read_text() for p in tmp_path.glob("id-*")}
    with open_store(path, create=False) as store:
        assert ids == {store.id}
        assert len(refs(store)) == 5


def test_a_directory_that_another_process_makes_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = directory._follow
    met: set[str] = set()

    def late(above: Directory, name: str) -> Directory:
        if name not in met:
            met.add(name)
            (above.path / name).mkdir()
            raise FileNotFoundError(name)
        return follow(above, name)

    monkeypatch.setattr(directory, "_follow", late)
    for name in ("blobs", "names"):
        Place(tmp_path / name).make().close()
    assert met == {"blobs", "names"}
    (tmp_path / "leases").symlink_to(tmp_path / "nowhere")
    met.add("leases")
    with pytest.raises(FileNotFoundError):
        Place(tmp_path / "leases").make()


def test_a_catalog_that_was_deleted_is_made_from_the_records(store: Store) -> None:
    publish(store, "a", 1, tags=("prod",))
    publish(store, "a", 2)
    publish(store, "b", 1)
    before = store.artifacts()
    (store.path / "catalog.db").unlink()
    with open_store(store.path) as again:
        assert again.artifacts() == before
    (store.path / "catalog.db").write_bytes(b"")
    with open_store(store.path) as again:
        assert again.artifacts() == before


def test_a_store_copied_without_its_empty_directories_works(store: Store) -> None:
    publish(store)
    for name in ("tmp", "leases"):
        (store.path / name).rmdir()
    with open_store(store.path) as again:
        publish(again, seed=2)
        assert refs(again) == ["model:v1", "model:v2"]


def test_records_that_came_with_a_copy_are_found_by_name(store: Store, tmp_path: Path) -> None:
    with open_store(tmp_path / "other") as other:
        publish(other, "gift", 7, tags=("prod",))
        shutil.copytree(other.path / "names" / "gift", store.path / "names" / "gift")
        shutil.copytree(other.path / "blobs", store.path / "blobs", dirs_exist_ok=True)
    assert store.resolve("gift:prod").version == 1
    assert refs(store) == ["gift:v1"]


def test_a_damaged_catalog_is_refused_with_the_command(store: Store) -> None:
    (store.path / "catalog.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(CatalogError, match="damaged") as caught:
        open_store(store.path)
    assert "deltastore reindex" in caught.value.hint


@pytest.mark.parametrize(
    ("mask", "directory", "file", "blob"),
    [(0o002, 0o775, 0o664, 0o444), (0o022, 0o755, 0o644, 0o444), (0o077, 0o700, 0o600, 0o400)],
)
def test_permissions_are_as_the_umask_says(
    tmp_path: Path, mask: int, directory: int, file: int, blob: int
) -> None:
    before = os.umask(mask)
    try:
        with open_store(tmp_path / "store") as store:
            publish(store, tags=("prod",))
    finally:
        os.umask(before)
    for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == directory, path
        else:
            assert mode == (blob if path.parent.name == "sha256" else file), path


def test_the_default_is_the_users_own_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DELTASTORE_HOME", "~/weights")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_store_path() == tmp_path / "weights"
    monkeypatch.delenv("DELTASTORE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert "deltastore" in default_store_path().parts


# --- without permission to write ----------------------------------------------------------------


def take_permission(path: Path) -> None:
    for entry in [*path.rglob("*"), path]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)


def reads_all(path: Path) -> None:
    with open_store(path) as store:
        assert not store.writable
        assert refs(store) == ["model:v1", "model:v2"]
        store.load(store.resolve("model:prod").digest)
        assert verify(store).problems == ()
        for change in (
            lambda: store.tag("model", "x"),
            lambda: store.untag("model", "prod"),
            lambda: store.rm("model"),
            lambda: store.lease("extract"),
            lambda: publish(store, seed=3),
        ):
            with pytest.raises(StoreReadOnlyError):
                change()
        store.remember_digests([])


@pytest.fixture
def read_only(public_path: Path) -> Path:
    path = public_path / "store"
    with open_store(path) as store:
        publish(store, seed=1, tags=("prod",))
        publish(store, seed=2)
    take_permission(path)
    return path


def test_a_read_only_store_is_read_and_not_written(read_only: Path) -> None:
    without_privileges(lambda: reads_all(read_only))


def test_a_read_only_store_is_read_without_a_catalog(read_only: Path) -> None:
    read_only.chmod(0o755)
    (read_only / "catalog.db").unlink()
    read_only.chmod(0o555)
    without_privileges(lambda: reads_all(read_only))


def test_a_read_only_store_with_anothers_lease_is_read(read_only: Path) -> None:
    (read_only / "leases").chmod(0o755)
    (read_only / "leases" / "x.json").write_text(json.dumps({"name": "model"}))
    without_privileges(lambda: reads_all(read_only))
    assert (read_only / "leases" / "x.json").exists()


def test_a_store_cannot_be_made_where_nobody_may_write(public_path: Path) -> None:
    public_path.chmod(0o555)

    def make() -> None:
        with pytest.raises(StoreReadOnlyError):
            open_store(public_path / "store")

    without_privileges(make)


# --- what was left behind -----------------------------------------------------------------------


def test_what_the_dead_left_is_removed_and_the_livings_stays(store: Store) -> None:
    def leave() -> None:
        with open_store(store.path, create=False) as opened:
            from deltastore.blobs.durable import write_temp

            write_temp(opened.path / "tmp", [b"half a blob"])
            with opened.lease("extract"):
                os._exit(0)

    succeeds(start(leave))
    (store.path / "tmp" / "unknown").touch()
    with store.lease("extract") as mine:
        assert len(list((store.path / "leases").iterdir())) == 2
        with open_store(store.path):
            assert list((store.path / "leases").iterdir()) == [mine]
            assert [p.name for p in (store.path / "tmp").iterdir()] == ["unknown"]
    assert list((store.path / "leases").iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name":"../../etc"}', '{"name":3,"pid":"x"}'])
def test_a_lease_that_cannot_be_read_hurts_nobody(store: Store, text: str) -> None:
    publish(store)
    (store.path / "leases" / f"{owner_token()}-x.json").write_text(text)
    with open_store(store.path) as again:
        assert refs(again) == ["model:v1"]
        assert not again.parts.leases.all()[0].dead
