"""Opening and reading files; operating system errors become ours here."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

from deltastore.errors import (
    CheckpointCorruptError,
    CheckpointError,
    DeltastoreError,
    NoSpaceError,
    UsageError,
    shown,
)
from deltastore.manifest.strict_json import TooManyValuesError, parse
from deltastore.system import limits
from deltastore.text import typed


def file_error(error: OSError, path: str | os.PathLike[str], doing: str) -> DeltastoreError:
    """The error to raise for a failed system call, to be used with ``raise ... from``.

    Args:
        error: What the call raised.
        path: The file or directory concerned.
        doing: A verb: "read", "write", "create".
    """
    where = os.fspath(path)
    reason = error.strerror or str(error)
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(
            f"Cannot {doing} {shown(where)}: the name is too long; most file systems allow 255 "
            "bytes, and 4095 for a path.",
            hint="Give a shorter one.",
            path=where,
        )
    if limit := limits.of_call(error, where):
        return limit
    if error.errno in limits.NO_SPACE:
        return NoSpaceError(
            f"Cannot {doing} {where}: {reason}.",
            hint="Free some space, raise the quota, or write elsewhere.",
            path=where,
        )
    hint = ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = f"Check the permissions: `ls -ld {typed(where)}`."
    return CheckpointError(f"Cannot {doing} {where}: {reason}.", hint=hint, path=where)


def open_regular(path: Path, what: str = "a weight file") -> int:
    """Open a regular file for reading; the caller closes the descriptor.

    Args:
        path: The file.
        what: What it should be, for messages.

    Raises:
        CheckpointCorruptError: There is no such file, or it is a dangling link or no regular file.
        CheckpointError: The file cannot be opened.
    """
    try:
        # Without O_NONBLOCK the opening of a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        found = "a dangling symbolic link" if path.is_symlink() else "missing"
        raise CheckpointCorruptError(
            f"{path} is {found}; expected {what}.",
            hint="Fetch the checkpoint again, e.g. `hf download org/name`.",
            path=str(path),
        ) from error
    except OSError as error:
        raise file_error(error, path, "open") from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise CheckpointCorruptError(
        f"{path} is no regular file; expected {what}.",
        hint="Give the path of a checkpoint directory or file.",
        path=str(path),
    )


def is_replaced(path: Path, before: os.stat_result) -> bool:
    """Whether another file is at ``path`` than was there; none is no other one."""
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_ino, found.st_dev) != (before.st_ino, before.st_dev)


def read_at(descriptor: int, position: int, view: memoryview, path: Path) -> None:
    """Fill ``view`` with the file's bytes from ``position``; thread-safe.

    Raises:
        CheckpointCorruptError: The file ends before ``view`` is full.
        CheckpointError: The read failed.
    """
    done = 0
    while done < len(view):
        try:
            # One call moves at most 2 GiB, on some systems it fails above; 1 GiB works anywhere.
            got = os.preadv(descriptor, [view[done : done + (1 << 30)]], position + done)
        except OSError as error:
            raise file_error(error, path, "read") from error
        if got == 0:
            raise CheckpointCorruptError(
                f"{path} ends at byte {position + done}; expected {len(view) - done} bytes more.",
                hint="The file was shortened or not fetched whole; fetch the checkpoint again.",
                path=str(path),
            )
        done += got


def strict_json(
    data: bytes, where: str, *, infinities: bool = False, memory: int | None = None
) -> dict[str, Any]:
    """Decode a JSON object, refusing what JSON readers disagree about.

    Args:
        data: The document.
        where: What to call it in an error.
        infinities: Whether it may hold these, as Python writes them.
        memory: About what it may take once parsed; no limit but that of its bytes if None.

    Raises:
        CheckpointCorruptError: No UTF-8, no JSON, no object, a key twice, NaN, nested too deeply,
            or too many values.
    """
    hint = "Fetch the file again, or restore it from its source."
    try:
        value = parse(data, memory=memory, constants=infinities)
    except TooManyValuesError as error:
        raise CheckpointCorruptError(
            f"{where} {str(error).removeprefix('it ')}.", hint=hint
        ) from error
    except ValueError as error:
        raise CheckpointCorruptError(f"{where} is no valid JSON: {error}.", hint=hint) from error
    if not isinstance(value, dict):
        raise CheckpointCorruptError(
            f"{where} holds a JSON {type(value).__name__}; expected an object.", hint=hint
        )
    return value


def read_json(
    path: Path, *, max_bytes: int, memory: int, infinities: bool = False
) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointCorruptError: The file is too large, has too many values, or is no valid JSON
            object.
        CheckpointError: The file cannot be read.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > max_bytes:
            raise CheckpointCorruptError(
                f"{path} has {size} bytes; expected at most {max_bytes}.",
                hint="Restore the file from its source.",
                path=str(path),
            )
        data = bytearray(size)
        read_at(descriptor, 0, memoryview(data), path)
    finally:
        os.close(descriptor)
    return strict_json(bytes(data), str(path), infinities=infinities, memory=memory)


def read_small(path: Path, *, max_bytes: int) -> bytes:
    """A file's bytes; none where there are more than ``max_bytes``.

    Raises:
        CheckpointCorruptError: See ``read_whole``.
        CheckpointError: It cannot be read.
    """
    data = _read(path, max_bytes)
    return data if isinstance(data, bytes) else b""


def read_whole(path: Path, *, max_bytes: int) -> bytes:
    """The bytes of a small file.

    Raises:
        CheckpointCorruptError: It is no regular file, or has not as many bytes as it says.
        CheckpointError: It cannot be read, or has more than ``max_bytes``.
    """
    data = _read(path, max_bytes)
    if isinstance(data, bytes):
        return data
    raise CheckpointError(
        f"{path} has {data} bytes; a small file has at most {max_bytes}.",
        hint="Move it out of the checkpoint's directory.",
        path=str(path),
    )


def _read(path: Path, max_bytes: int) -> bytes | int:
    """A file's bytes; how many there are, if they are too many.

    Files of the kernel's own, as below ``/proc``, say that they are empty, or longer than they
    are: they are refused, as a link to one would make what it says of this process a part of an
    artifact. Some of them would also be waited for.
    """
    descriptor = open_regular(path, "a file of a checkpoint")
    try:
        size = os.fstat(descriptor).st_size
        if size > max_bytes:
            return size
        data = bytearray(size)
        read_at(descriptor, 0, memoryview(data), path)
        try:
            more = os.pread(descriptor, 1, size)
        except OSError as error:
            raise file_error(error, path, "read") from error
    finally:
        os.close(descriptor)
    if more:
        raise CheckpointCorruptError(
            f"{path} has more than the {size} bytes that the system says it has; expected a file "
            "of a checkpoint.",
            hint=f"It is being written, or one of the system's own: `ls -lL {typed(path)}`.",
            path=str(path),
        )
    return bytes(data)
