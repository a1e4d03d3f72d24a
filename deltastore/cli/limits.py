"""Failures for want of memory, threads, open files or space, whichever library met them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

from deltastore.errors import DeltastoreError, LimitError, NoSpaceError
from deltastore.threads import LEAST_BYTES, address_space

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_MEMORY = (
    "Cannot allocate memory",
    "cannot allocate memory",
    "failed to map segment",
    "Unable to allocate",
    "bad allocation",
    "bad_alloc",
)
_NO_THREAD = ("can't start new thread", "can't start new thread at interpreter shutdown")


def use_few_threads() -> None:
    """Have numerical libraries start no threads of their own, unless the user says how many.

    Work is spread over our threads. Where one of theirs cannot be started, OpenBLAS sends its own
    process SIGINT and OpenMP ends it. For a command's process, before numpy is imported.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # No kernel has threads of Numba's; a number that makes no sense would fail its import.
    os.environ["NUMBA_NUM_THREADS"] = "1"


def require_memory() -> None:
    """For commands that compute, before the libraries are loaded that do.

    Raises:
        LimitError: Loading them would end the process without a word, or never end.
    """
    limit = address_space()
    if limit is not None and limit < LEAST_BYTES:
        raise LimitError(
            f"The system gives this process too little memory{_said('AS', '-v', 1024)}; expected "
            f"{LEAST_BYTES >> 10} or more.",
            hint="Raise the limit: `ulimit -v unlimited`.",
        )


def as_limit(error: BaseException) -> DeltastoreError | None:
    """What to say of an error that comes from a limit of the system; None where it does not."""
    for cause in _chain(error):
        number = cause.errno if isinstance(cause, OSError) else None
        text = str(cause)
        if isinstance(cause, MemoryError) or number == errno.ENOMEM:
            return _memory()
        if isinstance(cause, RuntimeError) and text in _NO_THREAD:
            return LimitError(
                f"The system lets this process start no further thread{_said('NPROC', '-u')}.",
                hint="Raise the limit of processes: `ulimit -u`, or that of the container.",
            )
        if number in (errno.EMFILE, errno.ENFILE):
            return LimitError(
                f"Too many files are open{_said('NOFILE', '-n')}.",
                hint="Allow more open files in this shell: `ulimit -n 8192`.",
            )
        if number in _FULL:
            where = (
                f" for {cause.filename}" if isinstance(cause, OSError) and cause.filename else ""
            )
            return NoSpaceError(
                f"No space is left{where}: {os.strerror(number or 0)}.",
                hint="Free some space, raise the quota or `ulimit -f`, or write elsewhere.",
            )
        if isinstance(cause, (ImportError, OSError)) and any(word in text for word in _NO_MEMORY):
            return _memory()
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or now.__context__


def _memory() -> LimitError:
    return LimitError(
        f"The system gives this process too little memory{_said('AS', '-v', 1024)}.",
        hint="Raise the limit: `ulimit -v unlimited`, or that of the container; fewer threads "
        "(`--jobs 1`, where there is that option) need less.",
    )


def _said(name: str, option: str, unit: int = 1) -> str:
    """The limit itself, as ``ulimit`` gives it, where there is one."""
    with contextlib.suppress(OSError, ValueError):
        soft, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        if soft != resource.RLIM_INFINITY:
            return f" (`ulimit {option}` is {soft // unit})"
    return ""
