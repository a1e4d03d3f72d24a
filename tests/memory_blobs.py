"""Blobs without a file: in memory, slow and failing on request."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from deltastore.blobs import BlobEntry, BlobStore, FileBlobs, StoredBlob
from deltastore.blobs import checking as said
from deltastore.digest import sha256_digest
from deltastore.system.directory import Directory
from deltastore.testing.artifacts import flip

Before = Callable[[str, str], None]


def _nothing(_call: str, _digest: str) -> None:
    """Neither slow nor failing."""


class MemoryReader:
    """A blob that is open; its bytes stay when the blob goes."""

    def __init__(self, blobs: MemoryBlobs, digest: str, data: bytes) -> None:
        self._blobs = blobs
        self._digest = digest
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.read(offset, len(view))

    def read(self, offset: int, count: int) -> bytes:
        self._blobs.before("read", self._digest)
        found = self._data[offset : offset + count]
        self._blobs.bytes_read += len(found)
        if len(found) < count:
            raise said.ends_early(self._digest, count - len(found), offset + len(found))
        return found

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class MemoryBlobs:
    """Blobs in a dict: ``CollectableBlobs``, and no ``FileBlobs``.

    Attributes:
        data: The bytes of each blob by its digest.
        before: Called with what is about to be done and with which blob; it may wait, or raise.
        opened: How often a blob was opened.
        bytes_read: By readers.
    """

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.before: Before = _nothing
        self.opened = 0
        self.bytes_read = 0
        self._times: dict[str, float] = {}
        self._lock = threading.Lock()

    def put(
        self, pieces: Sequence[bytes | bytearray | memoryview], *, digest: str | None = None
    ) -> StoredBlob:
        data = b"".join(memoryview(piece).cast("B") for piece in pieces)
        found = sha256_digest(data)
        said.require_digest(found, digest)
        self.before("put", found)
        with self._lock:
            reused = self.data.get(found) == data
            self.data[found] = data
            self._times[found] = time.time()
        return StoredBlob(found, len(data), reused)

    def open(self, digest: str, size: int | None) -> MemoryReader:
        self.before("open", digest)
        data = self.data.get(digest)
        if data is None:
            raise said.missing(digest)
        said.require_size(digest, len(data), size)
        self.opened += 1
        return MemoryReader(self, digest, data)

    def read(self, digest: str, *, limit: int, what: str, size: int | None = None) -> bytes:
        return said.read_checked(self.open(digest, size), digest, limit=limit, what=what)

    def check(
        self, digest: str, size: int, *, advance: Callable[[int], None] | None = None
    ) -> None:
        said.check_bytes(self.open(digest, size), digest, advance=advance)

    def size(self, digest: str) -> int | None:
        self.before("size", digest)
        data = self.data.get(digest)
        return None if data is None else len(data)

    def digests(self) -> Iterator[str]:
        yield from list(self.data)

    def delete(self, digest: str) -> bool:
        self.before("delete", digest)
        with self._lock:
            return self.data.pop(digest, None) is not None

    # --- collecting -------------------------------------------------------------------------

    def entries(self) -> Iterator[BlobEntry]:
        found = (self.entry(digest) for digest in self.digests())
        return (entry for entry in found if entry is not None)

    def entry(self, digest: str) -> BlobEntry | None:
        with self._lock:
            data = self.data.get(digest)
            return None if data is None else BlobEntry(digest, len(data), self._times[digest])

    def strangers(self) -> list[Path]:
        return []

    def move_out(self, digest: str, into: Directory) -> bool:
        """A file in the bin shows that it is there; nobody sees a blob until that is known."""
        self.before("move_out", digest)
        with self._lock:
            if digest not in self.data:
                return False
            try:
                os.close(into.create(digest.removeprefix("sha256:")))
            except FileNotFoundError:
                return False
            del self.data[digest]
        return True

    def sync(self) -> None:
        pass


class UncollectableBlobs:
    """Only what ``BlobStore`` promises, of another place."""

    def __init__(self, blobs: MemoryBlobs) -> None:
        for name in ("put", "open", "read", "check", "size", "digests", "delete"):
            setattr(self, name, getattr(blobs, name))


def damage(blobs: BlobStore, digest: str, position: int = 0) -> None:
    """Change one bit of a blob, wherever it is; it keeps its size."""
    if isinstance(blobs, FileBlobs):
        flip(blobs.path(digest), position)
        return
    assert isinstance(blobs, MemoryBlobs)
    data = bytearray(blobs.data[digest])
    data[position] ^= 1
    blobs.data[digest] = bytes(data)
