"""What the global options say, and what follows from them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltastore.cli.output import Output
from deltastore.cli.place import configured_index, locate_store

if TYPE_CHECKING:
    from deltastore.execution.progress import Progress
    from deltastore.store import Store


@dataclass
class Session:
    """The global options of one call; filled while the command line is parsed."""

    store: str | None = None
    json: bool = False
    quiet: bool = False

    @property
    def store_path(self) -> Path:
        """The directory of the store, which need not exist."""
        return locate_store(self.store)

    @property
    def index(self) -> str | None:
        """Where the user wants the store's index; None where that is left open."""
        return configured_index(self.store)

    @property
    def output(self) -> Output:
        """Where results go."""
        return Output(json=self.json, quiet=self.quiet)

    def open_store(self, *, create: bool = False) -> Store:
        """The store that the user means.

        Args:
            create: Make it when it does not exist; otherwise that is an error.
        """
        from deltastore.store import open_store

        return open_store(self.store_path, create=create, index=self.index)

    def progress(self) -> AbstractContextManager[Progress]:
        """Shows on a terminal how far an operation is, and passes on its warnings."""
        from deltastore.cli.progress import show_progress

        return show_progress(bars=not self.quiet)
