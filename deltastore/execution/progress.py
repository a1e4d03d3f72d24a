"""How long operations tell whoever watches how far they are."""

from __future__ import annotations

import threading
from typing import Protocol

from deltastore.execution.thread_pool import check_stopped
from deltastore.text import excerpt, sentence


class Progress(Protocol):
    """Receives progress in bytes. Methods may be called from any thread."""

    def start(self, label: str, total_bytes: int) -> None:
        """A stage begins that will work through ``total_bytes``; the one before it has ended."""

    def advance(self, done_bytes: int) -> None:
        """``done_bytes`` more are done."""

    def warn(self, message: str) -> None:
        """Something the user should know, though the work goes on."""


class Silent:
    """Nobody watches."""

    def start(self, label: str, total_bytes: int) -> None:
        """Ignore."""

    def advance(self, done_bytes: int) -> None:
        """Ignore."""

    def warn(self, message: str) -> None:
        """Ignore."""


class Staged:
    """Progress whose stages are interrupted by downloads, and go on after them.

    Args:
        watcher: Who is told.
    """

    def __init__(self, watcher: Progress) -> None:
        self._watcher = watcher
        self._lock = threading.Lock()
        self._label = ""
        self._total = 0
        self._done = 0
        self._downloads = 0
        self._to_fetch = 0
        self._fetched = 0

    def start(self, label: str, total_bytes: int) -> None:
        """A stage begins."""
        with self._lock:
            self._label, self._total, self._done = excerpt(label), total_bytes, 0
            if not self._downloads:
                self._watcher.start(self._label, total_bytes)

    def advance(self, done_bytes: int) -> None:
        """Shown at once, or after the download that is going on."""
        with self._lock:
            self._done += done_bytes
            if not self._downloads:
                self._watcher.advance(done_bytes)

    def warn(self, message: str) -> None:
        """Passed on, bounded as an error's message is."""
        self._watcher.warn(sentence(message))

    def begin_download(self, filename: str, nbytes: int) -> None:
        """Raises ``Stopped`` where the threads are to end: a download can take hours."""
        check_stopped()
        with self._lock:
            if not self._downloads:
                self._to_fetch = self._fetched = 0
            self._downloads += 1
            self._to_fetch += nbytes
            what = filename if self._downloads == 1 else f"{self._downloads} files"
            self._watcher.start(f"downloading {excerpt(what)}", self._to_fetch)
            self._watcher.advance(self._fetched)

    def advance_download(self, done_bytes: int) -> None:
        """Raises ``Stopped`` likewise."""
        check_stopped()
        with self._lock:
            self._fetched += done_bytes
            self._watcher.advance(done_bytes)

    def end_download(self, nbytes: int) -> None:
        """The stage that was interrupted is shown again when the last download has ended."""
        with self._lock:
            self._downloads -= 1
            if not self._downloads and self._label:
                self._watcher.start(self._label, self._total)
                self._watcher.advance(self._done)
