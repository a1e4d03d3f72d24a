"""What a place for blobs promises. Every implementation passes ``deltastore/testing/blobs.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from deltastore.system.directory import Directory


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that is in the store. ``reused``: it was there before, with the same bytes."""

    digest: str
    size: int
    reused: bool


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """A blob as a list has it: its size in bytes, and when it was put or used last, in seconds."""

    digest: str
    size: int
    modified: float


class BlobReader(Protocol):
    """One open blob. All methods may be called from several threads at once.

    Reading does not check the digest; ``BlobStore.check`` does. A blob that is deleted while it
    is open stays readable.
    """

    @property
    def size(self) -> int:
        """Size in bytes."""

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer`` with the blob's bytes from ``offset`` on.

        Raises:
            BlobCorruptError: The blob ends before the buffer is full, or cannot be read.
        """

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset`` on.

        Raises:
            BlobCorruptError: The blob ends before, or cannot be read.
        """

    def close(self) -> None:
        """Release it; idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class BlobSink(Protocol):
    """What takes blobs."""

    def put(
        self, pieces: Sequence[bytes | bytearray | memoryview], *, digest: str | None = None
    ) -> StoredBlob:
        """Store the concatenation of ``pieces``.

        Idempotent: bytes that are there are compared, not written again, and replaced where they
        differ. Atomic: a reader, and whoever comes after a crash, sees the whole blob or none.
        When it returns, the blob survives a power cut.

        Args:
            pieces: Contiguous buffers; they must not change until this returns.
            digest: What the caller takes the digest to be.

        Raises:
            BlobCorruptError: ``pieces`` do not have ``digest``.
            NoSpaceError: It does not fit; nothing is left behind.
            StoreReadOnlyError: The user may not write.
            StoreError: The system refuses for another reason.
        """


class BlobStore(BlobSink, Protocol):
    """Immutable bytes by their sha256. All methods may be called from several threads at once.

    What only some places for blobs can do is asked for: ``CollectableBlobs``, ``FileBlobs``.
    """

    def open(self, digest: str, size: int) -> BlobReader:
        """Open a blob that should have ``size`` bytes.

        Raises:
            BlobMissingError: There is none.
            BlobCorruptError: It has another size, or is no ordinary file.
        """

    def read(self, digest: str, *, limit: int, what: str, size: int | None = None) -> bytes:
        """A small blob's bytes, checked against the digest.

        Args:
            digest: The blob's digest.
            limit: How many bytes it may have at most; it is not read where it has more.
            what: What to call it in an error.
            size: The size it should have, in bytes; any where None.

        Raises:
            BlobMissingError: There is none.
            BlobCorruptError: Its size or digest differs, or it cannot be read.
            ManifestInvalidError: It has more than ``limit`` bytes.
        """

    def check(
        self, digest: str, size: int, *, advance: Callable[[int], None] | None = None
    ) -> None:
        """Read a blob whole and compare its sha256 with its digest.

        Args:
            digest: The blob's digest.
            size: The size it should have, in bytes.
            advance: Told how many bytes more are done.

        Raises:
            BlobMissingError: There is none.
            BlobCorruptError: Its size or its digest differs, or it cannot be read.
        """

    def size(self, digest: str) -> int | None:
        """A blob's size in bytes; None where there is none."""

    def digests(self) -> Iterator[str]:
        """The digests of all blobs, in no order; those that come or go meanwhile may be among."""

    def delete(self, digest: str) -> bool:
        """Remove a blob; whether there was one. Idempotent, atomic.

        Raises:
            StoreReadOnlyError: The user may not write.
            StoreError: The system refuses for another reason.
        """


@runtime_checkable
class CollectableBlobs(BlobStore, Protocol):
    """Blobs of which ``gc`` can delete those that nothing refers to, beside running writers."""

    def entries(self) -> Iterator[BlobEntry]:
        """All blobs with their sizes and times, in no order.

        Raises:
            StoreClosedError: The user may not look.
            StoreError: The system refuses for another reason.
        """

    def entry(self, digest: str) -> BlobEntry | None:
        """A blob's size and time; None where there is none."""

    def strangers(self) -> list[Path]:
        """Files that lie among the blobs and are none; they are left alone."""

    def move_out(self, digest: str, into: Directory) -> bool:
        """Move a blob out of the store; whether that was done, in one step or not at all.

        A writer that waited too long for a collector removes its bin, and relies on the blobs
        that it finds from then on: what is moved out later would be lost.

        Args:
            digest: The blob.
            into: The collector's bin. Once it is removed, nothing can be moved.

        Raises:
            StoreReadOnlyError: The user may not.
            StoreError: The system refuses for another reason.
        """

    def sync(self) -> None:
        """Have what was moved out be gone after a power cut."""


class FileReader(BlobReader, Protocol):
    """An open blob that is a file."""

    def fileno(self) -> int:
        """The file's descriptor."""


@runtime_checkable
class FileBlobs(BlobStore, Protocol):
    """Blobs that are files: ``export`` can link and clone them, and people find them by path."""

    def path(self, digest: str) -> Path:
        """Where the blob lies, or would."""

    def open(self, digest: str, size: int) -> FileReader:
        """See ``BlobStore.open``."""
