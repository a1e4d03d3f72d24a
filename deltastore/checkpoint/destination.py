"""The place of an output: free or not, large enough, safely on its device."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from pathlib import Path

from deltastore.checkpoint.files import file_error
from deltastore.errors import NoSpaceError, OutputExistsError

_MAX_LINKS = 40
"""As many as Linux follows."""


def resolved(out: str | os.PathLike[str]) -> Path:
    """Where an output will lie: through links, as a rename would replace a link and not its target.

    A link in its very place is followed only if the user or root made it: in a directory that
    others may write to, anybody may put one there that leads to where only the user may write.

    Raises:
        OutputExistsError: A link of somebody else is in its place.
        CheckpointError: The place cannot be looked at.
    """
    place = Path(out)
    for _ in range(_MAX_LINKS):
        place = Path(os.path.realpath(place.parent)) / place.name
        try:
            status = place.lstat()
            if not stat.S_ISLNK(status.st_mode):
                break
            if status.st_uid not in (os.geteuid(), 0):
                raise in_the_way(place, "is a symbolic link of another user")
            place = place.parent / place.readlink()
        except (FileNotFoundError, NotADirectoryError):
            break
        except OSError as error:
            raise file_error(error, place, "look at") from error
    return Path(os.path.realpath(place))


def check_free(out: Path) -> int | None:
    """Make sure that nothing would be overwritten.

    Returns:
        The mode of an empty directory that will be replaced; None where there is nothing.

    Raises:
        OutputExistsError: Something is in the way.
        CheckpointError: The place cannot be looked at.
    """
    try:
        found = out.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise in_the_way(out, "is a file")
        if any(out.iterdir()):
            raise in_the_way(out, "is a directory with something in it")
        if os.path.ismount(out):
            raise in_the_way(out, "is a mount point")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise file_error(error, out, "look at") from error
    return stat.S_IMODE(found.st_mode)


def in_the_way(out: Path, what: str) -> OutputExistsError:
    """The error for an output path at which something stands."""
    return OutputExistsError(
        f"{out} {what}; expected nothing or an empty directory there.",
        hint="Give another --out, or move what is there away.",
        path=str(out),
    )


def check_space(out: Path, needed: int) -> None:
    """Make sure that ``needed`` bytes fit where ``out`` will be.

    Raises:
        NoSpaceError: They do not.
        CheckpointError: The file system cannot be looked at.
    """
    place = next(parent for parent in out.parents if parent.exists())
    try:
        available = shutil.disk_usage(place).free
    except OSError as error:
        raise file_error(error, place, "look at") from error
    if needed > available:
        raise NoSpaceError(
            f"The output needs {_readable(needed)} at {place}, where {_readable(available)} "
            "are free.",
            hint="Free some space or give an --out on another file system.",
            path=str(place),
            needed_bytes=needed,
            available_bytes=available,
        )


def _readable(nbytes: int) -> str:
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{nbytes} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def reserve(descriptor: int, size: int) -> None:
    """Give an empty or shorter file its full size, with blocks behind it where that is free.

    On ext4 writes into reserved blocks took two thirds of the time of writes into a sparse file.
    ``os.posix_fallocate`` would not do: on file systems that cannot reserve (NFS 3, ZFS) the C
    library imitates it by touching every block.

    Raises:
        OSError: The space or a limit does not allow it.
    """
    if size and _fallocate(descriptor, size):
        return
    os.ftruncate(descriptor, size)


def _fallocate(descriptor: int, size: int) -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None:
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    if call(descriptor, 0, 0, size) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EINTR):
        return False
    raise OSError(number, os.strerror(number))
