"""Whose unfinished output a directory is, and removing those of the dead.

An unfinished output is a directory ``.<name>.partial-<random>`` beside ``<name>`` with a file
``.lease`` in it. While the output is being renamed into place the lease stands beside the
directory (``.<name>.partial-<random>.lease``), so that at no instant a process can die and leave
a directory that nobody may remove.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from deltastore.checkpoint import steps
from deltastore.checkpoint.steps import Step

LEASE = ".lease"
_MAX_LEASE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Lease:
    """A process, named so that another one can tell whether it still lives.

    ``host`` and ``machine`` name the computer, ``boot`` its current run, ``namespace`` the
    world in which ``pid`` counts (a container has its own), ``started`` the process's start in
    clock ticks since boot; empty where the system does not tell. ``created`` is for people.
    """

    host: str
    machine: str
    boot: str
    namespace: str
    pid: int
    started: str
    created: float


def own_lease() -> Lease:
    """The lease of this process."""
    return Lease(
        host=socket.gethostname(),
        machine=_text("/etc/machine-id"),
        boot=_text("/proc/sys/kernel/random/boot_id"),
        namespace=_pid_namespace(),
        pid=os.getpid(),
        started=_process(os.getpid())[1],
        created=time.time(),
    )


def is_dead(lease: Lease) -> bool:
    """Whether the process of ``lease`` is provably gone; doubt counts as life."""
    here = own_lease()
    if (lease.host, lease.machine) != (here.host, here.machine):
        return False
    if lease.boot and here.boot and lease.boot != here.boot:
        return True
    if lease.namespace != here.namespace:
        return False  # A container beside this one: its process numbers mean nothing here.
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # It lives and belongs to somebody else, or the number was given away again.
    state, started = _process(lease.pid)
    # A zombie has closed its files; only its parent has not asked for its end yet.
    return state == "Z" or bool(started and lease.started and started != lease.started)


def create_partial(out: Path) -> Path:
    """Create the directory in which ``out`` is put together, with this process's lease in it.

    Raises:
        OSError: The directory cannot be created or written.
    """
    partial = out.with_name(f".{out.name}.partial-{secrets.token_hex(6)}")
    text = json.dumps(asdict(own_lease())) + "\n"
    try:
        # The lease first, beside it: a directory without one could not be told from a living one.
        _beside(partial).write_text(text)
        steps.reached(Step.LEASED)
        partial.mkdir()
        steps.reached(Step.BARE)
        try:
            _beside(partial).rename(partial / LEASE)
        except FileNotFoundError:
            # Another writer met it while it was still empty, and took it for a dead one's.
            (partial / LEASE).write_text(text)
        steps.reached(Step.OWNED)
    except OSError:
        remove_partial(partial)
        raise
    return partial


def release(partial: Path) -> Path:
    """Take the lease out of a finished directory; returns where it is, to be removed last."""
    return (partial / LEASE).rename(_beside(partial))


def remove_partial(partial: Path) -> None:
    """Remove an unfinished output, the lease last; what cannot be removed stays."""
    with suppress(OSError):
        for child in list(partial.iterdir()):
            if child.name == LEASE:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink(missing_ok=True)
        # Beside it, then last: a removal that is itself killed is taken up by the next process.
        if (partial / LEASE).exists():
            (partial / LEASE).rename(_beside(partial))
        steps.reached(Step.CLEARED)
        partial.rmdir()
    if not partial.exists():
        with suppress(OSError):
            _beside(partial).unlink(missing_ok=True)


def remove_dead_partials(out: Path) -> list[Path]:
    """Remove what dead processes left of earlier attempts at ``out``.

    Returns:
        What was removed. Directories of living processes, of other hosts and without a readable
        lease are left alone.
    """
    pattern = re.compile(re.escape(f".{out.name}.partial-") + r"[0-9a-f]{12}(\.lease)?\Z")
    try:
        names = [path.name for path in out.parent.iterdir() if pattern.match(path.name)]
    except OSError:
        return []
    removed = []
    for partial in sorted({out.with_name(name.removesuffix(".lease")) for name in names}):
        if not partial.exists() and _is_empty(_beside(partial)):
            _beside(partial).unlink(missing_ok=True)  # killed before it said a word
            continue
        lease = _read(partial / LEASE) or _read(_beside(partial))
        if lease is None or partial.is_symlink() or not is_dead(lease):
            continue
        remove_partial(partial)
        removed.append(partial)
    return removed


def _is_empty(path: Path) -> bool:
    try:
        return path.lstat().st_size == 0
    except OSError:
        return False


def _beside(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}{LEASE}")


def _read(path: Path) -> Lease | None:
    try:
        # No link and no pipe: anybody who may write beside an output may have put it there.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        with open(descriptor, "rb") as file:
            fields = json.loads(file.read(_MAX_LEASE_BYTES))
        lease = Lease(**fields)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = (lease.host, lease.machine, lease.boot, lease.namespace, lease.started)
    if not all(isinstance(text, str) for text in texts):
        return None
    # kill() gives numbers below 1 another meaning.
    return lease if type(lease.pid) is int and 0 < lease.pid < 1 << 31 else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, str]:
    # State and start, fields 3 and 22; counted after the command's name, which may hold anything.
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")
