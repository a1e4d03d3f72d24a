"""Temporary files and bins: what dies with its process, and how it is taken away.

A bin is a directory of files that a collector is about to delete; nothing of deltastore's has a
directory in it. Everything goes by the descriptor of the directory that holds them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from deltastore.blobs import durable
from deltastore.blobs.owner import is_dead
from deltastore.system.directory import Directory

_MOST_ROUNDS = 1000


def take_away(temps: Directory, name: str) -> int | None:
    """Remove a temporary file, or a bin and what is in it; the bytes that this freed.

    Raises:
        OSError: It cannot be removed; ``ENOTEMPTY`` for a bin of the dead with a directory in it.
    """
    try:
        status = temps.status(name)
        if not stat.S_ISDIR(status.st_mode):
            temps.unlink(name)
            return status.st_size
        if is_dead(name):
            with temps.open(name) as bin_:
                freed = _empty(bin_)
                os.rmdir(name, dir_fd=temps.descriptor)
            return freed
        # Renamed first: its process, if it lives, finds it gone at once.
        mine = durable.temp_name()
        temps.rename(name, temps, mine)
        with temps.open(mine) as bin_:
            return _remove_living(temps, mine, bin_)
    except FileNotFoundError:
        return 0


def _remove_living(temps: Directory, name: str, bin_: Directory) -> int:
    """Remove the bin of a process that may live; it can move blobs in until this has succeeded."""
    freed = 0
    for _ in range(_MOST_ROUNDS):
        freed += _empty(bin_)
        for entry in bin_.names():
            if is_directory(bin_, entry):
                # No deltastore made it: under a name without a token it stays, and is named.
                bin_.rename(entry, temps, f"foreign-{durable.temp_name()}")
        try:
            os.rmdir(name, dir_fd=temps.descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return freed
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(bin_.path))


def _empty(bin_: Directory) -> int:
    """Remove the files in a bin; how many bytes they had."""
    freed = 0
    for entry in bin_.names():
        with contextlib.suppress(FileNotFoundError):
            status = bin_.status(entry)
            if not stat.S_ISDIR(status.st_mode):
                bin_.unlink(entry)
                freed += status.st_size
    return freed


def is_directory(held: Directory, name: str) -> bool:
    """Whether a name is that of a directory; no link is followed."""
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(held.status(name).st_mode)
    return False


def is_nested(temps: Directory, name: str) -> bool:
    """Whether something is a directory with another one in it, which no deltastore makes."""
    if not is_directory(temps, name):
        return False
    with (
        contextlib.suppress(OSError),
        temps.open(name) as bin_,
        os.scandir(bin_.descriptor) as all_,
    ):
        return any(entry.is_dir(follow_symlinks=False) for entry in all_)
    return False
