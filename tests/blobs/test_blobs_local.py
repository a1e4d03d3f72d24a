from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltastore.blobs import LocalBlobs
from deltastore.errors import BlobCorruptError, NoSpaceError, StoreError, StoreReadOnlyError
from deltastore.testing.blobs import BlobStoreContract, digest_of
from deltastore.testing.faults import (
    FaultMap,
    Rule,
    always_short,
    counting,
    full_after,
    nth_fails,
    nth_is_short,
)


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "tmp").mkdir()
    return LocalBlobs(tmp_path / "blobs", tmp_path / "tmp")


def disorders() -> list[Rule]:
    """Every call that a put makes fails once, the disk fills up, a write is cut short."""
    return [
        *(nth_fails(n, number) for n in range(1, 11) for number in (errno.EIO, errno.EDQUOT)),
        *(full_after(room) for room in range(6)),
        nth_is_short(1),
    ]


class TestLocalBlobs(BlobStoreContract):
    def overwrite(self, blobs: LocalBlobs, digest: str, data: bytes) -> None:
        blobs.path(digest).chmod(0o644)
        blobs.path(digest).write_bytes(data)

    def make_unreadable(self, blobs: LocalBlobs, digest: str) -> None:
        """As root may read everything: a link to itself, and elsewhere also no permission."""
        blobs.path(digest).unlink()
        blobs.path(digest).symlink_to(blobs.path(digest).name)

    def failures(self, blobs: LocalBlobs) -> Iterator[FaultMap]:
        directory = blobs.path("sha256:" + "0" * 64).parent.parent
        with FaultMap(directory, counting) as calls:
            blobs.delete(blobs.put([b"abc", b"def"]).digest)
        assert [call.kind for call in calls.calls] == [
            *("open", "open", "open", "write", "write", "fsync"),
            *("open", "open", "rename", "fsync"),
            *("open", "open", "unlink"),
        ]
        return (FaultMap(directory, rule) for rule in disorders())

    def leftovers(self, blobs: LocalBlobs) -> list[object]:
        top = blobs.path("sha256:" + "0" * 64).parent.parent
        return [*blobs.strangers(), *(top / "tmp").iterdir()]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o444), (0o027, 0o440), (0o077, 0o400)])
def test_the_umask_says_who_may_read_and_nobody_may_write(
    blobs: LocalBlobs, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        stored = blobs.put([b"abc"])
    finally:
        os.umask(before)
    assert stat.S_IMODE(blobs.path(stored.digest).stat().st_mode) == mode


def test_directories_that_a_copy_left_out_are_made(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs" / "sha256", tmp_path / "tmp")
    assert blobs.read(blobs.put([b"abc"]).digest, limit=3, what="Blob") == b"abc"
    assert list(LocalBlobs(tmp_path / "nothing", tmp_path / "tmp").digests()) == []


def test_a_blob_cut_short_while_it_is_open_is_found(blobs: LocalBlobs) -> None:
    stored = blobs.put([b"abcdef"])
    with blobs.open(stored.digest, 6) as reader:
        blobs.path(stored.digest).chmod(0o644)
        os.truncate(blobs.path(stored.digest), 4)
        assert reader.read(0, 4) == b"abcd"
        with pytest.raises(BlobCorruptError, match="ends 2 bytes early, at byte 4"):
            reader.read(0, 6)


def test_links_and_pipes_are_not_followed(blobs: LocalBlobs, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"abc")
    path = blobs.path(digest_of(b"abc"))
    path.symlink_to(outside)
    with pytest.raises(BlobCorruptError, match="symbolic link"):
        blobs.open(digest_of(b"abc"), 3)
    assert blobs.size(digest_of(b"abc")) is None
    assert list(blobs.digests()) == []
    assert not blobs.put([b"abc"]).reused
    assert not path.is_symlink()
    assert outside.read_bytes() == b"abc"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BlobCorruptError, match="no ordinary file"):
        blobs.open(digest_of(b"abc"), 3)
    path.unlink()
    path.mkdir()
    with pytest.raises(BlobCorruptError):
        blobs.open(digest_of(b"abc"), 3)


def test_a_digest_cannot_lead_out_of_the_directory(blobs: LocalBlobs) -> None:
    for text in ("sha256:../../etc/passwd", "passwd", "sha256:" + "A" * 64, ""):
        with pytest.raises(ValueError, match="no digest"):
            blobs.path(text)


def test_other_files_are_no_blobs(blobs: LocalBlobs, tmp_path: Path) -> None:
    (tmp_path / "blobs" / "README").touch()
    (tmp_path / "blobs" / ("0" * 63 + "g")).touch()
    assert list(blobs.digests()) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EROFS, StoreReadOnlyError),
        (errno.EIO, StoreError),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_what_the_system_refuses_leaves_nothing(
    blobs: LocalBlobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    expected: type[StoreError],
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(expected) as caught:
        blobs.put([b"abc"])
    assert type(caught.value) is expected
    assert caught.value.hint
    assert list(blobs.digests()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_write_that_is_cut_short_goes_on(blobs: LocalBlobs, tmp_path: Path) -> None:
    with FaultMap(tmp_path, always_short(7)) as faults:
        stored = blobs.put([b"0123456789" * 3, b"abc"])
    assert faults.struck == 4
    blobs.check(stored.digest, 33)


def test_bytes_are_on_the_disk_before_the_blob_has_its_name(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary file, sync, rename, sync of the directory: in this order and no other."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().parts[-1][:5])
        fsync(descriptor)

    def renamed(source: str, target: str, **places: int) -> None:
        calls.append("rename")
        rename(source, target, **places)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    blobs.put([b"abc"])
    token = calls[0].removeprefix("sync ")
    assert calls == [f"sync {token}", "rename", "sync blobs"]
