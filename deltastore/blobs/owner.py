"""Who writes: a token for this process, and whether the process behind a token is dead.

The token stands in the names of temporary files and leases, so that what a dead process left is
recognised without a clock. "Dead" must be proven (see ``processes``): on another machine, or in
another container, a process id says nothing, and whoever cannot be checked counts as alive.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re

from deltastore.system import processes
from deltastore.system.processes import Process

_TOKEN = re.compile(
    r"(?P<machine>[0-9a-f]{8})(?P<boot>[0-9a-f]{8})(?P<space>[0-9a-f]{8})"
    r"-(?P<pid>[0-9]{1,10})-(?P<started>[0-9]{1,20})(?![0-9])"
)
_TEXTS = ("machine", "boot", "space", "started")
_UNKNOWN = "0" * 8


def owner_token() -> str:
    """A token for this process: machine, boot, process-id namespace, process id, start time.

    Two processes never share one on systems with ``/proc``; elsewhere the parts that cannot be
    known are zeros and nobody is ever proven dead.
    """
    here = _here(os.getpid())
    place = "".join(part or _UNKNOWN for part in (here.machine, here.boot, here.space))
    return f"{place}-{here.pid}-{here.started or '0'}"


def is_dead(text: str) -> bool:
    """Whether ``text`` begins with the token of a process that has provably ended."""
    process = _parsed(text)
    return process is not None and processes.has_ended(process, _here(os.getpid()))


def is_alive(text: str) -> bool:
    """Whether ``text`` begins with the token of a process that provably runs, on this machine."""
    process = _parsed(text)
    return process is not None and processes.is_running(process, _here(os.getpid()))


def token_of(text: str) -> str | None:
    """The token that ``text`` begins with; None where it begins with none."""
    match = _TOKEN.match(text)
    return match[0] if match else None


@functools.cache
def _here(_pid: int) -> Process:
    """This process as tokens name it; by its id, as a child of a fork is another one."""
    here = processes.this_process()
    return dataclasses.replace(
        here, machine=_short(here.machine), boot=_short(here.boot), space=_short(here.space)
    )


def _parsed(text: str) -> Process | None:
    match = _TOKEN.match(text)
    if match is None:
        return None
    machine, boot, space, started = (match[name] for name in _TEXTS)
    return Process(
        machine="" if machine == _UNKNOWN else machine,
        boot="" if boot == _UNKNOWN else boot,
        space="" if space == _UNKNOWN else space,
        pid=int(match["pid"]),
        started="" if started == "0" else started,
    )


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8] if text else ""
