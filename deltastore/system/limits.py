"""Failures for want of memory, threads, open files or space, whichever library met them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

from deltastore.errors import DeltastoreError, LimitError, NoSpaceError, shown

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says where a file system, or a user's quota, is full: of bytes or of files."""

_NO_MEMORY = (
    "Cannot allocate memory",
    "cannot allocate memory",
    "failed to map segment",
    "Unable to allocate",
    "bad allocation",
    "bad_alloc",
)
_OWNER = 0o700
_NO_THREAD = ("can't start new thread", "can't start new thread at interpreter shutdown")


def of_call(error: OSError, path: str | os.PathLike[str] = "") -> DeltastoreError | None:
    """What to say of a system call that failed at a limit of this process; None of any other.

    Args:
        error: What the system said.
        path: What the call was about, if that is known.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LimitError(
            f"Too many files are open{_said('NOFILE', '-n')}.",
            hint="Allow more open files in this shell: `ulimit -n 8192`.",
        )
    if error.errno == errno.ENOMEM:
        return too_little_memory()
    if error.errno == errno.EFBIG:
        return too_large(path or error.filename or "")
    if error.errno == errno.EACCES and (mask := _umask()) & _OWNER:
        return LimitError(
            f"What this process makes is closed to itself: its umask is {mask:03o}.",
            hint="Set one that leaves the user's own permissions: `umask 022`.",
        )
    return None


def too_large(path: str | os.PathLike[str]) -> NoSpaceError:
    """A file would be larger than the limit on files, or than its file system allows."""
    text = os.fspath(path)
    most = _limit("FSIZE")
    # In bytes: shells count it in blocks, and not all in the same.
    limit = "" if most is None else f" (`ulimit -f` allows {most} bytes)"
    what = f"{shown(text)} cannot be written: n" if text else "N"
    return NoSpaceError(
        f"{what}o file may be so large{limit}.",
        hint="Raise the limit: `ulimit -f unlimited`; or use a file system that has larger files.",
        path=text,
    )


def has_file_limit() -> bool:
    """Whether there is a limit on the size of files (``ulimit -f``)."""
    return _limit("FSIZE") is not None


def too_little_memory(*, least: int | None = None) -> LimitError:
    """The system gave no memory, or would not.

    Args:
        least: How many bytes of address space the work takes at least, if that is known.
    """
    expected = "" if least is None else f"; expected {least >> 10} or more"
    return LimitError(
        f"The system gives this process too little memory{_said('AS', '-v', 1024)}{expected}.",
        hint="Raise the limit: `ulimit -v unlimited`, or that of the container; fewer threads "
        "(`--jobs 1`, where there is that option) need less.",
    )


def no_process(error: OSError, what: str) -> DeltastoreError | None:
    """What to say where the system starts no further process; None where it would.

    Args:
        error: What it said.
        what: What the process is for: a sentence's end.
    """
    if error.errno not in (errno.EAGAIN, errno.ENOMEM):
        return of_call(error)
    return LimitError(
        f"The system lets this process start no other{_said('NPROC', '-u')}, {what}: "
        f"{error.strerror or error}.",
        hint="Raise the limit of processes, `ulimit -u` or that of the container, or free some "
        "memory.",
    )


def as_limit(error: BaseException) -> DeltastoreError | None:
    """What to say of an error that comes from a limit of the system; None where it does not."""
    for cause in _chain(error):
        if isinstance(cause, OSError):
            if said := of_call(cause):
                return said
            if cause.errno in NO_SPACE:
                where = f" for {cause.filename}" if cause.filename else ""
                return NoSpaceError(
                    f"No space is left{where}: {cause.strerror}.",
                    hint="Free some space, raise the quota, or write elsewhere.",
                )
        text = str(cause)
        if isinstance(cause, MemoryError):
            return too_little_memory()
        if isinstance(cause, (ImportError, OSError)) and any(word in text for word in _NO_MEMORY):
            return too_little_memory()
        if isinstance(cause, RuntimeError) and text in _NO_THREAD:
            return LimitError(
                f"The system lets this process start no further thread{_said('NPROC', '-u')}.",
                hint="Raise the limit of processes: `ulimit -u`, or that of the container.",
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or now.__context__


def _umask() -> int:
    """The umask, which can be asked only by setting one; for a moment it is a careful one."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _said(name: str, option: str, unit: int = 1) -> str:
    """The limit itself, as ``ulimit`` gives it, where there is one."""
    limit = _limit(name)
    return "" if limit is None else f" (`ulimit {option}` is {limit // unit})"


def _limit(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        soft, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        return None if soft == resource.RLIM_INFINITY else soft
    return None
