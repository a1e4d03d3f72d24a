"""Who writes: a token for this process, and whether the process behind a token is dead.

The token stands in the names of temporary files and leases, so that what a dead process left is
recognised without a clock. "Dead" must be proven: on another machine, or in another container,
a process id says nothing, and whoever cannot be checked counts as alive.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
from pathlib import Path

_TOKEN = re.compile(
    r"(?P<machine>[0-9a-f]{8})(?P<boot>[0-9a-f]{8})(?P<space>[0-9a-f]{8})"
    r"-(?P<pid>[0-9]{1,10})-(?P<started>[0-9]{1,20})(?![0-9])"
)
_UNKNOWN = "0" * 8


def owner_token() -> str:
    """A token for this process: machine, boot, process-id namespace, process id, start time.

    Two processes never share one on systems with ``/proc``; elsewhere the parts that cannot be
    known are zeros and nobody is ever proven dead.
    """
    pid = os.getpid()
    return f"{'-'.join((''.join(_place()), str(pid), _started(pid) or '0'))}"


def is_dead(text: str) -> bool:
    """Whether ``text`` begins with the token of a process that has provably ended."""
    match = _TOKEN.match(text)
    if match is None:
        return False
    machine, boot, space = _place()
    if boot == _UNKNOWN or match["boot"] == _UNKNOWN:
        return False
    if match["boot"] != boot:
        # The same machine has started anew since: none of its processes of then is left.
        return machine != _UNKNOWN and match["machine"] == machine
    if match["space"] != space:
        return False
    return _started(int(match["pid"])) != match["started"]


def is_alive(text: str) -> bool:
    """Whether ``text`` begins with the token of a process that provably runs, on this machine."""
    match = _TOKEN.match(text)
    if match is None or match["started"] == "0":
        return False
    _, boot, space = _place()
    if _UNKNOWN in (boot, space) or (match["boot"], match["space"]) != (boot, space):
        return False
    return _started(int(match["pid"])) == match["started"]


def token_of(text: str) -> str | None:
    """The token that ``text`` begins with; None where it begins with none."""
    match = _TOKEN.match(text)
    return match[0] if match else None


@functools.cache
def _place() -> tuple[str, str, str]:
    machine_id = _read("/etc/machine-id")
    boot_id = _read("/proc/sys/kernel/random/boot_id")
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    # A machine id alone may be baked into an image that many machines run.
    machine = f"{socket.gethostname()} {machine_id}" if machine_id else ""
    return _short(machine), _short(boot_id), _short(namespace)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8] if text else _UNKNOWN


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When process ``pid`` began, in the kernel's ticks since boot; None where there is none."""
    stat = _read(f"/proc/{pid}/stat")
    # The command name may hold spaces and parentheses; the fields follow its last parenthesis.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else None
