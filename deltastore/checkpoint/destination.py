"""The place of an output: free or not, large enough, safely on its device."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from deltastore.checkpoint.files import file_error
from deltastore.checkpoint.filling import filler, occupied
from deltastore.checkpoint.lease import hold_output
from deltastore.errors import CheckpointError, NoSpaceError, OutputExistsError
from deltastore.system.directory import Directory
from deltastore.text import typed

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


def check_place(out: Path, *, settled: bool = True) -> bool:
    """Make sure that an output can be put at a place, and nothing is overwritten; writes nothing.

    Args:
        out: The place, as ``resolved`` says.
        settled: Whether what dead processes left there has been removed.

    Returns:
        Whether an empty directory is there, which is to be filled.

    Raises:
        OutputExistsError: Something is in the way.
        CheckpointError: This user cannot write there, or cannot look.
    """
    try:
        found = out.lstat()
    except (FileNotFoundError, NotADirectoryError):
        _check_above(out)
        return False
    except OSError as error:
        raise file_error(error, out, "look at") from error
    if stat.S_ISLNK(found.st_mode):
        raise in_the_way(out, "is a symbolic link that leads back to itself")
    if not stat.S_ISDIR(found.st_mode):
        raise in_the_way(out, "is a file")
    _check_empty(out, settled=settled)
    if _is_planted(out, found):
        raise in_the_way(out, "is a directory of another user, where everybody may have put one,")
    _check_writable(out)
    return True


def _check_empty(out: Path, *, settled: bool) -> None:
    try:
        with hold_output(out) if out.name else Directory.hold(out) as held:
            if by := filler(held, settled=settled):
                empty = f"`find {typed(out)} -mindepth 1 -delete`"
                raise in_the_way(
                    out,
                    f"is being filled by {by}",
                    hint=f"Wait for that, or give another directory; if it has ended, {empty} "
                    "empties this one.",
                )
            if occupied(held, settled=settled):
                raise in_the_way(out, "is a directory with something in it")
    except OSError as error:
        raise file_error(error, out, "look at") from error


def _check_above(out: Path) -> None:
    """The same where nothing is yet: it, and what it lies in, can be made."""
    above = out.parent
    missing = [out.name]
    while True:
        try:
            found = above.stat()
            break
        except (FileNotFoundError, NotADirectoryError):
            missing.append(above.name)
            above = above.parent
        except OSError as error:
            raise file_error(error, above, "look at") from error
    if not stat.S_ISDIR(found.st_mode):
        raise OutputExistsError(
            f"{above} is a file; expected a directory, or nothing, for {out} to be made in.",
            hint="Give another directory, or move what is there away.",
            path=str(above),
        )
    with suppress(OSError):
        longest = os.pathconf(above, "PC_NAME_MAX")
        if max(len(os.fsencode(name)) for name in missing) > longest:
            number = errno.ENAMETOOLONG
            raise file_error(OSError(number, os.strerror(number)), out, "create")
    _check_writable(above)


def _check_writable(directory: Path) -> None:
    """Make sure that this user may make files in a directory, as far as the system says.

    Raises:
        CheckpointError: He may not.
    """
    effective = os.access in os.supports_effective_ids
    if os.access(directory, os.W_OK | os.X_OK, effective_ids=effective):
        return
    read_only = False
    with suppress(OSError):
        read_only = bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    if read_only:
        raise CheckpointError(
            f"{directory} is on a file system that is mounted read-only; expected a directory "
            "that the output can be written to.",
            hint="Give a directory on another file system.",
            path=str(directory),
        )
    raise CheckpointError(
        f"{directory} may not be written by this user; expected a directory that the output can be "
        "written to.",
        hint=f"Look at its permissions, `ls -ld {typed(directory)}`; an empty directory "
        "that is yours is filled, whoever has the one above it.",
        path=str(directory),
    )


def _is_planted(out: Path, found: os.stat_result) -> bool:
    """Whether a directory is another user's where, as in ``/tmp``, everybody may make one.

    Whoever has it can exchange the output as soon as it is there. The administrator's are taken,
    and so is what the administrator has mounted; the administrator may take any.
    """
    if not os.geteuid() or found.st_uid in (os.geteuid(), 0):
        return False
    try:
        above = out.parent.stat()
    except OSError as error:
        raise file_error(error, out.parent, "look at") from error
    everybody = bool(above.st_mode & stat.S_ISVTX and above.st_mode & stat.S_IWOTH)
    return everybody and found.st_uid != above.st_uid and not os.path.ismount(out)


def in_the_way(out: Path, what: str, *, hint: str = "") -> OutputExistsError:
    """The error for an output path at which something stands."""
    return OutputExistsError(
        f"{out} {what}; expected nothing or an empty directory there.",
        hint=hint or "Give another directory, or move what is there away.",
        path=str(out),
    )


def check_space(out: Path, needed: int, *, largest: int = 0) -> None:
    """Make sure that ``needed`` bytes fit where ``out`` is, or will be.

    Args:
        out: The place.
        needed: In bytes.
        largest: The largest file, in bytes.

    Raises:
        NoSpaceError: They do not.
        CheckpointError: The file system cannot be looked at.
    """
    place = next(path for path in (out, *out.parents) if path.exists())
    try:
        available = shutil.disk_usage(place).free
        files = os.statvfs(place)
    except OSError as error:
        raise file_error(error, place, "look at") from error
    if needed > available:
        raise NoSpaceError(
            f"The output needs {_readable(needed)} at {place}, where {_readable(available)} "
            "are free.",
            hint="Free some space, or give a directory on another file system.",
            path=str(place),
            needed_bytes=needed,
            available_bytes=available,
        )
    # Some file systems count no files.
    if files.f_files and not files.f_favail:
        raise NoSpaceError(
            f"The output needs files at {place}, where no more can be made: the file system has "
            "no inode left.",
            hint="Remove files, or give a directory on another file system.",
            path=str(place),
        )
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit not in (resource.RLIM_INFINITY, -1) and largest > limit:
        raise file_error(OSError(errno.EFBIG, os.strerror(errno.EFBIG)), out, "write")


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
