"""Blob stores that each break one promise; ``test_suites.py`` runs the suite on them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltastore.blobs import LocalBlobs, LocalReader, StoredBlob
from deltastore.digest import sha256_digest
from deltastore.testing.blobs import BlobStoreContract
from deltastore.testing.faults import FaultMap, full_after, nth_fails


class Suite(BlobStoreContract):
    __test__ = False
    kind: type[LocalBlobs] = LocalBlobs

    @pytest.fixture
    def blobs(self, tmp_path: Path) -> LocalBlobs:
        (tmp_path / "blobs").mkdir()
        (tmp_path / "tmp").mkdir()
        return self.kind(tmp_path / "blobs", tmp_path / "tmp")

    def overwrite(self, blobs: LocalBlobs, digest: str, data: bytes) -> None:
        blobs.path(digest).chmod(0o644)
        blobs.path(digest).write_bytes(data)

    def failures(self, blobs: LocalBlobs) -> Iterator[FaultMap]:
        top = blobs.path("sha256:" + "0" * 64).parent.parent
        return iter([FaultMap(top, nth_fails(5, 5)), FaultMap(top, full_after(2))])

    def leftovers(self, blobs: LocalBlobs) -> list[object]:
        top = blobs.path("sha256:" + "0" * 64).parent.parent
        return [*blobs.strangers(), *(top / "tmp").iterdir()]


class LosesTheLastByte(LocalBlobs):
    def put(self, pieces: Any, *, digest: str | None = None) -> StoredBlob:
        stored = super().put(pieces, digest=digest)
        if stored.size:
            self.path(stored.digest).chmod(0o644)
            os.truncate(self.path(stored.digest), stored.size - 1)
        return stored


class TakesTheFirstPieceOnly(LocalBlobs):
    def put(self, pieces: Any, *, digest: str | None = None) -> StoredBlob:
        return super().put(pieces[:1], digest=None)


class NeverReuses(LocalBlobs):
    def put(self, pieces: Any, *, digest: str | None = None) -> StoredBlob:
        stored = super().put(pieces, digest=digest)
        return StoredBlob(stored.digest, stored.size, reused=False)


class TrustsTheSize(LocalBlobs):
    def _holds(self, digest: str, pieces: Any, size: int) -> bool:
        return self.size(digest) == size


class TrustsTheName(LocalBlobs):
    def _holds(self, digest: str, pieces: Any, size: int) -> bool:
        return self.path(digest).exists()


class BelievesTheCaller(LocalBlobs):
    def put(self, pieces: Any, *, digest: str | None = None) -> StoredBlob:
        return super().put(pieces)


class DoesNotHash(LocalBlobs):
    def check(self, digest: str, size: int, *, advance: Any = None) -> None:
        with self.open(digest, size) as reader:
            data = reader.read(0, size)
        for start in range(0, size, 1 << 20):
            if advance:
                advance(len(data[start : start + (1 << 20)]))


class IgnoresTheStatedSize(LocalBlobs):
    def open(self, digest: str, size: int) -> LocalReader:
        return self._open(digest)


class IgnoresTheLimit(LocalBlobs):
    def read(self, digest: str, *, limit: int, what: str, size: int | None = None) -> bytes:
        return super().read(digest, limit=1 << 40, what=what, size=size)


class RaisesWhatTheSystemRaises(LocalBlobs):
    def put(self, pieces: Any, *, digest: str | None = None) -> StoredBlob:
        try:
            return super().put(pieces, digest=digest)
        except Exception as error:
            raise error.__cause__ or error  # noqa: B904


class LeavesItsTemporaryFiles(LocalBlobs):
    def put(self, pieces: Any, *, digest: str | None = None) -> StoredBlob:
        try:
            return super().put(pieces, digest=digest)
        except BaseException:
            (self._temp / "left").touch()
            raise


class WritesInPlace(LocalBlobs):
    """Under its name from the first byte on."""

    def put(self, pieces: Any, *, digest: str | None = None) -> StoredBlob:
        found = sha256_digest(*pieces)
        if digest not in (None, found) or self.size(found) is not None:
            return super().put(pieces, digest=digest)
        with open(self.path(found), "wb") as file:
            for piece in pieces:
                file.write(piece)
        return super().put(pieces, digest=digest)


class DeletesEverything(LocalBlobs):
    def delete(self, digest: str) -> bool:
        there = self.size(digest) is not None
        for other in list(self.digests()):
            super().delete(other)
        return there


class DeletesNothing(LocalBlobs):
    def delete(self, digest: str) -> bool:
        return self.size(digest) is not None


class ListsNothing(LocalBlobs):
    def digests(self) -> Iterator[str]:
        return iter(())


class SaysEverythingIsThere(LocalBlobs):
    def size(self, digest: str) -> int | None:
        return super().size(digest) or 0


class MovesOutWithoutABin(LocalBlobs):
    def move_out(self, digest: str, into: Any) -> bool:
        return self.delete(digest)


class MovesOutTwice(LocalBlobs):
    def move_out(self, digest: str, into: Any) -> bool:
        super().move_out(digest, into)
        return True


class DoesNotTouch(LocalBlobs):
    def put(self, pieces: Any, *, digest: str | None = None) -> StoredBlob:
        found = self.entry(sha256_digest(*pieces))
        stored = super().put(pieces, digest=digest)
        if found is not None:
            os.utime(self.path(stored.digest), (found.modified, found.modified))
        return stored


class _PositionedReader(LocalReader):
    """Threads that share it read at each other's positions."""

    _turns = itertools.count()

    def read_into(self, offset: int, buffer: Any) -> None:
        self._at = offset
        for _ in range(200):
            os.sched_yield()
        super().read_into(self._at, buffer)


class SharesAPosition(LocalBlobs):
    def open(self, digest: str, size: int) -> LocalReader:
        with contextlib.closing(super().open(digest, size)):
            descriptor = os.open(self.path(digest), os.O_RDONLY)
            return _PositionedReader(descriptor, digest, size)


# Those of this module: the program has others.
BROKEN = {
    kind.__name__: kind for kind in LocalBlobs.__subclasses__() if kind.__module__ == __name__
}
for _name, _kind in {"Sound": LocalBlobs, **BROKEN}.items():
    globals()[f"Test{_name}"] = type(f"Test{_name}", (Suite,), {"__test__": True, "kind": _kind})
