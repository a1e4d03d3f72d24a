"""Time, processor time and peak memory of one whole process.

The kernel counts the memory of the process that forks towards the peak of the process that it
becomes, so a benchmark that has looked at gigabytes cannot start what it measures. Run as a
script, this module is the small launcher in between; it imports next to nothing for that reason.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of a command took."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


class CommandFailedError(Exception):
    """A measured command exited with an error."""


def measure(argv: list[str], *, output: Path, env: dict[str, str]) -> Usage:
    """Run a command to its end.

    Args:
        argv: the command; the first word is looked up in PATH.
        output: gets what the command prints on stdout; stderr goes to a file beside it.
        env: variables to set on top of the current ones.

    Raises:
        CommandFailedError: it exited with an error; the message ends with what it said.
    """
    errors = output.with_suffix(".stderr")
    launcher = [sys.executable, "-I", "-S", __file__, str(output), str(errors), *argv]
    # What the command before it left to be written would be written at this one's cost.
    os.sync()
    # A shell that forbids Python to keep compiled modules would have each run compile them again.
    kept = {key: v for key, v in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(launcher, env=kept | env, capture_output=True, check=True)
    code, wall_s, cpu_s, peak_bytes = json.loads(done.stdout)
    if code:
        said = errors.read_text(errors="replace").strip()[-2000:]
        raise CommandFailedError(f"{' '.join(argv)} exited with {code}:\n{said}")
    return Usage(wall_s, cpu_s, peak_bytes)


def _launch(output: str, errors: str, *argv: str) -> None:
    create = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    redirect = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, output, create, 0o644),
        (os.POSIX_SPAWN_OPEN, 2, errors, create, 0o644),
    ]
    start = time.perf_counter()
    child = os.posix_spawnp(argv[0], argv, os.environ, file_actions=redirect)
    _, status, usage = os.wait4(child, 0)
    wall_s = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    peak_bytes = usage.ru_maxrss * RSS_UNIT
    print(json.dumps([code, wall_s, usage.ru_utime + usage.ru_stime, peak_bytes]))


if __name__ == "__main__":
    _launch(*sys.argv[1:])
