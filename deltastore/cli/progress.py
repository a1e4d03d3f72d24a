"""Progress bars on a terminal, and warnings wherever stderr goes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deltastore.cli.output import coloured, message
from deltastore.system.threads import started

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from deltastore.execution.progress import Progress

SHOW_AFTER_S = 1.0
"""What is done sooner needs no bar."""

_REDRAW_EVERY_S = 0.1


@contextmanager
def show_progress(*, bars: bool) -> Iterator[Progress]:
    """What an operation reports to while it runs.

    Args:
        bars: Draw bars where stderr is a terminal; warnings are printed in any case.
    """
    if not (bars and sys.stderr is not None and sys.stderr.isatty()):
        yield Warnings()
        return
    bar = Bar()
    try:
        yield bar
    finally:
        bar.close()


class Warnings:
    """Prints warnings, shows no progress."""

    def start(self, label: str, total_bytes: int) -> None:
        """Ignore."""

    def advance(self, done_bytes: int) -> None:
        """Ignore."""

    def warn(self, message_: str) -> None:
        """Print the warning on stderr."""
        message("warning", message_, colour="yellow")


class Bar(Warnings):
    """A bar with rate and remaining time, drawn from the first second on and wiped at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._label = ""
        self._total = 0
        self._done = 0
        self._drawn_at = 0.0
        self._closed = False
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None
        # A timer, because a stage may work for long before it reports for the first time.
        self._timer = threading.Timer(SHOW_AFTER_S, self._show)
        self._timer.daemon = True
        started(self._timer)  # or there is no bar

    def start(self, label: str, total_bytes: int) -> None:
        """Begin a stage; its bar replaces the one before."""
        with self._lock:
            self._label, self._total, self._done = label, total_bytes, 0
            if self._rich is not None:
                self._add_task(self._rich)

    def advance(self, done_bytes: int) -> None:
        """Move the bar on, and redraw it a few times a second at most."""
        with self._lock:
            self._done += done_bytes
            now = time.monotonic()
            if self._rich is None or self._task is None or now - self._drawn_at < _REDRAW_EVERY_S:
                return
            self._drawn_at = now
            self._rich.update(self._task, completed=self._done)

    def warn(self, message_: str) -> None:
        """Print the warning above the bar."""
        with self._lock:
            if self._rich is not None:
                self._rich.stop()
            super().warn(message_)
            if self._rich is not None:
                self._rich.start()

    def close(self) -> None:
        """Wipe the bar."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._rich is not None:
                self._rich.stop()
                self._rich = None

    def _show(self) -> None:
        """Draw the bar for the first time."""
        rich = _new_rich()
        with self._lock:
            if self._closed:
                return
            try:
                rich.start()
            except RuntimeError:  # no thread that would redraw it
                return
            self._rich = rich
            if self._label:
                self._add_task(rich)

    def _add_task(self, rich: RichProgress) -> None:
        """The bar of the stage that runs now; without a total it only moves."""
        if self._task is not None:
            rich.remove_task(self._task)
        self._task = rich.add_task(self._label, total=self._total or None, completed=self._done)


def _new_rich() -> RichProgress:
    """The columns of a bar: stage, bar, share, bytes, rate, remaining time."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, no_color=not coloured(sys.stderr)),
        transient=True,
    )
