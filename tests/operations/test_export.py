from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deltastore.checkpoint.lease import create_partial
from deltastore.errors import (
    BlobCorruptError,
    BlobMissingError,
    CheckpointError,
    NoSpaceError,
    OutputExistsError,
    UsageError,
)
from deltastore.operations.export import export
from deltastore.store import Store, open_store
from deltastore.system import steps
from deltastore.system.directory import Directory
from deltastore.system.steps import OutputStep
from deltastore.testing.artifacts import flip, publish
from deltastore.testing.killing import start, succeeds


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(tmp_path / "store")
    publish(opened, "m", 1)
    return opened


def assert_is_layout(directory: Path, store: Store) -> None:
    """What the image layout specification asks for, read without the code under test."""
    assert sorted(p.name for p in directory.iterdir()) == ["blobs", "index.json", "oci-layout"]
    assert json.loads((directory / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((directory / "index.json").read_text())
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    (descriptor,) = index["manifests"]
    assert descriptor["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert descriptor["artifactType"] == "application/vnd.deltastore.delta.v1"
    assert descriptor["annotations"]["org.opencontainers.image.ref.name"] == "v1"
    blobs = directory / "blobs" / "sha256"
    manifest = json.loads((blobs / descriptor["digest"].removeprefix("sha256:")).read_bytes())
    named = [descriptor, manifest["config"], *manifest["layers"]]
    for entry in named:
        data = (blobs / entry["digest"].removeprefix("sha256:")).read_bytes()
        assert len(data) == entry["size"]
        assert "sha256:" + hashlib.sha256(data).hexdigest() == entry["digest"]
    assert {p.name for p in blobs.iterdir()} == {e["digest"][7:] for e in named}
    assert descriptor["digest"] == store.resolve("m").digest


def test_the_layout_is_whole_and_a_copy(store: Store, tmp_path: Path) -> None:
    """What is done to it does not reach the store, and the reverse."""
    report = export(store, "m:v1", tmp_path / "deep" / "out")
    assert_is_layout(tmp_path / "deep" / "out", store)
    assert (report.ref, report.blobs, report.linked) == ("m:v1", 6, 0)
    assert report.bytes == store.resolve("m").stored_bytes
    for path in (tmp_path / "deep" / "out" / "blobs" / "sha256").iterdir():
        own = store.path / "blobs" / "sha256" / path.name
        assert not path.samefile(own)
        before, mode, data = own.stat(), stat.S_IMODE(own.stat().st_mode), own.read_bytes()
        path.chmod(0o600)
        path.write_bytes(b"x" * len(data))
        assert (own.read_bytes(), stat.S_IMODE(own.stat().st_mode)) == (data, mode)
        assert own.stat().st_mtime_ns == before.st_mtime_ns
        own.chmod(0o600)
        own.write_bytes(b"y" * len(data))
        assert path.read_bytes() == b"x" * len(data)


def test_links_are_made_where_they_are_asked_for(store: Store, tmp_path: Path) -> None:
    report = export(store, "m:v1", tmp_path / "out", link=True)
    assert_is_layout(tmp_path / "out", store)
    assert (report.linked, report.cloned) == (6, 0)
    for path in (tmp_path / "out" / "blobs" / "sha256").iterdir():
        assert path.samefile(store.path / "blobs" / "sha256" / path.name)


def as_reflink(target: int, request: int, source: int) -> int:
    """What the system does on btrfs or XFS, as far as it is to be seen from outside."""
    assert request == 0x40049409  # FICLONE of linux/fs.h
    os.pwrite(target, os.pread(source, 1 << 30, 0), 0)
    return 0


def test_copies_share_room_where_the_file_system_can(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", as_reflink)
    full = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    report = export(store, "m", tmp_path / "out")
    assert (report.linked, report.cloned) == (0, 6)
    assert_is_layout(tmp_path / "out", store)


def test_a_clone_of_a_damaged_blob_is_not_exported(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", as_reflink)
    manifest, _ = store.load(store.resolve("m").digest)
    flip(store.blobs.path(manifest.layers[1].digest), 5)
    with pytest.raises(BlobCorruptError, match=manifest.layers[1].digest):
        export(store, "m", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_cannot_be_blobs_are_copied(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    assert export(store, "m", tmp_path / "out", link=True).linked == 0
    assert_is_layout(tmp_path / "out", store)


@pytest.mark.parametrize("link", [True, False], ids=["links", "copies"])
def test_a_damaged_blob_is_not_exported(store: Store, tmp_path: Path, link: bool) -> None:
    manifest, _ = store.load(store.resolve("m").digest)
    flip(store.blobs.path(manifest.layers[1].digest), 5)
    with pytest.raises(BlobCorruptError, match=manifest.layers[1].digest):
        export(store, "m", tmp_path / "out", link=link)
    store.blobs.delete(manifest.layers[1].digest)
    with pytest.raises(BlobMissingError, match=manifest.layers[1].digest):
        export(store, "m", tmp_path / "out", link=link)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_what_is_in_the_way_is_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export(store, "m", tmp_path / "empty")
    assert_is_layout(tmp_path / "empty", store)
    (tmp_path / "file").write_text("x")
    for name in ("empty", "file", "file/new"):
        with pytest.raises(OutputExistsError, match=name.split("/")[0]):
            export(store, "m", tmp_path / name)
    for name in ("store", "store/names/out", "store/tmp"):
        with pytest.raises(UsageError, match="is in a store"):
            export(store, "m", tmp_path / name)


def test_a_full_disk_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(NoSpaceError):
            export(store, "m", tmp_path / "out", link=True)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(NoSpaceError, match=r"needs .* KiB at .*, where 100 B are free"):
        export(store, "m", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_what_a_killed_export_left_is_removed(store: Store, tmp_path: Path) -> None:
    def leave() -> None:
        with Directory.hold(tmp_path) as parent:
            left = create_partial(parent, "out").path
        (left / "blobs" / "sha256").mkdir(parents=True)
        (left / "blobs" / "sha256" / "x").touch()

    succeeds(start(leave))
    assert len(list(tmp_path.glob(".out.partial-*"))) == 1
    with Directory.hold(tmp_path) as parent:
        living = create_partial(parent, "out").path
    (tmp_path / ".out.notes").mkdir()
    export(store, "m", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"store", "out", ".out.notes", living.name}


@pytest.mark.parametrize("step", [OutputStep.OWNED, OutputStep.RELEASED])
def test_an_unfinished_export_that_is_swapped_for_a_link_costs_nothing_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: OutputStep
) -> None:
    victim = tmp_path / "victim"
    (victim / "blobs" / "sha256").mkdir(parents=True)
    (victim / "index.json").write_text("mine")

    def reached(at: OutputStep) -> None:
        if at is step:
            (partial,) = tmp_path.glob(".out.partial-????????????")
            partial.rename(tmp_path / "old")
            partial.symlink_to(victim)

    monkeypatch.setattr(steps, "reached", reached)
    with pytest.raises(CheckpointError, match="something else in the place of"):
        export(store, "m", tmp_path / "out")
    assert (victim / "index.json").read_text() == "mine"
    assert list((victim / "blobs" / "sha256").iterdir()) == []
    assert list((tmp_path / "old").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_a_blob_that_is_swapped_while_it_is_linked_is_not_exported(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been linked is looked at, not what the store has a moment later."""
    link = os.link

    def swapped(source: Path, name: str, **more: Any) -> None:
        good = source.with_name("good")
        source.rename(good)
        source.write_bytes(b"something else")
        link(source, name, **more)
        good.rename(source)

    monkeypatch.setattr(os, "link", swapped)
    with pytest.raises(BlobCorruptError):
        export(store, "m", tmp_path / "out", link=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_reads_and_copies_it(store: Store, tmp_path: Path) -> None:
    export(store, "m", tmp_path / "out")

    def skopeo(*arguments: str) -> bytes:
        return subprocess.run(["skopeo", *arguments], check=True, capture_output=True).stdout

    raw = skopeo("inspect", "--raw", f"oci:{tmp_path}/out:v1")
    assert "sha256:" + hashlib.sha256(raw).hexdigest() == store.resolve("m").digest
    skopeo("--insecure-policy", "copy", f"oci:{tmp_path}/out:v1", f"oci:{tmp_path}/copy:v1")
    copied = {p.name for p in (tmp_path / "copy" / "blobs" / "sha256").iterdir()}
    assert copied == {p.name for p in (tmp_path / "out" / "blobs" / "sha256").iterdir()}


def test_a_blob_that_others_may_write_to_is_never_linked(store: Store, tmp_path: Path) -> None:
    """What is done to it later does not reach the export."""
    digest = store.resolve("m").digest
    path = store.blobs.path(digest)
    path.chmod(0o664)
    report = export(store, "m", tmp_path / "out", link=True)
    assert (report.blobs, report.linked) == (6, 5)
    before = path.read_bytes()
    path.write_bytes(b"x" * len(before))
    exported = tmp_path / "out" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    assert exported.read_bytes() == before
