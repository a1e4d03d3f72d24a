"""How a download tells whoever watches how far it is."""

from __future__ import annotations

from typing import Any, Protocol


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


class Reporter:
    """Makes the bars that huggingface_hub would draw, which report instead of drawing.

    An exception of the watcher is kept: it has to come out as what it is, however many layers
    of the library it passes on its way.
    """

    def __init__(self, watcher: Downloads) -> None:
        self._watcher = watcher
        self._counted = 0
        self.stopped: BaseException | None = None

    def bar_class(self) -> type[Any]:
        """A class of bars for one call of ``hf_hub_download``; a second call starts again."""
        from huggingface_hub.utils.tqdm import tqdm

        reporter = self
        if self._counted:
            self.advance(-self._counted)

        class Bar(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:
                reporter.advance(int(n or 0))

            # Where files come as chunks, what crosses the network is counted apart: not here.
            def update_transfer(self, n: float | None = 1) -> None:
                pass

            def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
                pass

        return Bar

    def advance(self, count: int) -> None:
        """Pass on what has arrived."""
        self._counted += count
        try:
            self._watcher.advance_download(count)
        except BaseException as error:
            self.stopped = error
            raise
