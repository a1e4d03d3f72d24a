"""Signals that end a command: all of them as Ctrl-C does, so that it cleans up on the way out."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_PATIENCE_S = 5.0
"""How long the clean-up is left alone. Who asks again after that is not kept waiting."""

# A terminal that goes away sends SIGHUP, and so does its shell; a service's manager SIGTERM, and
# perhaps SIGHUP; a limit on processor time (`ulimit -t`, a batch system's) SIGXCPU, every second.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)


@contextlib.contextmanager
def ended_as_interrupted() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt where a signal would end the process, and once for several.

    What the caller ignores (``nohup``, a job in the background) stays ignored, and what it handles
    stays its own.

    Yields:
        The numbers of the signals that came.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    until = 0.0

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal until
        came.append(number)
        if time.monotonic() >= until:
            until = time.monotonic() + _PATIENCE_S
            raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt)
        for number in _ENDING
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Let nothing end a process that is about to end, and says with its exit code why."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
