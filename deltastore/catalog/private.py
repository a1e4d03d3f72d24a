"""Databases of the user alone, outside any store: made anew where they are no good.

Nothing is in them that cannot be done without. So one that is damaged, or of another schema, is
thrown away, and where nobody but the user can be kept out there is none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from deltastore.catalog import lying
from deltastore.catalog.ownership import other_mover, other_writer
from deltastore.errors import CatalogError, StoreError, StoreOutdatedError, StoreTooNewError

_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_Opened = TypeVar("_Opened")

MODE = 0o600


def open_private(path: Path, opened: Callable[[Path], _Opened]) -> _Opened:
    """Open a database in a directory of the user alone, making both if need be.

    Args:
        path: The database.
        opened: Opens it, and makes what it needs in an empty one; its argument is the real path.

    Raises:
        StoreError: It cannot be made there, or somebody else may write there.
    """
    with _held(path) as real:
        try:
            if not any(other_writer(found, follow=False) for found in lying.files(real)):
                return opened(real)
        except (CatalogError, StoreOutdatedError, StoreTooNewError) as error:
            if isinstance(error, CatalogError) and not error.facts.get("damaged"):
                raise
        lying.discard_files(real)
        return opened(real)


def discard_private(path: Path) -> None:
    """Throw a database away that turned out to be damaged when it was used.

    Raises:
        StoreError: It cannot be removed.
    """
    with _held(path) as real:
        lying.discard_files(real)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[Path]:
    """The lock of whoever makes it or throws it away; gives the real path.

    Of several processes that find the database damaged one throws it away: the others look again
    when they have the lock, and find the new one.
    """
    try:
        _make_directory(path.parent)
        path = Path(os.path.realpath(path.parent)) / path.name
        if reason := other_mover(path.parent) or other_writer(path.parent):
            raise StoreError(f"The index {path} would not be the user's alone: {reason}.")
        lock = os.open(path.with_name(f"{path.name}.lock"), _LOCK, MODE)
        try:
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                raise StoreError(f"The index {path} cannot be made: its lock is no regular file.")
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
        finally:
            os.close(lock)
    except OSError as error:
        raise StoreError(f"The index {path} cannot be made: {error.strerror}.") from error


def _make_directory(path: Path) -> None:
    """Make a directory and those above it that are not there, for the user alone.

    As the umask says, they could be the group's, and the group could move what is in them.
    """
    # os.path, as Path's raises an error of what may not be looked at.
    if not os.path.isdir(path):  # noqa: PTH112
        _make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
