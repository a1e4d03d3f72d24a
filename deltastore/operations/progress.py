"""How long operations tell whoever watches how far they are."""

from __future__ import annotations

from typing import Protocol


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
