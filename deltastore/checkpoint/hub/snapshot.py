"""A repository at one commit: what it holds, what of it is in the local cache, and fetching."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from deltastore.checkpoint.hub import limits
from deltastore.checkpoint.hub.cache import cached_file, has_blob, write_ref
from deltastore.checkpoint.hub.downloading import download
from deltastore.checkpoint.hub.downloads import Downloads
from deltastore.checkpoint.hub.exchange import Hub
from deltastore.checkpoint.hub.failures import download_command, hub_error
from deltastore.checkpoint.hub.listing import HubFile
from deltastore.checkpoint.hub.patience import Patience
from deltastore.errors import DeltastoreError, HubError, NoSpaceError, shown
from deltastore.manifest import format as fmt
from deltastore.system.threads import Workers

_SMALL_AT_ONCE = 4


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
    """

    repo: str
    revision: str | None
    commit: str
    files: dict[str, HubFile] | None
    folder: Path
    hub: Hub
    unreachable: str = ""
    patience: Patience = field(default_factory=Patience, repr=False)
    _recorded: bool = field(default=False, repr=False)

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

    def fetch_small(self, filenames: Iterable[str], downloads: Downloads) -> dict[str, Path]:
        """The files by name, downloaded where the cache lacks them, several at once.

        Raises:
            HubError: One of them cannot be had, or they are too many or too large.
            NoSpaceError: The cache's file system is full.
        """
        names = list(filenames)
        found = {name: path for name in names if (path := self.cached(name)) is not None}
        missing = [name for name in names if name not in found]
        if not missing:
            return found
        patience = Patience(total_s=self._check_small(missing))
        with Workers(_SMALL_AT_ONCE, name="small-files") as pool:
            paths = list(pool.map(lambda name: self._download(name, patience, downloads), missing))
        return found | dict(zip(missing, paths, strict=True))

    def _check_small(self, names: list[str]) -> float:
        """Refuse what the list says is too much; the seconds that the rest may take."""
        if len(names) > limits.MAX_SMALL_FILES:
            raise self._too_much(f"{len(names)} small files", f"at most {limits.MAX_SMALL_FILES}")
        total = 0
        for name in names:
            size, most = self._file(name).size or 0, _most_of_small(name)
            if size > most:
                raise self._too_much(f"{shown(name)} of {size} bytes", f"at most {most}")
            total += size
        if total > fmt.MAX_SMALL_FILES_BYTES:
            raise self._too_much(
                f"small files of {total} bytes together", f"at most {fmt.MAX_SMALL_FILES_BYTES}"
            )
        return limits.SMALL_FILES_S + total / limits.SMALL_FILES_BYTES_PER_S

    def _too_much(self, what: str, expected: str) -> HubError:
        return HubError(
            f"{self.label} has {what}; expected {expected}.",
            hint="Such a file is no part of a model; look what it is before you fetch it.",
            repo=self.repo,
            revision=self.commit,
        )

    def _file(self, filename: str) -> HubFile:
        return (self.files or {}).get(filename) or HubFile(filename, None, None)

    def fetch(self, filename: str, downloads: Downloads) -> Path:
        """A weight file's path in the local cache, downloaded if it is not there.

        What is downloaded is compared with the hub's own sha256 where it gives one.

        Raises:
            HubError: It cannot be had, or is not what the hub says it is.
            NoSpaceError: The cache's file system is full.
        """
        found = self.cached(filename)
        if found is not None:
            return found
        if self._file(filename).size is None:
            raise HubError(
                f"The hub does not say how large {filename} of {self.label} is.",
                hint=f"Fetch it beforehand: `{self.command}`.",
                repo=self.repo,
                revision=self.commit,
            )
        return self._download(filename, Patience(), downloads)

    def _download(self, filename: str, patience: Patience, downloads: Downloads) -> Path:
        file = self._file(filename)
        nbytes = file.size or 0
        watched = _Watched(downloads)
        downloads.begin_download(filename, nbytes)
        try:
            path = download(self, file, _most_of_small(filename), patience, watched)
        except DeltastoreError:
            raise
        except Exception as error:
            if watched.stopped is not None:
                raise watched.stopped from None
            raise hub_error(
                error,
                repo=self.repo,
                revision=self.commit,
                doing=f"{filename} of {self.label} cannot be fetched:",
                hint=f"Check the connection, or fetch it beforehand: `{self.command}`.",
            ) from error
        finally:
            downloads.end_download(nbytes)
        if not self._recorded:
            self._recorded = True
            write_ref(self.repo, self.revision or "main", self.commit)
        return path

    def require_space(self, filenames: Iterable[str]) -> None:
        """Make sure that the missing ones of these files fit into the local cache.

        Raises:
            NoSpaceError: They do not.
        """
        files = self.files or {}
        missing = [name for name in filenames if name in files and self.cached(name) is None]
        # Another commit may have the same file: then only its name is missing.
        needed = sum(
            files[name].size or 0
            for name in missing
            if not has_blob(self.repo, files[name].sha256 or files[name].blob, files[name].size)
        )
        place = next(parent for parent in self.folder.parents if parent.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise NoSpaceError(
                f"{self.label} takes {needed / 1e9:.2f} GB more in the hub's local cache at "
                f"{place}, where {free / 1e9:.2f} GB are free.",
                hint="Free some space, or put the cache elsewhere: `export HF_HOME=DIR`.",
                needed=needed,
                available=free,
            )


def _most_of_small(name: str) -> int:
    return limits.MAX_INDEX_BYTES if name.endswith(".index.json") else fmt.MAX_SMALL_FILE_BYTES


class _Watched:
    """Passes on what happens; an exception of the watcher is kept, to come out as what it is."""

    def __init__(self, watcher: Downloads) -> None:
        self._watcher = watcher
        self.stopped: BaseException | None = None

    def begin_download(self, filename: str, nbytes: int) -> None:
        self._watcher.begin_download(filename, nbytes)

    def advance_download(self, done_bytes: int) -> None:
        try:
            self._watcher.advance_download(done_bytes)
        except BaseException as error:
            self.stopped = error
            raise

    def end_download(self, nbytes: int) -> None:
        self._watcher.end_download(nbytes)

    def warn(self, message: str) -> None:
        self._watcher.warn(message)
