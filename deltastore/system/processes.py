"""Whether another process still runs: the one place that judges it.

Leases, claims, temporary files, unfinished outputs and exports name the process that made them.
What one process may take away from another hangs on whether that one has ended, so only proof is
proof: the system says that there is no such process, or the process id is another process's by
now, or the machine has started anew. Everything else is doubt, and doubt counts as life. A process
that cannot be seen is no dead one: ``/proc`` may hide those of other users (``hidepid``, systemd's
``ProtectProc``), be another container's, or not be there at all.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
from dataclasses import dataclass

_FIRST_TIME_NAMESPACE = "time:[4026531834]"
_MACHINE_ID = re.compile(r"(?!0+\Z)[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, named so that another one can tell whether it still runs.

    Attributes:
        machine: The computer.
        boot: The computer's current run.
        space: The world in which process ids and start times count; a container has its own.
        pid: The process id.
        started: When it began, in the kernel's ticks since boot.

    Text is empty where the system does not tell.
    """

    machine: str
    boot: str
    space: str
    pid: int
    started: str


def this_process() -> Process:
    """This one."""
    machine = machine_id()
    return Process(
        # A machine id alone may be baked into an image that many machines run.
        machine=f"{socket.gethostname()} {machine}" if machine else "",
        boot=boot_id(),
        space=space(),
        pid=os.getpid(),
        started=start_time(),
    )


def has_ended(process: Process, here: Process) -> bool:
    """Whether a process has provably ended.

    Args:
        process: Which one.
        here: This one, whose texts may be hashed if those of ``process`` are too.
    """
    if not (process.boot and here.boot):
        return False
    if process.boot != here.boot:
        # The same machine has started anew since: none of its processes of then is left.
        return bool(here.machine) and process.machine == here.machine
    return _same_place(process, here) and _runs(process) is False


def is_running(process: Process, here: Process) -> bool:
    """Whether a process provably runs; the arguments are those of ``has_ended``."""
    return bool(process.boot) and _same_place(process, here) and _runs(process) is True


def machine_id() -> str:
    """The id of this installation; empty where it has none of its own yet."""
    text = _read("/etc/machine-id").strip().decode("ascii", "replace")
    return text if _MACHINE_ID.match(text) else ""


def boot_id() -> str:
    """The id of the computer's current run."""
    return _read("/proc/sys/kernel/random/boot_id").strip().decode("ascii", "replace")


def space() -> str:
    """The namespaces in which this process's id and start time count."""
    pids, times = (_link(f"/proc/self/ns/{kind}") for kind in ("pid", "time"))
    # Start times are those of the reader's time namespace, which hardly anybody has.
    return pids if times in ("", _FIRST_TIME_NAMESPACE) else f"{pids} {times}"


def start_time() -> str:
    """When this process began."""
    return _state_and_start(os.getpid())[1]


def _same_place(process: Process, here: Process) -> bool:
    """Whether the ids of both count in one world. Copies of one virtual machine share its boot."""
    places = [(one.machine, one.boot, one.space) for one in (process, here)]
    return bool(process.space) and places[0] == places[1]


def _runs(process: Process) -> bool | None:
    """Whether a process of this space runs; None where nothing proves either."""
    if process.pid < 1:
        return None  # kill() gives these numbers another meaning
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # Another user's, or nothing that this process may ask about.
        pass
    state, started = _state_and_start(process.pid)
    if state in ("Z", "X"):
        return False  # it has closed its files; only its parent has not asked for its end yet
    if not (started and process.started):
        return None
    return started == process.started  # else the id was given away anew


def _state_and_start(pid: int) -> tuple[str, str]:
    """State and start of a process of this space; empty where ``/proc`` does not show it."""
    if not _sees_own_space(os.getpid()):
        return "", ""
    # Bytes: the name of the command among them may be cut within a letter. It may hold spaces and
    # parentheses too; the fields follow its last parenthesis.
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(fields) < 20 or not fields[19].isdigit():
        return "", ""
    return fields[0].decode("ascii", "replace"), fields[19].decode("ascii")


@functools.cache
def _sees_own_space(pid: int) -> bool:
    """Whether ``/proc`` counts processes as this one does, not as another container."""
    return _link("/proc/self") == str(pid)


def _read(path: str) -> bytes:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - one system call, and asked at every start
    except OSError:
        return ""
