"""Filling a directory that is there already, as its owner, group, mode and mount are to stay.

The output is put together in a directory within. When it is whole, a file ``.filling`` says what is
about to appear, and the files are renamed one by one. The last one is what makes the directory what
it is: once that is in its place, the output is there. A process that is killed before leaves
``.filling``, by which no reader takes the directory for a checkpoint, and the next writer knows
what to take away.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from deltastore.checkpoint.lease import (
    LEASE,
    MAX_FOLDERS,
    Lease,
    Partial,
    hold_output,
    is_dead,
    is_own,
    is_unfinished,
    number_of,
    own_lease,
    parsed,
)
from deltastore.system import steps
from deltastore.system.directory import NO_LINKS, Directory
from deltastore.system.steps import OutputStep

CLAIM = ".filling"
"""Of the processes that would fill a directory, the one that makes this file does."""

_MAX_CLAIM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Claim:
    """What ``.filling`` says.

    Attributes:
        lease: The process that fills, and the directory's number.
        partial: The name of the directory in which it has put the output together.
        names: What appears, in this order, with the number (inode) of each.
        owner: The number of the user whose file it is.
    """

    lease: Lease
    partial: str
    names: tuple[tuple[str, int], ...]
    owner: int

    def is_done(self, out: Directory) -> bool:
        """Whether all that was to appear has: its last name is in its place."""
        return _has(out, *self.names[-1])


def fill(partial: Partial, last: Sequence[str], *, sync: bool = False) -> None:
    """Give what is in a finished directory its names in the directory above.

    Args:
        partial: The finished directory.
        last: The names that appear after all others, in this order.
        sync: Also make sure that all of it survives a power cut, the last name after the others.

    Raises:
        OSError: It cannot be done, and nothing of it stays; ``EEXIST`` where another process does
            it, ``ENOTEMPTY`` where something else has appeared, ``ESTALE`` where what has appeared
            was exchanged.
    """
    out, directory = partial.parent, partial.directory
    order = {name: number for number, name in enumerate(last)}
    names = sorted(set(directory.names()) - {LEASE}, key=lambda name: (order.get(name, -1), name))
    numbers = [(name, directory.status(name).st_ino) for name in names]
    _claim(partial, numbers)
    steps.reached(OutputStep.FILLING)
    if occupied(out):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(out.path))
    for name, _ in numbers:
        if sync and name == names[-1]:
            out.sync()
        if out.has(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out.path / name))
        directory.rename(name, out, name)
    if sync:
        out.sync()
    steps.reached(OutputStep.FILLED)
    if not all(_has(out, name, number) for name, number in numbers):
        reason = f"another process or user put something else in a place in {out.path}"
        raise OSError(errno.ESTALE, reason, str(out.path))
    out.unlink(CLAIM, missing_ok=True)


def settle(partial: Partial) -> None:
    """After ``fill`` was left by an error or an interruption: have all of it in place, or none."""
    with suppress(OSError):
        found = _read(partial.parent)
        if found is not None and found.partial == partial.name:
            _end(partial.parent, found)


def settle_dead(path: Path) -> None:
    """The same for a process of this user's that has ended, in a directory at ``path``."""
    with suppress(OSError), hold_output(path) as out:
        found = _read(out)
        if found is not None and _is_over(found, out) and is_own(out, found.owner):
            _end(out, found)


def occupied(out: Directory, *, settled: bool = True) -> list[str]:
    """What is in a directory that is to be filled and is neither an unfinished output nor a claim.

    Args:
        out: The directory.
        settled: Whether what dead processes left has been removed; what would be is left out.
    """
    names = [name for name in out.names() if name != CLAIM and not is_unfinished(name)]
    # A disk that has just been made has this, and it stays.
    names = [name for name in names if name != "lost+found" or not os.path.ismount(out.path)]
    found = None if settled else _read(out)
    if found is not None and _is_over(found, out) and not found.is_done(out):
        names = [name for name in names if not _has(out, name, dict(found.names).get(name, 0))]
    return sorted(names)


def filler(out: Directory, *, settled: bool = True) -> str:
    """Who fills a directory, as words; empty where nobody does, or the work is done."""
    if not out.has(CLAIM):
        return ""
    found = _read(out)
    if found is None:
        return "somebody"
    if found.is_done(out) or (not settled and _is_over(found, out)):
        return ""
    return f"process {found.lease.pid} on {found.lease.host}"


def is_half_filled(path: Path) -> bool:
    """Whether a directory has only a part of what is to appear in it, or had when last seen."""
    with suppress(OSError), Directory.hold(path) as out:
        found = _read(out)
        return found is not None and not found.is_done(out)
    return False


def _claim(partial: Partial, numbers: Sequence[tuple[str, int]]) -> None:
    """Make the claim, whole, unless there is one."""
    out, directory = partial.parent, partial.directory
    document = {
        "lease": asdict(own_lease()) | {"directory": number_of(out)},
        "partial": partial.name,
        "names": [list(pair) for pair in numbers],
    }
    directory.write(CLAIM, (json.dumps(document) + "\n").encode())
    try:
        os.link(
            CLAIM,
            CLAIM,
            src_dir_fd=directory.descriptor,
            dst_dir_fd=out.descriptor,
            follow_symlinks=False,
        )
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Of two that come to this line together the later has the name, and the other one sees it.
        if out.has(CLAIM):
            raise FileExistsError(
                errno.EEXIST, os.strerror(errno.EEXIST), str(out.path / CLAIM)
            ) from error
        directory.rename(CLAIM, out, CLAIM)
        found = _read(out)
        if found is None or found.partial != partial.name:
            raise FileExistsError(
                errno.EEXIST, os.strerror(errno.EEXIST), str(out.path / CLAIM)
            ) from error
    directory.unlink(CLAIM, missing_ok=True)


def _end(out: Directory, found: Claim) -> None:
    """Take away what has appeared, unless all has; the claim last."""
    if not found.is_done(out):
        for name, number in reversed(found.names):
            if not _has(out, name, number):
                continue
            if stat.S_ISDIR(out.status(name).st_mode):
                with out.open(name) as folder:
                    folder.clear(folders=MAX_FOLDERS)
                    out.remove(name, folder)
            else:
                out.unlink(name)
    out.unlink(CLAIM, missing_ok=True)


def _is_over(found: Claim, out: Directory) -> bool:
    """Whether a claim is of this very directory, and its process has provably ended."""
    return found.lease.directory == number_of(out) and is_dead(found.lease)


def _has(out: Directory, name: str, number: int) -> bool:
    """Whether a name is that of a file, or a directory, of this number."""
    with suppress(FileNotFoundError):
        return out.status(name).st_ino == number
    return False


def _read(out: Directory) -> Claim | None:
    """The claim in a directory; None where there is none, or it cannot be understood."""
    try:
        # Anybody who may write there may have put it there.
        descriptor = out.read(CLAIM)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_CLAIM_BYTES:
            return None
        try:
            fields = json.loads(file.read(_MAX_CLAIM_BYTES))
            lease = parsed(fields["lease"])
            names = tuple((name, number) for name, number in fields["names"])
            partial = fields["partial"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
    if lease is None or not names or not isinstance(partial, str):
        return None
    if not all(_is_name(name) and type(number) is int for name, number in names):
        return None
    return Claim(lease, partial, names, status.st_uid)


def _is_name(name: object) -> bool:
    """Whether it is one name of something in the directory itself."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\0"} & set(name)
