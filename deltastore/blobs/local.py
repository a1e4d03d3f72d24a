"""Blobs as files ``blobs/sha256/<hex>`` of a local or mounted directory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from deltastore.blobs import checking
from deltastore.blobs.durable import Piece, translated, write_temp
from deltastore.blobs.protocol import BlobEntry, StoredBlob
from deltastore.digest import HEX64, is_digest, sha256_digest
from deltastore.errors import (
    BlobCorruptError,
    BlobMissingError,
    StoreClosedError,
)
from deltastore.system import steps
from deltastore.system.directory import Directory, Place
from deltastore.system.permission import closed
from deltastore.system.steps import Step

# What is stored never changes: nobody should edit a file by mistake, which may be an export's too.
_MODE = 0o444


class LocalReader:
    """A blob that is open as a file. See ``BlobReader`` for what the methods promise."""

    def __init__(self, descriptor: int, digest: str, size: int) -> None:
        self._descriptor = descriptor
        self._digest = digest
        self._size = size

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._size

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``; see ``BlobReader.read_into``."""
        view = memoryview(buffer).cast("B")
        while view:
            try:
                count = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise _unreadable(self._digest, error) from error
            if count == 0:
                raise checking.ends_early(self._digest, len(view), offset)
            view = view[count:]
            offset += count

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes; see ``BlobReader.read``."""
        buffer = bytearray(count)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._descriptor

    def touch(self) -> None:
        """Have it count as just used, where the user may.

        A cleaner that spares what is young must see that it is wanted again. Only the file's owner
        may, and the cleaner spares what a lease protects in any case.
        """
        with contextlib.suppress(OSError):
            os.utime(self._descriptor)

    def close(self) -> None:
        """Release the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LocalBlobs:
    """Blobs in a directory. See ``CollectableBlobs`` and ``FileBlobs`` for what it promises.

    Args:
        directory: Holds one file per blob, named by the 64 hex digits.
        temp: Where blobs are written before they have their name; on the same file system.
    """

    def __init__(self, directory: Path, temp: Path) -> None:
        self._directory = directory
        self._temp = temp
        # In a store, `blobs` above it is the store's own as well.
        self._place = Place(directory, own=2 if directory.name == "sha256" else 1)

    def path(self, digest: str) -> Path:
        """Where the blob lies, or would."""
        if not is_digest(digest):
            raise ValueError(f"{digest!r} is no digest")
        return self._directory / digest.removeprefix("sha256:")

    def put(self, pieces: Sequence[Piece], *, digest: str | None = None) -> StoredBlob:
        """Store bytes; see ``BlobStore.put``."""
        found = sha256_digest(*pieces)
        checking.require_digest(found, digest)
        size = sum(memoryview(piece).nbytes for piece in pieces)
        path = self.path(found)
        if self._holds(found, pieces, size):
            return StoredBlob(found, size, reused=True)
        with translated(path):
            with write_temp(self._temp, pieces, mode=_MODE) as temp:
                steps.reached(Step.TEMP)
                try:
                    temp.replace(self._place, path.name)
                except FileNotFoundError:
                    self._place.make().close()
                    temp.replace(self._place, path.name)
            steps.reached(Step.BLOB)
        return StoredBlob(found, size, reused=False)

    def open(self, digest: str, size: int) -> LocalReader:
        """Open a blob; see ``BlobStore.open``."""
        reader = self._open(digest)
        try:
            checking.require_size(digest, reader.size, size)
        except BlobCorruptError:
            reader.close()
            raise
        return reader

    def read(self, digest: str, *, limit: int, what: str, size: int | None = None) -> bytes:
        """A small blob's bytes; see ``BlobStore.read``."""
        with self._open(digest) as reader:
            checking.require_size(digest, reader.size, size)
            return checking.read_checked(reader, digest, limit=limit, what=what)

    def check(
        self, digest: str, size: int, *, advance: Callable[[int], None] | None = None
    ) -> None:
        """Compare a blob with its digest; see ``BlobStore.check``."""
        with self.open(digest, size) as reader:
            checking.check_bytes(reader, digest, advance=advance)

    def size(self, digest: str) -> int | None:
        """A blob's size; see ``BlobStore.size``."""
        path = self.path(digest)
        try:
            status = path.lstat()
        except PermissionError as error:
            raise self._closed(path) from error
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def entry(self, digest: str) -> BlobEntry | None:
        """A blob's size and time; see ``CollectableBlobs.entry``."""
        try:
            status = self.path(digest).lstat()
        except OSError:
            return None
        return BlobEntry(digest, status.st_size, status.st_mtime)

    def entries(self) -> Iterator[BlobEntry]:
        """All blobs with their sizes and times; see ``CollectableBlobs.entries``."""
        with translated(self._directory, "read"):
            try:
                names = os.listdir(self._directory)  # noqa: PTH208 - fewer objects
            except FileNotFoundError:
                # Tools that copy trees leave empty directories out.
                return
            except PermissionError as error:
                raise self._closed(self._directory) from error
        for name in names:
            if HEX64.match(name) and (found := self.entry(f"sha256:{name}")) is not None:
                yield found

    def strangers(self) -> list[Path]:
        """What lies among the blobs and has no blob's name."""
        try:
            names = os.listdir(self._directory)  # noqa: PTH208 - fewer objects
        except FileNotFoundError:
            return []
        return [self._directory / name for name in names if not HEX64.match(name)]

    def move_out(self, digest: str, into: Directory) -> bool:
        """Rename a blob into a bin on the same file system; see ``CollectableBlobs.move_out``."""
        path = self.path(digest)
        with translated(path):
            try:
                with self._place.hold() as blobs:
                    blobs.rename(path.name, into, path.name)
            except OSError as error:
                # A network file system says ESTALE of a directory that another machine removed.
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
                return False
        return True

    def sync(self) -> None:
        """Have what was moved out be gone after a power cut."""
        with translated(self._directory), self._place.hold() as blobs:
            blobs.sync()

    def digests(self) -> Iterator[str]:
        """All blobs; see ``BlobStore.digests``."""
        try:
            entries = os.scandir(self._directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError as error:
            raise self._closed(self._directory) from error
        except OSError:
            with translated(self._directory, "read"):
                raise
        with entries:
            for entry in entries:
                if HEX64.match(entry.name) and entry.is_file(follow_symlinks=False):
                    yield f"sha256:{entry.name}"

    def delete(self, digest: str) -> bool:
        """Remove a blob; see ``BlobStore.delete``."""
        path = self.path(digest)
        with translated(path):
            try:
                with self._place.hold() as blobs:
                    blobs.unlink(path.name)
            except FileNotFoundError:
                return False
        return True

    def _open(self, digest: str) -> LocalReader:
        # A symbolic link could lead out of the store, to a file that changes; O_NONBLOCK lets a
        # named pipe be refused rather than waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(self.path(digest), flags)
        except FileNotFoundError as error:
            raise checking.missing(digest) from error
        except PermissionError as error:
            raise self._closed(self.path(digest)) from error
        except OSError as error:
            raise _unreadable(digest, error) from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise BlobCorruptError(
                f"Blob {digest} is no ordinary file.", hint=checking.FETCH_AGAIN, digest=digest
            )
        return LocalReader(descriptor, digest, status.st_size)

    def _closed(self, path: Path) -> StoreClosedError:
        # Who closed one blob by the umask has closed others as well.
        above = self._place.own - 1
        return closed(
            path, (self._directory.parents[above - 1] if above else self._directory, path)
        )

    def _holds(self, digest: str, pieces: Sequence[Piece], size: int) -> bool:
        """Whether the blob is there with just these bytes; then it is touched, as just used.

        They are at hand, so comparing costs one read; to trust the size alone would keep a
        damaged blob for ever, however often its artifact is extracted again.
        """
        if self.size(digest) != size:
            return False
        buffer = bytearray(min(checking.BLOCK_BYTES, max(1, size)))
        offset = 0
        try:
            with self._open(digest) as reader:
                for piece in pieces:
                    view = memoryview(piece).cast("B")
                    for start in range(0, len(view), len(buffer)):
                        wanted = view[start : start + len(buffer)]
                        with memoryview(buffer) as block:
                            reader.read_into(offset, block[: len(wanted)])
                        # A bytearray compares by memcmp, a memoryview item by item.
                        if buffer[: len(wanted)] != wanted:
                            return False
                        offset += len(wanted)
                reader.touch()
        except (BlobCorruptError, BlobMissingError, StoreClosedError):
            return False
        return True


def check_file(descriptor: int, digest: str) -> None:
    """Compare a file that is open, wherever it is, with a blob's digest; it stays open.

    Raises:
        BlobCorruptError: It has another one, or cannot be read.
    """
    reader = LocalReader(descriptor, digest, os.fstat(descriptor).st_size)
    checking.check_bytes(reader, digest)


def _unreadable(digest: str, error: OSError) -> BlobCorruptError:
    why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
    return BlobCorruptError(
        f"Blob {digest} cannot be read: {why}.", hint=checking.FETCH_AGAIN, digest=digest
    )
