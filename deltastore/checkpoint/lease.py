"""Whose unfinished output a directory is, and removing those of the dead.

An unfinished output is a directory ``.<name>.partial-<random>`` beside ``<name>`` with a file
``.lease`` in it; where ``<name>`` is there already and is to be filled, it is ``.partial-<random>``
within. While the output is being renamed into place the lease stands beside the unfinished
directory (``.<name>.partial-<random>.lease``), so that at no instant a process can die and leave
a directory that nobody may remove.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deltastore.system import processes, steps
from deltastore.system.directory import Directory
from deltastore.system.processes import Process
from deltastore.system.steps import OutputStep

LEASE = ".lease"
MAX_FOLDERS = 2
"""How deep an output is: ``blobs/sha256`` of an export. A folder of a checkpoint has no other."""

FILLED = ""
"""In place of an output's name: the directory that holds the unfinished one is the output."""

_MAX_LEASE_BYTES = 4096
_MAX_NAME_BYTES = 200
"""Of an output's name that stands in others: a file's name has 255 bytes at most."""

_RANDOM = r"[0-9a-f]{12}(\.lease)?\Z"


@dataclass(frozen=True, slots=True)
class Lease:
    """A process, named so that another one can tell whether it still lives.

    ``host`` and ``machine`` name the computer, ``boot`` its current run, ``namespace`` the
    world in which ``pid`` counts (a container has its own), ``started`` the process's start in
    clock ticks since boot; empty where the system does not tell. ``created`` is for people.
    ``directory`` is the number (inode) of the directory that it speaks for, 0 until that is made.
    """

    host: str
    machine: str
    boot: str
    namespace: str
    pid: int
    started: str
    created: float
    directory: int = 0


def own_lease() -> Lease:
    """The lease of this process."""
    return Lease(
        host=socket.gethostname(),
        machine=processes.machine_id(),
        boot=processes.boot_id(),
        namespace=processes.space(),
        pid=os.getpid(),
        started=processes.start_time(),
        created=time.time(),
    )


def is_dead(lease: Lease) -> bool:
    """Whether the process of ``lease`` is provably gone; doubt counts as life."""
    same_host = lease.host == socket.gethostname()
    return same_host and processes.has_ended(_process(lease), processes.this_process())


@dataclass(frozen=True, slots=True)
class Partial:
    """An unfinished output of this process; its directory and the one that has it are held open.

    Whoever may write beside it can give its name to something else. So everything goes through
    the descriptors, and nothing is renamed or removed by a name that leads elsewhere.
    """

    parent: Directory
    name: str
    directory: Directory

    @property
    def path(self) -> Path:
        """Where it was made."""
        return self.parent.path / self.name

    def close(self) -> None:
        """Let go of the directory."""
        self.directory.close()


def new_name(out: str) -> str:
    """A name for an unfinished directory of an output, or of what is to be ``FILLED``."""
    return f"{_prefix(out)}{secrets.token_hex(6)}"


def create_partial(parent: Directory, out: str, name: str = "") -> Partial:
    """Create the directory in which an output is put together, with this process's lease in it.

    Args:
        parent: The directory in which the output will be, or that is to be filled.
        out: The output's name; ``FILLED`` where ``parent`` is to be filled.
        name: What to call it, as ``new_name`` says; whoever knows that can ``discard`` it, at
            whatever moment this was interrupted.

    Raises:
        OSError: The directory cannot be created or written.
    """
    name = name or new_name(out)
    lease = own_lease()
    descriptor, partial = -1, None
    try:
        # The lease first, beside it: a directory without one could not be told from a living one.
        descriptor = parent.create(f"{name}{LEASE}")
        _say(descriptor, lease)
        steps.reached(OutputStep.LEASED)
        directory = parent.make(name)
        partial = Partial(parent, name, directory)
        steps.reached(OutputStep.BARE)
        # A lease speaks for the directory that it names, and for no other that has its name.
        lease = replace(lease, directory=number_of(directory))
        _say(descriptor, lease)
        try:
            parent.rename(f"{name}{LEASE}", directory, LEASE)
        except FileNotFoundError:
            # Another writer met it while it was still empty, and took it for a dead one's.
            directory.write(LEASE, _text_of(lease))
        steps.reached(OutputStep.OWNED)
    except BaseException:
        # An interruption as well: no other command can tell that this process needs them no more.
        if partial is not None:
            remove_partial(partial)
        discard(parent, name)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return partial


def discard(parent: Directory, name: str) -> None:
    """Remove what ``create_partial`` made, in which there is nothing but its lease."""
    with suppress(OSError), parent.open(name) as directory:
        found = read_lease(directory, LEASE)
        lease = None if found is None else found.lease
        where = (os.getpid(), number_of(directory))
        if lease is not None and (lease.pid, lease.directory) == where:
            directory.unlink(LEASE)
    with suppress(OSError):
        os.rmdir(name, dir_fd=parent.descriptor)
    with suppress(OSError):
        parent.unlink(f"{name}{LEASE}")


def _prefix(out: str) -> str:
    """What the names of an output's unfinished directories begin with."""
    data = os.fsencode(out)
    if len(data) > _MAX_NAME_BYTES:
        out = hashlib.sha256(data).hexdigest()[:32]
    return f".{out}.partial-" if out else ".partial-"


def is_unfinished(name: str, out: str = FILLED) -> bool:
    """Whether a name is that of an unfinished directory of an output, or of the lease of one."""
    return re.fullmatch(re.escape(_prefix(out)) + _RANDOM, name) is not None


def deliver(partial: Partial, out: str) -> None:
    """Give a finished directory its name, in one step, and remove its lease.

    Raises:
        OSError: It cannot be renamed; ``EEXIST``, ``ENOTEMPTY`` or ``ENOTDIR`` where something
            other than an empty directory has the name, ``ESTALE`` where the unfinished
            directory's own name leads to something else.
    """
    parent = partial.parent
    release(partial)
    steps.reached(OutputStep.RELEASED)
    _require_own(partial, partial.name)
    # Atomic, and it fails where something other than an empty directory is in the way.
    parent.rename(partial.name, parent, out)
    _require_own(partial, out)
    steps.reached(OutputStep.NAMED)
    parent.unlink(f"{partial.name}{LEASE}", missing_ok=True)
    steps.reached(OutputStep.DONE)


def release(partial: Partial) -> None:
    """Take the lease out of a finished directory; beside it, it is to be removed last."""
    partial.directory.rename(LEASE, partial.parent, f"{partial.name}{LEASE}")


def _require_own(partial: Partial, name: str) -> None:
    if not partial.parent.leads_to(name, partial.directory):
        path = partial.parent.path / name
        raise OSError(
            errno.ESTALE,
            f"another process or user put something else in the place of {path}",
            str(path),
        )


def remove_partial(partial: Partial) -> None:
    """Remove an unfinished output, the lease last, and let go of it; what cannot go stays."""
    parent, name = partial.parent, partial.name
    with partial.directory as directory, suppress(OSError):
        directory.clear(folders=MAX_FOLDERS, keep=(LEASE,))
        # Beside it, then last: a removal that is itself killed is taken up by the next process.
        if directory.has(LEASE):
            directory.rename(LEASE, parent, f"{name}{LEASE}")
        steps.reached(OutputStep.CLEARED)
        if parent.remove(name, directory) or not parent.leads_to(name, directory):
            parent.unlink(f"{name}{LEASE}", missing_ok=True)


def remove_dead_partials(out: Path) -> list[Path]:
    """Remove what dead processes of this user left of earlier attempts at ``out``.

    Returns:
        What was removed. Directories of living processes, of other hosts and users, and those that
        no readable lease names are left alone.
    """
    removed = []
    with suppress(OSError), Directory.hold(out.parent) as parent:
        removed += _remove_all_dead(parent, out.name)
    with suppress(OSError), hold_output(out) as filled:
        removed += _remove_all_dead(filled, FILLED)
    return removed


def hold_output(out: Path) -> Directory:
    """Open an output's directory; no link is followed that has come to its place.

    Raises:
        OSError: It cannot be opened; ``ELOOP`` for a symbolic link.
    """
    with Directory.hold(out.parent) as above:
        return above.open(out.name)


def _remove_all_dead(parent: Directory, out: str) -> list[Path]:
    removed = []
    names = {name.removesuffix(LEASE) for name in parent.names() if is_unfinished(name, out)}
    for name in sorted(names):
        with suppress(OSError):
            if _remove_dead(parent, name):
                removed.append(parent.path / name)
    return removed


def _remove_dead(parent: Directory, name: str) -> bool:
    beside = f"{name}{LEASE}"
    try:
        directory = parent.open(name)
    except FileNotFoundError:
        found = read_lease(parent, beside)
        if found is not None and is_own(parent, found.owner) and (not found.size or found.dead):
            # Killed before it said a word, or before it made or after it removed the directory.
            parent.unlink(beside, missing_ok=True)
            return found.lease is not None
        return False
    with directory:
        found = read_lease(directory, LEASE) or read_lease(parent, beside)
        if found is None or not found.dead or not is_own(parent, found.owner):
            return False
        assert found.lease is not None
        if not found.lease.directory and directory.names():
            return False  # Killed before it had put anything into its directory: this is another.
        if found.lease.directory and found.lease.directory != number_of(directory):
            return False
        remove_partial(Partial(parent, name, directory))
    return True


def number_of(directory: Directory) -> int:
    """The number (inode) of a directory that is held open."""
    return os.fstat(directory.descriptor).st_ino


def is_own(parent: Directory, owner: int) -> bool:
    """Whether a file is this user's, by what is made here now: some file systems change owners."""
    # A name that others who look into the directory take for what it is: nothing of theirs.
    name = f"{_prefix(FILLED)}{secrets.token_hex(6)}{LEASE}"
    descriptor = parent.create(name, mode=0o600)
    try:
        return os.fstat(descriptor).st_uid == owner
    finally:
        os.close(descriptor)
        parent.unlink(name, missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Found:
    """A lease's file: its owner's number, its size in bytes, and what it says if that is clear."""

    owner: int
    size: int
    lease: Lease | None

    @property
    def dead(self) -> bool:
        return self.lease is not None and is_dead(self.lease)


def _text_of(lease: Lease) -> bytes:
    return (json.dumps(asdict(lease)) + "\n").encode()


def _say(descriptor: int, lease: Lease) -> None:
    # In one call, which a killed process has made or not; what is said later is never shorter.
    os.pwrite(descriptor, _text_of(lease), 0)


def read_lease(directory: Directory, name: str) -> _Found | None:
    """A lease's file; None where there is none, or a link or pipe in its place."""
    try:
        # Anybody who may write beside an output may have put it there.
        descriptor = directory.read(name)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        try:
            lease = parsed(json.loads(file.read(_MAX_LEASE_BYTES)))
        except (OSError, ValueError, TypeError, RecursionError):
            lease = None
    return _Found(status.st_uid, status.st_size, lease)


def parsed(fields: Any) -> Lease | None:
    """A lease from its document; None where that cannot be one.

    Raises:
        TypeError: A field is missing, or there is one more.
    """
    lease = Lease(**fields)
    texts = (lease.host, lease.machine, lease.boot, lease.namespace, lease.started)
    if not all(isinstance(text, str) for text in texts) or type(lease.directory) is not int:
        return None
    # kill() gives numbers below 1 another meaning.
    return lease if type(lease.pid) is int and 0 < lease.pid < 1 << 31 else None


def _process(lease: Lease) -> Process:
    machine = f"{lease.host} {lease.machine}" if lease.machine else ""
    return Process(machine, lease.boot, lease.namespace, lease.pid, lease.started)
