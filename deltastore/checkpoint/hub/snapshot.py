"""A repository at one commit: what it holds, and what of it is in the local cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deltastore.checkpoint.hub.cache import cached_file
from deltastore.checkpoint.hub.exchange import Hub
from deltastore.checkpoint.hub.failures import download_command
from deltastore.checkpoint.hub.listing import HubFile
from deltastore.checkpoint.hub.patience import Patience


@dataclass(slots=True)
class Snapshot:
    """A repository at one commit; made by :func:`pin`.

    Attributes:
        repo: ``org/name``.
        revision: What the user asked for; None for the default branch.
        commit: 40 hex digits.
        files: All files by name; None where only the local cache was asked.
        folder: Where the local cache keeps this commit's files, as far as it has them.
        hub: Whom to ask for the files.
        unreachable: Why the hub could not be asked, though it should have been.
        patience: How long all short reads together are waited for.
        is_recorded: The local cache knows what ``revision`` means.
    """

    repo: str
    revision: str | None
    commit: str
    files: dict[str, HubFile] | None
    folder: Path
    hub: Hub
    unreachable: str = ""
    patience: Patience = field(default_factory=Patience, repr=False)
    is_recorded: bool = field(default=False, repr=False)

    @property
    def label(self) -> str:
        """The repository and its commit, for messages."""
        return f"{self.repo}@{self.commit[:12]}"

    @property
    def command(self) -> str:
        """The command that fetches all of it."""
        return download_command(self.repo, self.commit)

    def top_level(self) -> list[str]:
        """The names of the files that are in no folder, sorted."""
        return sorted(name for name in self.files or () if "/" not in name)

    def cached(self, filename: str) -> Path | None:
        """The file in the local cache, if it is there.

        Raises:
            HubError: It is a link out of the cache.
        """
        return cached_file(self.repo, self.commit, filename)

    def file(self, filename: str) -> HubFile:
        """What the hub says of a file; of one that it did not list, nothing."""
        return (self.files or {}).get(filename) or HubFile(filename, None, None)
