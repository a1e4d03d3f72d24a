"""A repository at one commit: what it holds, what of it is in the local cache, and fetching."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from deltastore.checkpoint.files import file_error
from deltastore.checkpoint.hub.downloads import Downloads, Reporter
from deltastore.checkpoint.hub.failures import download_command, hub_error
from deltastore.checkpoint.hub.retrying import retrying
from deltastore.errors import HubError, NoSpaceError

SHA256 = re.compile(r"[0-9a-f]{64}\Z")

_SMALL_AT_ONCE = 4
_PIECE_BYTES = 1 << 20


def blob_sha256(path: Path) -> str | None:
    """The sha256 (hex) by whose name the local cache keeps a file, if it is one of its blobs.

    Small files, which the hub does not keep by their sha256, are blobs of shorter names.
    """
    real = Path(os.path.realpath(path))
    return real.name if real.parent.name == "blobs" and SHA256.match(real.name) else None


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; ``sha256`` (hex) only where the hub names it, as for all weights."""

    name: str
    size: int | None
    sha256: str | None


@dataclass(slots=True)
class Snapshot:
    """A repository at one commit; made by :func:`pin`.

    Attributes:
        repo: ``org/name``.
        revision: What the user asked for; None for the default branch.
        commit: 40 hex digits.
        files: All files by name; None where only the local cache was asked.
        folder: Where the local cache keeps this commit's files, as far as it has them.
        unreachable: Why the hub could not be asked, though it should have been.
    """

    repo: str
    revision: str | None
    commit: str
    files: dict[str, HubFile] | None
    folder: Path
    unreachable: str = ""
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
        """The file in the local cache, if it is there."""
        path = self.folder / filename
        return path if path.is_file() else None

    def fetch_small(self, filenames: Iterable[str], downloads: Downloads) -> dict[str, Path]:
        """The files by name, downloaded where the cache lacks them, several at once.

        Raises:
            HubError: One of them cannot be had.
            NoSpaceError: The cache's file system is full.
        """
        names = list(filenames)
        if all(self.cached(name) for name in names):
            return {name: self.folder / name for name in names}
        with ThreadPoolExecutor(_SMALL_AT_ONCE) as pool:
            paths = list(pool.map(lambda name: self.fetch(name, downloads), names))
        return dict(zip(names, paths, strict=True))

    def fetch(self, filename: str, downloads: Downloads) -> Path:
        """The file's path in the local cache, downloaded if it is not there.

        What is downloaded is compared with the hub's own sha256 where it gives one.

        Raises:
            HubError: It cannot be had, or is not what the hub says it is.
            NoSpaceError: The cache's file system is full.
            CheckpointError: The cache cannot be written or read.
        """
        found = self.cached(filename)
        if found is not None:
            return found
        import huggingface_hub

        file = (self.files or {}).get(filename) or HubFile(filename, None, None)
        nbytes = file.size or 0
        reporter = Reporter(downloads)
        downloads.begin_download(filename, nbytes)
        try:
            path = Path(
                retrying(
                    lambda: huggingface_hub.hf_hub_download(
                        self.repo,
                        filename,
                        revision=self.commit,
                        tqdm_class=reporter.bar_class(),
                        library_name="deltastore",
                    ),
                    cut=True,
                )
            )
        except Exception as error:
            if reporter.stopped is not None:
                raise reporter.stopped from None
            raise hub_error(
                error,
                repo=self.repo,
                revision=self.commit,
                doing=f"{filename} of {self.label} cannot be fetched:",
                hint=f"Check the connection, or fetch it beforehand: `{self.command}`.",
            ) from error
        finally:
            downloads.end_download(nbytes)
        if file.sha256 is not None:
            self._verify(path, file)
        self._record_revision()
        return path

    def require_space(self, filenames: Iterable[str]) -> None:
        """Make sure that the missing ones of these files fit into the local cache.

        Raises:
            NoSpaceError: They do not.
        """
        files = self.files or {}
        missing = [name for name in filenames if name in files and self.cached(name) is None]
        needed = sum(files[name].size or 0 for name in missing)
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

    def _verify(self, path: Path, file: HubFile) -> None:
        """The library compares sizes only; digests that are remembered must be of these bytes."""
        digest = hashlib.sha256()
        try:
            with path.open("rb") as opened:
                while piece := opened.read(_PIECE_BYTES):
                    digest.update(piece)
            if digest.hexdigest() == file.sha256:
                return
            # Both: the blob would be linked to again, and found whole by its name.
            blob = Path(os.path.realpath(path))
            path.unlink()
            blob.unlink(missing_ok=True)
        except OSError as error:
            raise file_error(error, path, "read") from error
        raise HubError(
            f"{file.name} of {self.label} was not fetched whole: expected sha256 {file.sha256}, "
            f"got {digest.hexdigest()}.",
            hint="It was removed from the cache; run the command again.",
            repo=self.repo,
            revision=self.commit,
        )

    def _record_revision(self) -> None:
        """Note which commit the branch meant, as the library does, so that it is found offline."""
        revision = self.revision or "main"
        parts = PurePosixPath(revision)
        if self._recorded or revision == self.commit or parts.is_absolute() or ".." in parts.parts:
            return
        self._recorded = True
        place = self.folder.parent.parent / "refs" / parts
        # What cannot be noted is only not found offline.
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            new = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.tmp")
            new.write_text(self.commit)
            new.replace(place)
