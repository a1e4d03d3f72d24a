"""Files that are whole or absent after a crash, and what the system says when they cannot be.

A file is written under a temporary name on the same file system, synced, and only then given its
name, by a rename (which replaces) or a link (which does not); the directory is synced last, as
until then the name itself may be lost.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from deltastore.blobs.owner import owner_token
from deltastore.errors import NoSpaceError, StoreError, StoreReadOnlyError

Piece = bytes | bytearray | memoryview

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_counter = itertools.count()


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` from writing at ``path`` into the error a caller can act on.

    Raises:
        NoSpaceError: The file system or the user's quota is full.
        StoreReadOnlyError: The user may not write there.
        StoreError: Anything else that the system reports.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpaceError(
                f"No space is left for {path}.",
                hint="Free some space; `deltastore du` shows what the store holds.",
                path=str(path),
            ) from error
        if error.errno in _NO_PERMISSION:
            raise StoreReadOnlyError(
                f"{path} cannot be written: {error.strerror}.",
                hint="Ask its owner for write permission, or use `--store` with another directory.",
                path=str(path),
            ) from error
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}.",
            hint="Run `deltastore doctor` for the state of the store.",
            path=str(path),
        ) from error


def temp_path(directory: Path) -> Path:
    """A path in ``directory`` that nobody else uses, named after this process."""
    return directory / f"{owner_token()}-{next(_counter)}-{secrets.token_hex(4)}"


def write_temp(directory: Path, pieces: Sequence[Piece], *, mode: int = 0o666) -> Path:
    """Write ``pieces`` to a new file in ``directory`` and sync it; return its path.

    The umask decides on the permissions, as it does for files that other programs make: a
    temporary file that only its owner can read would stay so under its final name.

    Raises:
        OSError: From the system; nothing is left behind.
    """
    path = temp_path(directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except FileNotFoundError:
        # Tools that copy trees leave empty directories out.
        directory.mkdir(exist_ok=True)
        descriptor = os.open(path, flags, mode)
    try:
        try:
            for piece in pieces:
                _write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def replace(temp: Path, target: Path) -> None:
    """Give ``temp`` the name ``target``, in place of what has it, and make that last."""
    try:
        temp.replace(target)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def create(temp: Path, target: Path) -> None:
    """Give ``temp`` the name ``target`` unless something has it, and make that last.

    Of any number of processes that try at once exactly one succeeds, on network file systems
    too.

    Raises:
        FileExistsError: Something has the name.
    """
    try:
        os.link(temp, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # File systems without hard links: still exclusive, but a crash can leave it cut short.
        data = temp.read_bytes()
        with open(target, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    finally:
        temp.unlink(missing_ok=True)
    sync_directory(target.parent)


def make_directory(path: Path) -> None:
    """Make one directory, unless it is there, and make that last."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, piece: Piece) -> None:
    view = memoryview(piece).cast("B")
    while view:
        # The system writes at most 2 GiB at a time.
        view = view[os.write(descriptor, view[: 1 << 30]) :]
