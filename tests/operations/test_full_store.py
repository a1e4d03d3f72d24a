"""A store on a disk without a free byte, or without a free inode: something can be freed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_disk import FILLERS, empty, needs_mount, small_disk
from worlds import World

import deltastore
from deltastore.blobs import durable, spares
from deltastore.catalog import sqlite
from deltastore.cli.main import main
from deltastore.errors import NoSpaceError
from deltastore.operations.doctor import doctor
from deltastore.operations.gc import gc
from deltastore.operations.verify import verify
from deltastore.store import Store, open_store
from deltastore.system.steps import Step
from deltastore.testing.artifacts import noise, publish
from deltastore.testing.killing import killed_at, start, succeeds

Fill = Callable[[], None]


@pytest.fixture(params=["own", "local"])
def index(request: pytest.FixtureRequest) -> str | None:
    """Where the index is: in the store, or with the user, as where others may write."""
    return None if request.param == "own" else "local"


@pytest.fixture(params=FILLERS)
def full(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    index: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Path, Fill]]:
    """A store with m:v1 (tagged t), m:v2, n:v1 and an orphan on a disk that is full."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(sqlite, "SYNCHRONOUS", "OFF")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with small_disk(tmp_path / "disk", "size=8m", "nr_inodes=800") as disk:
        path = disk / "store"
        with open_store(path, index=index) as store:
            publish(store, "m", 1, tags=("t",))
            publish(store, "m", 2)
            publish(store, "n", 3)
            store.blobs.put([noise("orphan", 100_000)])

        def fill() -> None:
            FILLERS[request.param](disk)

        fill()
        yield path, fill


def refs(store: Store) -> list[str]:
    return [artifact.ref for artifact in store.artifacts()]


@needs_mount
def test_all_can_be_removed_though_what_is_freed_is_taken_at_once(
    full: tuple[Path, Fill], index: str | None
) -> None:
    path, fill = full
    listed = ["m:v1", "m:v2", "n:v1"]

    def untag() -> None:
        with open_store(path, index=index) as store:
            assert refs(store) == listed
            assert store.untag("m", "t").tags == ()
            assert store.resolve("m:v1").tags == ()

    succeeds(start(untag))
    for ref in ("m:v1", "n:v1", "m:v2"):
        fill()
        listed.remove(ref)

        def remove(ref: str = ref) -> None:
            with open_store(path, index=index) as store:
                store.rm(ref)
                assert refs(store) == listed

        # The lease of a process that has ended is kept while the catalog is behind, and then goes.
        succeeds(start(remove))
        fill()
        with open_store(path, index=index) as store:
            assert refs(store) == listed
            assert gc(store, grace_s=0, dry_run=True).removed > 0
            assert gc(store, grace_s=0).removed > 0
            assert refs(store) == listed
            assert verify(store).problems == verify(store).orphans == ()
    fill()
    assert doctor(path, index=index).healthy
    empty(path.parent)
    with open_store(path, index=index) as store:
        assert not store.parts.catalog.detached
        assert refs(store) == []
        assert publish(store, "m", 1).version == 3
    for folder in ("tmp", "leases"):
        assert list((path / folder).iterdir()) == []
    assert len(list((path / "spare").iterdir())) == spares.COUNT + 1
    with open_store(path, index=index) as store:
        assert refs(store) == ["m:v3"]


@needs_mount
@pytest.mark.parametrize("index", ["own"], indirect=True)
@pytest.mark.parametrize("step", ["LEASE", "CLAIMED", "UNTAGGED", "TOMBSTONE", "UNLISTED"])
def test_rm_is_killed(full: tuple[Path, Fill], step: str) -> None:
    path, fill = full

    def remove() -> None:
        with open_store(path) as store:
            store.rm("m:v1")

    killed_at(Step[step], remove)
    fill()
    gone = step in ("TOMBSTONE", "UNLISTED")
    with open_store(path) as store:
        assert refs(store) == ["m:v1", "m:v2", "n:v1"][gone:]
    if not gone:
        succeeds(start(remove))
    fill()
    with open_store(path) as store:
        assert gc(store, grace_s=0).removed > 1
        assert verify(store).problems == ()
    empty(path.parent)
    with open_store(path) as store:
        assert refs(store) == ["m:v2", "n:v1"]
        assert not store.parts.catalog.detached
    assert list((path / "leases").iterdir()) == list((path / "tmp").iterdir()) == []


@needs_mount
@pytest.mark.parametrize("index", ["own"], indirect=True)
@pytest.mark.parametrize("step", ["BIN", "GATE", "STALE", "BINNED", "OPENED"])
def test_gc_is_killed(full: tuple[Path, Fill], step: str) -> None:
    path, fill = full

    def collect() -> None:
        with open_store(path) as store:
            gc(store, grace_s=0)

    killed_at(Step[step], collect)
    fill()
    with open_store(path) as store:
        gc(store, grace_s=0)
        assert verify(store).problems == verify(store).orphans == ()
        assert refs(store) == ["m:v1", "m:v2", "n:v1"]


@needs_mount
@pytest.mark.parametrize("index", ["own"], indirect=True)
def test_what_does_not_fit_leaves_nothing_and_says_what_gives_room(
    full: tuple[Path, Fill], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = full
    before = {p for p in path.rglob("*") if p.parent.name != "spare"}
    command = ["tag", "m:v2", "new", "--store", str(path)]
    assert main(command) == 16
    hint = capsys.readouterr().err.split("hint: ")[1]
    assert "`deltastore gc --grace 0` frees 100 kB there, 1 blob that no version uses." in hint
    assert main([*command, "--json"]) == 16
    error = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
    assert error["facts"]["freed_by_gc"] == 100_000
    with open_store(path) as store, pytest.raises(NoSpaceError):
        store.blobs.put([noise("more", 100_000)])
    assert {p for p in path.rglob("*") if p.parent.name != "spare"} == before
    assert main(["gc", "--grace", "0", "--store", str(path), "-q"]) == 0
    # The bytes that were freed: the command goes through, or says what to do next.
    capsys.readouterr()
    if main(command):
        assert "`deltastore rm REF`" in capsys.readouterr().err


@needs_mount
@pytest.mark.parametrize("index", ["own"], indirect=True)
def test_a_bin_that_cannot_grow_is_emptied(
    full: tuple[Path, Fill], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = full
    with open_store(path) as store:
        store.rm("m:v1")
        store.rm("m:v2")
        moved: list[str] = []
        real = store.blobs.move_out

        def move_out(digest: str, into: object) -> bool:
            names = into.names()  # type: ignore[attr-defined]
            if len(names) >= 2:
                raise NoSpaceError("No space is left for the bin.")
            moved.append(digest)
            return real(digest, into)  # type: ignore[arg-type]

        monkeypatch.setattr(store.blobs, "move_out", move_out)
        assert gc(store, grace_s=0).removed == len(moved) > 2
        assert verify(store).orphans == ()


@needs_mount
def test_a_local_index_on_a_full_disk_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "SYNCHRONOUS", "OFF")
    with small_disk(tmp_path / "home", "size=1m", "nr_inodes=30") as home:
        index = str(home / "indexes") + os.sep
        path = tmp_path / "store"
        with open_store(path, index=index) as store:
            publish(store, "m", 1)
        for seed, fill in enumerate(FILLERS.values(), 5):
            fill(home)
            with open_store(path, index=index) as store:
                published = publish(store, "m", seed)
                assert published.ref in refs(store)
            with open_store(path, index=index) as store:
                assert published.ref in refs(store)
                store.tag(published.ref, "t")
                assert store.resolve("m:t").ref == published.ref
            empty(home)
        with open_store(path, index=index) as store:
            assert not store.parts.catalog.detached
            assert refs(store) == ["m:v1", "m:v2", "m:v3"]


def test_what_has_a_second_name_or_is_no_file_is_not_written_over(tmp_path: Path) -> None:
    temp, folder = tmp_path / "tmp", tmp_path / "spare"
    temp.mkdir()
    folder.mkdir()
    (tmp_path / "precious").write_text("precious")
    os.link(tmp_path / "precious", folder / "linked")
    (folder / "symbolic").symlink_to(tmp_path / "precious")
    os.mkfifo(folder / "pipe")
    (folder / "directory").mkdir()
    with durable.Directory.hold(temp) as held:
        assert spares.take(temp, held, "mine") is None
        assert not spares.give_up(temp)
        (folder / "good").write_bytes(b"x" * 4096)
        descriptor = spares.take(temp, held, "mine")
        assert descriptor is not None
        os.close(descriptor)
    assert (tmp_path / "precious").read_text() == "precious"
    assert {p.name for p in folder.iterdir()} == {"linked", "symbolic", "pipe", "directory"}


def test_a_spare_file_holds_just_what_was_written_and_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temp = tmp_path / "tmp"
    temp.mkdir()
    spares.fill(temp)

    def create(self: object, name: str, **_: object) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(durable.Directory, "create", create)
    with pytest.raises(OSError, match="quota"):
        durable.write_temp(temp, [b"large"])
    with durable.write_temp(temp, [b"short"], leaving=0) as made:
        assert made.path.read_bytes() == b"short"
        assert len(list((tmp_path / "spare").iterdir())) == spares.COUNT
    assert list(temp.iterdir()) == []
    assert len(list((tmp_path / "spare").iterdir())) == spares.COUNT + 1
    with pytest.raises(OSError, match="quota"):
        durable.write_temp(temp, [b"short"], leaving=spares.COUNT + 1)


def test_space_is_asked_for_what_is_not_there_yet(
    template: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda _: 0)
    base, post = template.base, template.directory / "one"
    with deltastore.open(tmp_path / "empty") as store:
        with pytest.raises(NoSpaceError, match="will take about") as caught:
            store.extract(base, post, name="x")
        assert caught.value.facts["path"] == str(tmp_path / "empty")
        assert "`deltastore gc --grace 0`" in caught.value.hint
    shutil.copytree(template.store, tmp_path / "store")
    with deltastore.open(tmp_path / "store") as store:
        assert store.extract(base, post, name="x", rehash=True).version == 1
        assert store.extract(base, post, name="z", rehash=True).resumed_bytes >= 0
        for ref in ("x:v1", "z:v1"):
            store.rm(ref)
        assert store.extract(base, post, name="x", rehash=True).version == 3
