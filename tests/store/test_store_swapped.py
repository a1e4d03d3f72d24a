"""Somebody who may write to a store puts something else in the place of a directory of it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deltastore.blobs import LocalBlobs, durable
from deltastore.blobs.owner import owner_token
from deltastore.errors import StoreError
from deltastore.operations.doctor import doctor
from deltastore.operations.gc import gc
from deltastore.store import Store, leases, open_store
from deltastore.store.leases import Leases
from deltastore.system import steps
from deltastore.system.directory import Directory, Place
from deltastore.system.steps import Step
from deltastore.testing.artifacts import publish, put_artifact
from deltastore.testing.killing import start, succeeds

pytestmark = pytest.mark.blob_files

STRANGER = 4001
TOPS = ("blobs", "blobs/sha256", "names", "tmp", "leases")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a link away")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(tmp_path / "store")
    publish(opened, "m", 1)
    return opened


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim" / "sha256").mkdir(parents=True)
    for name in ("v1.json", "prod.json", "x"):
        (tmp_path / "victim" / name).write_text("mine")
    return tmp_path / "victim"


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text() if path.is_file() else ""
        for path in directory.rglob("*")
    }


def swap(path: Path, target: Path, owner: int = 0) -> None:
    path.rename(path.with_name(f"{path.name}.old"))
    path.symlink_to(target)
    os.chown(path, owner, owner, follow_symlinks=False)


@as_root
@pytest.mark.parametrize("top", TOPS)
def test_a_directory_of_the_store_that_is_a_strangers_link_is_refused(
    store: Store, victim: Path, top: str
) -> None:
    swap(store.path / top, victim, STRANGER)
    before = contents(victim)
    for create in (False, True):
        with pytest.raises(StoreError, match="symbolic link of another user") as caught:
            open_store(store.path, create=create)
        assert "ls -l" in caught.value.hint
    assert contents(victim) == before


@as_root
@pytest.mark.parametrize("top", TOPS)
def test_no_store_is_made_by_way_of_a_strangers_link(
    tmp_path: Path, victim: Path, top: str
) -> None:
    place = tmp_path / "new" / top
    place.parent.mkdir(parents=True)
    place.symlink_to(victim)
    os.chown(place, STRANGER, STRANGER, follow_symlinks=False)
    before = contents(victim)
    with pytest.raises(StoreError, match="symbolic link of another user"):
        open_store(tmp_path / "new")
    assert contents(victim) == before


@as_root
def test_a_link_of_the_users_own_to_a_strangers_link_is_refused(
    store: Store, tmp_path: Path, victim: Path
) -> None:
    between = tmp_path / "between"
    between.symlink_to(victim)
    os.chown(between, STRANGER, STRANGER, follow_symlinks=False)
    swap(store.path / "tmp", between)
    with pytest.raises(StoreError, match="symbolic link of another user"):
        open_store(store.path)


@pytest.mark.parametrize("top", TOPS)
def test_links_of_the_users_own_are_followed(store: Store, tmp_path: Path, top: str) -> None:
    path = store.path / top
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("../elsewhere" if path.parent == store.path else "../../elsewhere")
    os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
    with open_store(store.path) as opened:
        publish(opened, "other", 2)
        opened.tag("m", "prod")
        opened.rm("m:v1")
        assert gc(opened, grace_s=0).removed


CHANGES: dict[str, tuple[Callable[[Store], object], Step, str]] = {
    "set a tag": (lambda store: store.tag("m", "prod"), Step.LEASE, "names/m/tags"),
    "remove a tag": (lambda store: store.untag("m", "prod"), Step.LEASE, "names/m/tags"),
    "remove": (lambda store: store.rm("m:v1"), Step.CLAIMED, "names/m"),
    "publish": (lambda store: publish(store, "m", 2), Step.CLAIM, "names/m"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_directory_that_is_swapped_while_a_command_runs_leads_nowhere(
    store: Store, victim: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    action, step, path = CHANGES[what]
    store.tag("m", "prod")
    before = contents(victim)

    def reached(at: Step) -> None:
        if at is step and not (store.path / path).is_symlink():
            swap(store.path / path, victim)

    monkeypatch.setattr(steps, "reached", reached)
    with pytest.raises(StoreError, match="symbolic link"):
        action(store)
    assert contents(victim) == before


def test_a_bin_that_is_swapped_takes_no_blob_elsewhere(
    store: Store, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_artifact(store, 5)
    before = contents(victim)

    def reached(at: Step) -> None:
        if at is Step.STALE:
            (bin_,) = (path for path in (store.path / "tmp").iterdir() if path.is_dir())
            swap(bin_, victim)

    monkeypatch.setattr(steps, "reached", reached)
    assert gc(store, grace_s=0).removed
    assert contents(victim) == before


def test_the_heart_beats_for_the_lease_that_was_made(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a link, or another name of a file, in its place."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.01)
    victim = tmp_path / "file"
    victim.touch()
    os.utime(victim, (1, 1))
    with store.lease("extract") as path:
        path.rename(tmp_path / "old")
        path.symlink_to(victim)
        time.sleep(0.1)
        path.unlink()
        path.hardlink_to(victim)
        time.sleep(0.1)
    assert victim.stat().st_mtime == 1
    assert not path.exists()


def test_a_blob_that_is_used_again_is_touched_by_what_was_compared(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs" / "sha256", tmp_path / "tmp")
    path = blobs.path(blobs.put([b"abc"]).digest)
    os.utime(path, (1, 1))
    assert blobs.put([b"abc"]).reused
    assert path.stat().st_mtime > 1


def test_names_without_a_token_are_nobodys(store: Store) -> None:
    """They stay, are named, and harm no command."""
    for name in ("leases/a.json", "leases/notes.txt", "leases/x.rm", "leases/m.v01.rm", "tmp/x"):
        (store.path / name).write_text("mine")
        os.utime(store.path / name, (1, 1))
    report = gc(store, grace_s=0)
    assert len(report.foreign) == 5
    assert (report.leases, report.temp_files) == (0, 0)
    assert store.parts.leases.all() == []
    assert all((store.path / name).read_text() == "mine" for name in report.foreign)


def test_a_bin_with_a_directory_in_it_stays_where_it_is(store: Store) -> None:
    def leave() -> None:
        (store.path / "tmp" / f"{owner_token()}-0-x" / "a" / "b").mkdir(parents=True)
        (store.path / "tmp" / f"{owner_token()}-0-x" / "file").touch()

    succeeds(start(leave))
    (left,) = (store.path / "tmp").iterdir()
    for _ in range(2):
        with open_store(store.path) as opened:
            assert opened.parts.recovered.temp_files == 0
            assert gc(opened, grace_s=0).foreign == (f"tmp/{left.name}",)
    (check,) = (c for c in doctor(store.path).checks if c.what == "temporary files")
    assert check.status == "warn"
    assert str(left) in check.next
    assert (left / "a" / "b").is_dir()


def test_a_collector_is_fenced_off_though_it_goes_on_moving_blobs(store: Store) -> None:
    """Its bin is held open: until it is removed, blobs can be moved into it."""
    own = store.parts.leases
    with own.bin() as bin_, own.hold("gc"):
        (lease,) = own.all()
        (bin_.path / "blob").touch()
        own.fence(lease)
        with pytest.raises(OSError, match="No such file"):
            bin_.write("another", b"")
        assert not own.has_bin(bin_)


def test_what_is_nested_in_a_bin_that_goes_is_put_aside(store: Store) -> None:
    own = store.parts.leases
    with own.bin() as bin_, own.hold("gc"):
        (lease,) = own.all()
        (bin_.path / "a" / "b").mkdir(parents=True)
        own.fence(lease)
        assert not own.has_bin(bin_)
        (left,) = (store.path / "tmp").iterdir()
        assert left.name.startswith("foreign-")
        assert (left / "b").is_dir()
        assert own.strangers() == [left]


def test_a_collector_that_cannot_be_fenced_off_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    own = store.parts.leases
    with own.bin(), own.hold("gc"):
        (lease,) = own.all()
        monkeypatch.setattr(os, "rmdir", refuse)
        with pytest.raises(StoreError):
            own.fence(lease)


def test_a_collector_without_a_bin_is_not_waited_for(store: Store) -> None:
    """It can delete nothing; somebody put it there, or it was fenced off."""
    text = '{"purpose":"gc","name":null,"host":"other","pid":1,"created":"x"}'
    planted = store.path / "leases" / f"{'f' * 24}-4242-99-0-x.json"
    planted.write_text(text)
    began = time.monotonic()
    with store.lease("extract"):
        assert time.monotonic() - began < 1
    assert planted.exists()


def test_what_is_put_in_the_place_of_a_new_directory_is_not_taken_for_it(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir

    def made(name: str, mode: int = 0o777, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        (tmp_path / name).rename(tmp_path / "old")
        victim.rename(tmp_path / name)

    monkeypatch.setattr(os, "mkdir", made)
    with Directory.hold(tmp_path) as parent, pytest.raises(FileExistsError):
        parent.make("new")


def test_a_temporary_file_is_removed_where_it_is(tmp_path: Path, victim: Path) -> None:
    """Its directory is held open, whatever has its name."""
    (tmp_path / "tmp").mkdir()
    before = contents(victim)
    with durable.write_temp(tmp_path / "tmp", [b"x"]) as temp:
        (victim / temp.path.name).write_text("mine")
        swap(tmp_path / "tmp", victim)
        temp.create(Place(tmp_path), "target")
    assert contents(victim) == before | {temp.path.name: "mine"}
    assert (tmp_path / "target").read_bytes() == b"x"
    assert list((tmp_path / "tmp.old").iterdir()) == []


def test_directories_that_may_not_be_listed_may_be_written_in(tmp_path: Path) -> None:
    """As a root user cannot be refused, the first opening is."""
    (tmp_path / "leases").mkdir()
    (tmp_path / "tmp").mkdir()
    open_ = os.open

    def refuse(path: object, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_DIRECTORY and not flags & os.O_PATH:
            raise PermissionError(13, "Permission denied")
        return open_(path, flags, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert Leases(tmp_path / "leases", tmp_path / "tmp").all() == []
        with Directory.hold(tmp_path) as held:
            held.write("x", b"y")
            with pytest.raises(PermissionError):
                held.names()
    assert (tmp_path / "x").read_bytes() == b"y"
