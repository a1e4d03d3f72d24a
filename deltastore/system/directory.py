"""Directories that are held open: what is done in one is done in it, whatever its name leads to.

Where other users may write, a path can be made to lead elsewhere between two calls: a directory is
renamed away, and a link has its name. So what is made, renamed or removed goes through the
descriptor of a directory that was opened without following a link, and a directory is removed, or
gets another name, only while its name leads to the very one that is held.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from deltastore.errors import StoreError
from deltastore.text import typed

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""What the system says where a file can get no second name: a file system without hard links."""

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_LINKS = 8
_NO_DIRECTORY = frozenset({errno.ENOTDIR, errno.ELOOP})


class Directory:
    """A directory that is open; a context manager, and to be closed.

    Every method may raise OSError. Names are single names, without a slash.

    Attributes:
        descriptor: For calls that take a ``dir_fd``.
        path: What it was opened as, for messages.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor = descriptor
        self.path = path

    @classmethod
    def hold(cls, path: Path) -> Self:
        """Open a directory that the user has named; links in its path are followed."""
        return cls(_opened(path, 0), path)

    def open(self, name: str) -> Directory:
        """Open a directory in this one.

        Raises:
            OSError: It cannot be opened; ``ELOOP`` for a symbolic link.
        """
        path = self.path / name
        try:
            descriptor = _opened(name, os.O_NOFOLLOW, self.descriptor)
        except OSError as error:
            if error.errno in _NO_DIRECTORY and self._is_link(name):
                raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
            raise
        return Directory(descriptor, path)

    def make(self, name: str) -> Directory:
        """Make a directory in this one, and open it.

        Raises:
            OSError: It cannot be made; ``EEXIST`` where another one took its place at once.
        """
        os.mkdir(name, dir_fd=self.descriptor)
        try:
            made = self.open(name)
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=self.descriptor)
            raise
        if made.names():
            # Between the two calls another one was put there.
            made.close()
            raise FileExistsError(errno.EEXIST, "it is not empty", str(made.path))
        return made

    def create(self, name: str, *, mode: int = 0o666) -> int:
        """Make a new file; its descriptor."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, mode, dir_fd=self.descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Make a new file with these bytes."""
        with open(self.create(name), "wb") as file:
            file.write(data)

    def read(self, name: str) -> int:
        """Open a file for reading; its descriptor. No link is followed, no pipe waited for."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(name, flags, dir_fd=self.descriptor)

    def names(self) -> list[str]:
        """The names in it."""
        with self.scan() as entries:
            return [entry.name for entry in entries]

    @contextlib.contextmanager
    def scan(self) -> Iterator[Iterator[os.DirEntry[str]]]:
        """What is in it, in no order."""
        try:
            with os.scandir(self.descriptor) as entries:
                yield entries
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # It could be opened, to be passed through, though it may not be listed.
            why = os.strerror(errno.EACCES)
            raise PermissionError(errno.EACCES, why, str(self.path)) from error

    def status(self, name: str) -> os.stat_result:
        """What the system says of a name, not of what a link leads to."""
        return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)

    def has(self, name: str) -> bool:
        """Whether there is anything of that name."""
        with contextlib.suppress(FileNotFoundError):
            self.status(name)
            return True
        return False

    def unlink(self, name: str, *, missing_ok: bool = False) -> None:
        """Remove a file, a link, a pipe: anything but a directory."""
        try:
            os.unlink(name, dir_fd=self.descriptor)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, name: str, into: Directory, new: str) -> None:
        """Give what has a name here another one, here or in another directory."""
        os.rename(name, new, src_dir_fd=self.descriptor, dst_dir_fd=into.descriptor)

    def leads_to(self, name: str, other: Directory) -> bool:
        """Whether a name is that of a directory that is held open."""
        with contextlib.suppress(OSError):
            return os.path.samestat(self.status(name), os.fstat(other.descriptor))
        return False

    def remove(self, name: str, empty: Directory) -> bool:
        """Remove an empty directory that is held open; whether its name led to it, and it went."""
        if not self.leads_to(name, empty):
            return False
        try:
            os.rmdir(name, dir_fd=self.descriptor)
        except OSError:
            return False
        return True

    def clear(self, *, folders: int, keep: Collection[str] = ()) -> None:
        """Remove what is in it; what cannot be removed stays.

        Args:
            folders: How many levels of directories are emptied and removed; deeper ones stay, and
                so do those that they are in.
            keep: Names to leave alone.
        """
        for name in self.names():
            if name in keep:
                continue
            with contextlib.suppress(OSError):
                if not stat.S_ISDIR(self.status(name).st_mode):
                    self.unlink(name)
                elif folders:
                    with self.open(name) as folder:
                        folder.clear(folders=folders - 1)
                        self.remove(name, folder)

    def sync(self, *, folders: int = 0, files: bool = False) -> None:
        """Have its names survive a power cut; with ``files``, what is in its files as well."""
        for name in self.names() if files else ():
            mode = self.status(name).st_mode
            if stat.S_ISDIR(mode) and folders:
                with self.open(name) as folder:
                    folder.sync(folders=folders - 1, files=True)
            elif stat.S_ISREG(mode):
                descriptor = self.read(name)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Let go of it; idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_link(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            return stat.S_ISLNK(self.status(name).st_mode)
        return False


def _opened(where: Path | str, flags: int, above: int | None = None) -> int:
    try:
        return os.open(where, _FLAGS | flags, dir_fd=above)
    except PermissionError:
        # What may not be listed may still be passed through, and written in.
        flags |= os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(where, flags, dir_fd=above)


def hold_or_make(path: Path) -> tuple[Directory, list[tuple[Directory, Directory]]]:
    """Hold a directory, making it and what it lies in where that is missing.

    Returns:
        The directory, and every one that was made: the one it was made in, and itself. The caller
        closes them all.

    Raises:
        OSError: One of them cannot be made or opened.
    """
    missing: list[str] = []
    place = path
    while True:
        try:
            held = Directory.hold(place)
            break
        except FileNotFoundError:
            if place.parent == place:
                raise
            missing.append(place.name)
            place = place.parent
    made: list[tuple[Directory, Directory]] = []
    above = [held]
    try:
        for name in reversed(missing):
            try:
                new = above[-1].make(name)
                made.append((above[-1], new))
            except FileExistsError:
                # Another process was first, and it stays.
                new = above[-1].open(name)
            above.append(new)
    except BaseException:
        unmake(made)
        for directory in above:
            directory.close()
        raise
    return above[-1], made


def unmake(made: list[tuple[Directory, Directory]]) -> None:
    """Remove directories that were made, those that are still empty."""
    for above, directory in reversed(made):
        above.remove(directory.path.name, directory)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a directory of a store is. It is opened anew for each use, link by link.

    Attributes:
        path: One of the store's own directories.
        own: How many of the last names of ``path`` are the store's; what is before them the user
            has named.
        below: The names of the directories below that lead to the one that is meant.
    """

    path: Path
    own: int = 1
    below: tuple[str, ...] = ()

    def within(self, *names: str) -> Place:
        """A directory below this one."""
        return replace(self, below=(*self.below, *names))

    def hold(self) -> Directory:
        """Open it.

        The store's own directories may be links, if they are the user's or root's: whoever else
        put one there would have this user write and remove where it leads. Below them no link is
        followed.

        Raises:
            StoreError: A link is somebody else's.
            OSError: It cannot be opened; ``ELOOP`` for a link below the store's own directories.
        """
        return self._walk(make=False)

    def make(self) -> Directory:
        """Make it where it is missing, have that last, and open it; see ``hold``."""
        return self._walk(make=True)

    def check(self) -> None:
        """Refuse links of others, and what is no directory.

        What else is wrong is said by whoever uses the directory.

        Raises:
            StoreError: A link is somebody else's.
            NotADirectoryError: It is no directory, or what it lies in is none.
        """
        try:
            self.hold().close()
        except NotADirectoryError:
            raise
        except OSError:
            return

    def _walk(self, *, make: bool) -> Directory:
        path = self.path.absolute()
        own = path.parts[len(path.parts) - self.own :]
        above = Directory.hold(path.parents[self.own - 1] if self.own else path)
        for number, name in enumerate((*own, *self.below)):
            try:
                below = _enter(above, name, follow=number < self.own, make=make)
            finally:
                above.close()
            above = below
        return above


def _enter(above: Directory, name: str, *, follow: bool, make: bool) -> Directory:
    try:
        return _follow(above, name) if follow else above.open(name)
    except FileNotFoundError:
        if not make:
            raise
    made = False
    # Another process may make it at the same time; in a link's place nothing is made.
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=above.descriptor)
        made = True
        above.sync()
    below = _follow(above, name) if follow else above.open(name)
    if made and follow:
        share(below.descriptor, above)
    return below


def share(made: int, above: Directory) -> None:
    """Give a group what was made in its directory, whatever the umask.

    A directory that a group may write, and that has the set-gid bit, is the group's by somebody's
    will. What holds a store together there has to be the group's as well, or the first user's umask
    would decide for all. What users put into it is as their umask says.

    Args:
        made: A directory or a file that was made just now; its descriptor.
        above: The directory that it is in.
    """
    with contextlib.suppress(OSError):
        mode = os.fstat(above.descriptor).st_mode
        if not (mode & stat.S_ISGID and mode & stat.S_IWGRP):
            return
        status = os.fstat(made)
        if status.st_gid == os.fstat(above.descriptor).st_gid:
            more = 0o075 if stat.S_ISDIR(status.st_mode) else 0o044
            wanted = status.st_mode | mode & more
            if wanted != status.st_mode:
                os.fchmod(made, stat.S_IMODE(wanted))


def _follow(above: Directory, name: str) -> Directory:
    """Open a directory, by way of links that are the user's or root's."""
    path, where = above.path / name, name
    for _ in range(_MAX_LINKS):
        try:
            return Directory(_opened(where, os.O_NOFOLLOW, above.descriptor), path)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise
            target = _target(where, above, path)
            if target is None:
                raise
        where = os.path.join(os.path.dirname(where), target)  # noqa: PTH118, PTH120 - relative
    raise OSError(errno.ELOOP, "too many symbolic links", str(path))


def _target(where: str, above: Directory, path: Path) -> str | None:
    """Where a link of the user's or root's leads; None where there is no link.

    Raises:
        StoreError: The link is somebody else's.
    """
    # The link itself is opened: its owner and its target are then those of one and the same link.
    link = os.open(where, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above.descriptor)
    try:
        status = os.fstat(link)
        if not stat.S_ISLNK(status.st_mode):
            return None
        if status.st_uid not in (os.geteuid(), 0):
            raise StoreError(
                f"{path} is a symbolic link of another user (number {status.st_uid}), which a "
                "store does not follow.",
                hint=f"Look where it leads: `ls -l {typed(path)}`; if that is right, make a link "
                "of your own in its place.",
                path=str(path),
            )
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)
