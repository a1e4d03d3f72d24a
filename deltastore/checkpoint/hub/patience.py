"""How long a server is waited for: as long as it sends, not as long as it is connected."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deltastore.checkpoint.hub import limits


class TooSlowError(TimeoutError):
    """A server kept us waiting for longer than it may."""


class Patience:
    """Time that runs while something is asked for, and is won back by what arrives.

    It starts full, with ``PATIENCE_S``. A server that sends a byte now and then wins next to
    nothing by it; one that is slow but steady is never stopped, however large the file is. Several
    requests at once may share one; thread-safe.
    """

    def __init__(self, *, total_s: float | None = None) -> None:
        """Start full.

        Args:
            total_s: The most seconds altogether; None where only what arrives counts.
        """
        from huggingface_hub import constants

        # Who allows a single read more time than that means it.
        own = max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
        self._full_s = max(limits.PATIENCE_S, float(own))
        self._left_s = self._full_s
        self._total_s = total_s
        self._allowed_s = total_s
        self._waits_s = limits.WAITS_S
        self._active = 0
        self._since = 0.0
        self._lock = threading.Lock()
        self.arrived_bytes = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Time runs inside."""
        with self._lock:
            if self._active == 0:
                self._since = time.monotonic()
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._run()
                self._active -= 1

    def arrived(self, nbytes: int) -> None:
        """So many bytes have come."""
        with self._lock:
            self.arrived_bytes += nbytes
            self._win(nbytes / limits.BYTES_PER_S)

    def answered(self) -> None:
        """An answer is complete."""
        with self._lock:
            self._win(limits.ANSWER_S)

    def excuse(self) -> None:
        """The time since the last look was ours, not the server's."""
        with self._lock:
            self._since = time.monotonic()

    def check(self) -> None:
        """Look at the clock.

        Raises:
            TooSlowError: There is no patience left.
        """
        with self._lock:
            self._run()
            if self._left_s < 0:
                raise TooSlowError(f"it sent too little for {self._full_s:.0f} s")
            if self._allowed_s is not None and self._allowed_s < 0:
                raise TooSlowError(f"it was not done within {self._total_s:.0f} s")

    def may_wait(self, seconds: float) -> bool:
        """Whether the server may ask to wait so long."""
        return seconds <= self._waits_s

    def waited(self, seconds: float) -> None:
        """The server asked to wait so long, and it was done."""
        with self._lock:
            self._waits_s -= seconds

    def _win(self, seconds: float) -> None:
        self._run()
        self._left_s = min(self._full_s, self._left_s + seconds)

    def _run(self) -> None:
        now = time.monotonic()
        passed, self._since = now - self._since, now
        if self._active:
            self._left_s -= passed
            if self._allowed_s is not None:
                self._allowed_s -= passed
