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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from deltastore.blobs import spares
from deltastore.blobs.owner import owner_token
from deltastore.errors import (
    MAKE_ROOM,
    NoSpaceError,
    StoreError,
    StoreReadOnlyError,
    UsageError,
    shown,
)
from deltastore.system import limits
from deltastore.system.directory import NO_LINKS, Directory, Place
from deltastore.system.permission import closed
from deltastore.text import typed

Piece = bytes | bytearray | memoryview

_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_counter = itertools.count()


@contextlib.contextmanager
def translated(path: Path, doing: str = "written") -> Iterator[None]:
    """Turn an ``OSError`` from writing at ``path`` into the error a caller can act on.

    Args:
        path: The file or directory.
        doing: ``read`` where it was only looked at.

    Raises:
        NoSpaceError: The file system or the user's quota is full.
        StoreReadOnlyError: The user may not write there, or, as StoreClosedError, not read.
        UsageError: The name is too long, or, as LimitError, too many files are open.
        StoreError: Anything else that the system reports.
    """
    try:
        yield
    except OSError as error:
        if error.errno in limits.NO_SPACE:
            raise NoSpaceError(
                f"No space is left for {path}.",
                hint=MAKE_ROOM,
                path=str(path),
            ) from error
        if error.errno == errno.ELOOP:
            linked = error.filename or path
            raise StoreError(
                f"{linked} is a symbolic link, which a store does not follow.",
                hint="Put the directory that it names in its place, or remove it.",
                path=str(linked),
            ) from error
        if limit := limits.of_call(error, path):
            raise limit from error
        if error.errno in _NO_PERMISSION and doing == "read":
            raise closed(path) from error
        if error.errno in _NO_PERMISSION:
            raise StoreReadOnlyError(
                f"{path} cannot be {doing}: {error.strerror}.",
                hint="Ask its owner for write permission, or use `--store` with another directory.",
                path=str(path),
            ) from error
        if (found := _in_the_way(error, path)) is not None:
            kind = "no directory" if error.errno == errno.ENOTDIR else "a directory"
            raise StoreError(
                f"{path} cannot be {doing}: {'it' if found == path else found} is {kind}.",
                hint=way_of_removal(found),
                path=str(found),
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(
                f"{shown(str(path))} cannot be {doing}: the name is too long; most file systems "
                "allow 255 bytes, and 4095 for a path.",
                hint="Give a shorter one.",
                path=str(path),
            ) from error
        if error.errno == errno.EXDEV:
            raise StoreError(
                f"{path} cannot be {doing}: it is on another file system or mount than the store's "
                "temporary files; expected all of a store on one.",
                hint="`deltastore doctor` says what is apart, and how it gets together.",
                path=str(path),
            ) from error
        raise StoreError(
            f"{path} cannot be {doing}: {error.strerror or error}.",
            hint="Run `deltastore doctor` for the state of the store.",
            path=str(path),
        ) from error


def way_of_removal(path: Path) -> str:
    """What to do about a thing that no deltastore made, as a hint."""
    return f"Look what it is, then move it away, or remove it: `rm -r {typed(path)}`."


def _in_the_way(error: OSError, path: Path) -> Path | None:
    """What is no directory and has to be one for ``path``, or is one in the place of a file."""
    # os.path, as Path's raises an error of what may not be looked at.
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY):
        return path if os.path.isdir(path) else None  # noqa: PTH112
    if error.errno == errno.ENOTDIR:
        for above in (*reversed(path.parents), path):
            if os.path.lexists(above) and not os.path.isdir(above):  # noqa: PTH112
                return above
    return None


def set_aside(held: Directory, name: str, temps: Directory) -> None:
    """Move a directory that stands in a file's place to the temporary files; it is not emptied.

    No deltastore made it, so that it stays there, under a name that says so; an empty one goes.
    """
    aside = f"foreign-{temp_name()}"
    held.rename(name, temps, aside)
    with contextlib.suppress(OSError):
        os.rmdir(aside, dir_fd=temps.descriptor)


def temp_name() -> str:
    """A name that nobody else uses, which begins with the token of this process."""
    return f"{owner_token()}-{next(_counter)}-{secrets.token_hex(4)}"


class Temp:
    """A new file that has no name of its own yet; a context manager that removes it at the end.

    It and its directory are held open, so that it is found and removed wherever their names lead.

    Attributes:
        path: Where it is.
        descriptor: The file, for writing.
        spare: It was a spare file of the store, and goes back there if it keeps no other name.
    """

    def __init__(
        self, directory: Directory, name: str, descriptor: int, *, spare: bool = False
    ) -> None:
        self.path = directory.path / name
        self.descriptor = descriptor
        self.spare = spare
        self._directory = directory
        self._renamed = False

    def replace(self, place: Place, name: str) -> None:
        """Give it a name in a directory, in place of what has it, and make that last.

        A directory that has the name is set aside: see ``set_aside``.
        """
        with place.hold() as target:
            try:
                self._rename(target, name)
            except IsADirectoryError:
                set_aside(target, name, self._directory)
                self._rename(target, name)
            target.sync()

    def create(self, place: Place, name: str, *, frees: bool = False) -> None:
        """Give it a name in a directory unless something has it, and make that last.

        Of any number of processes that try at once exactly one succeeds, on network file systems
        too.

        Args:
            place: The directory.
            name: The name.
            frees: Whether this is done to free space, so that a spare file may be given up for it.

        Raises:
            FileExistsError: Something has the name.
        """
        with place.hold() as target:
            try:
                self._link(target, name)
            except OSError as error:
                # A file system in memory counts a second name as a file.
                full = frees and error.errno in limits.NO_SPACE
                if full and spares.give_up(self._directory.path):
                    self._link(target, name)
                elif error.errno in NO_LINKS:
                    # Still exclusive, but a crash can leave it cut short.
                    _copy(self._directory, self.path.name, target, name)
                else:
                    raise
            target.sync()

    def _rename(self, target: Directory, name: str) -> None:
        os.replace(
            self.path.name,
            name,
            src_dir_fd=self._directory.descriptor,
            dst_dir_fd=target.descriptor,
        )
        self._renamed = True

    def _link(self, target: Directory, name: str) -> None:
        os.link(
            self.path.name,
            name,
            src_dir_fd=self._directory.descriptor,
            dst_dir_fd=target.descriptor,
            follow_symlinks=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.descriptor)
        try:
            with self._directory as directory:
                if not self._renamed and not (
                    self.spare and spares.give_back(directory.path, directory, self.path.name)
                ):
                    directory.unlink(self.path.name, missing_ok=True)
        except OSError:
            if error is None:
                raise


def write_temp(
    directory: Path, pieces: Sequence[Piece], *, mode: int = 0o666, leaving: int | None = None
) -> Temp:
    """Write ``pieces`` to a new file in ``directory`` and sync it.

    The umask decides on the permissions, as it does for files that other programs make: a
    temporary file that only its owner can read would stay so under its final name.

    Args:
        directory: Where to; a store's directory of temporary files.
        pieces: The bytes.
        mode: The permissions, less the umask.
        leaving: For what is small: how many of the store's spare files have to be left, where
            there is no space and one of them is taken instead; None to take none.

    Raises:
        OSError: From the system; nothing is left behind.
    """
    try:
        return _written(directory, pieces, lambda held, name: held.create(name, mode=mode))
    except OSError as error:
        if leaving is None or error.errno not in limits.NO_SPACE:
            raise
        full = error

    keep = leaving

    def take(held: Directory, name: str) -> int:
        descriptor = spares.take(directory, held, name, leaving=keep)
        if descriptor is None:
            raise full
        return descriptor

    return _written(directory, pieces, take, spare=True)


def _written(
    directory: Path,
    pieces: Sequence[Piece],
    create: Callable[[Directory, str], int],
    *,
    spare: bool = False,
) -> Temp:
    name = temp_name()
    # Tools that copy trees leave empty directories out.
    held = Place(directory).make()
    try:
        temp = Temp(held, name, create(held, name), spare=spare)
    except BaseException:
        held.close()
        raise
    try:
        for piece in pieces:
            _write_all(temp.descriptor, piece)
        if spare:
            # What was in it before was longer. Its block stays.
            os.ftruncate(temp.descriptor, os.lseek(temp.descriptor, 0, os.SEEK_CUR))
        os.fsync(temp.descriptor)
    except BaseException as error:
        temp.__exit__(type(error), error, None)
        raise
    return temp


def _copy(source: Directory, temp: str, target: Directory, name: str) -> None:
    with open(source.read(temp), "rb") as file:
        data = file.read()
    descriptor = target.create(name)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, piece: Piece) -> None:
    view = memoryview(piece).cast("B")
    while view:
        # The system writes at most 2 GiB at a time.
        view = view[os.write(descriptor, view[: 1 << 30]) :]
