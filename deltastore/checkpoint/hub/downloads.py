"""How a download tells whoever watches how far it is."""

from __future__ import annotations

from typing import Protocol


class Downloads(Protocol):
    """Receives the progress of downloads, from any thread.

    Every method but ``end_download`` may raise to stop the download.
    """

    def begin_download(self, filename: str, nbytes: int) -> None:
        """A download of ``nbytes`` begins (0 if the size is not known)."""

    def advance_download(self, done_bytes: int) -> None:
        """``done_bytes`` more have arrived."""

    def end_download(self, nbytes: int) -> None:
        """A download of ``nbytes`` has ended, well or not."""

    def warn(self, message: str) -> None:
        """Something the user should know, though the work goes on."""


class Unwatched:
    """Nobody watches."""

    def begin_download(self, filename: str, nbytes: int) -> None:
        """Ignore."""

    def advance_download(self, done_bytes: int) -> None:
        """Ignore."""

    def end_download(self, nbytes: int) -> None:
        """Ignore."""

    def warn(self, message: str) -> None:
        """Ignore."""
