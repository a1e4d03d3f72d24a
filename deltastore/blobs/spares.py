"""Spare files: by which a few small files can be written on a disk that has no room left.

To remove something takes writing first: a lease, a claim, a tombstone, a directory to move blobs
to. So a store keeps some small files, and an empty directory, whose blocks and inodes it has
already. Where a new file cannot be made, one of them is renamed and written over, which takes
nothing from the disk and which nobody who fills it can prevent; afterwards it goes back. They hold
nothing, and are made anew, when a store is opened, where there is plenty of room.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from deltastore.system.directory import Directory, Place

FOLDER = "spare"
COUNT = 16
KEPT = COUNT // 2
"""How many are left to what frees space; the others are for leases of any command."""

BYTES = 4096
"""Of each: a block of most file systems, and more than any file that is written in this way."""

_BIN = "bin"
_PLENTY = 16
"""How many times what spare files take has to be free, before they are made."""


def spares_of(temp: Path) -> Place:
    """Where the spare files of the store with this directory of temporary files are."""
    return Place(temp.with_name(FOLDER))


def fill(temp: Path, *, plenty: bool = True) -> None:
    """Make the spare files that are missing, as far as that can be done.

    Args:
        temp: The store's directory of temporary files.
        plenty: Whether to leave a disk alone that is nearly full.
    """
    with contextlib.suppress(OSError):
        try:
            held = spares_of(temp).hold()
        except FileNotFoundError:
            if plenty and not _has_plenty(temp.parent):
                return
            held = spares_of(temp).make()
        with held:
            names = set(held.names())
            missing = COUNT - len(names - {_BIN})
            if (missing <= 0 and _BIN in names) or (plenty and not _has_plenty(temp.parent)):
                return
            if _BIN not in names:
                os.mkdir(_BIN, dir_fd=held.descriptor)
            for _ in range(missing):
                _make(held)


def take(temp: Path, into: Directory, name: str, *, leaving: int = 0) -> int | None:
    """Move a spare file to a new name; its descriptor, or None where there is none.

    Args:
        temp: The store's directory of temporary files.
        into: Where to, held open.
        name: Which nobody else uses.
        leaving: How many have to be left.
    """
    with contextlib.suppress(OSError), spares_of(temp).hold() as held:
        for spare in held.names()[leaving:]:
            with contextlib.suppress(OSError):
                if not _is_spare(held.status(spare)):
                    continue
                # Of several processes one gets it.
                held.rename(spare, into, name)
                flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                try:
                    descriptor = os.open(name, flags, dir_fd=into.descriptor)
                except OSError:
                    # Whoever made it has closed it to others.
                    into.rename(name, held, spare)
                    continue
                if _is_spare(os.fstat(descriptor)):
                    return descriptor
                # Somebody exchanged it just now: what is written over must have no other name.
                os.close(descriptor)
                into.rename(name, held, spare)
    return None


def take_bin(temp: Path, into: Directory, name: str) -> bool:
    """Move the spare directory to a new name; whether there was one."""
    with contextlib.suppress(OSError), spares_of(temp).hold() as held, held.open(_BIN) as bin_:
        if not bin_.names():
            held.rename(_BIN, into, name)
            return into.leads_to(name, bin_)
    return False


def give_back(temp: Path, held: Directory, name: str) -> bool:
    """Move a file that was a spare one back; whether that was done."""
    with contextlib.suppress(OSError), spares_of(temp).hold() as spares:
        held.rename(name, spares, secrets.token_hex(8))
        return True
    return False


def give_bin_back(temp: Path, held: Directory, name: str, bin_: Directory) -> bool:
    """Move a directory that was the spare one, and is empty, back; whether that was done."""
    with contextlib.suppress(OSError), spares_of(temp).hold() as spares:
        # Onto one that was made meanwhile it goes as well, if that is empty.
        if held.leads_to(name, bin_) and not bin_.names():
            held.rename(name, spares, _BIN)
            return True
    return False


def give_up(temp: Path) -> bool:
    """Remove a spare file, for the inode and the block that it has; whether there was one."""
    with contextlib.suppress(OSError), spares_of(temp).hold() as held:
        for spare in held.names():
            with contextlib.suppress(OSError):
                if _is_spare(held.status(spare)):
                    held.unlink(spare)
                    return True
    return False


def _is_spare(status: os.stat_result) -> bool:
    """Whether a file may be written over: a regular one without a second name."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _make(held: Directory) -> None:
    name = secrets.token_hex(8)
    try:
        held.write(name, b"\0" * BYTES)
    except BaseException:
        with contextlib.suppress(OSError):
            held.unlink(name, missing_ok=True)
        raise


def _has_plenty(path: Path) -> bool:
    """Whether spare files would be a small part of what is free."""
    status = os.statvfs(path)
    room = status.f_bavail * status.f_frsize >= _PLENTY * COUNT * BYTES
    # Where files are not counted, there are none.
    return room and (not status.f_files or status.f_favail >= _PLENTY * COUNT)
