"""Fetching what the local cache lacks of a snapshot."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from deltastore.checkpoint.hub import limits
from deltastore.checkpoint.hub.cache import has_blob, write_ref
from deltastore.checkpoint.hub.downloading import download
from deltastore.checkpoint.hub.downloads import Downloads
from deltastore.checkpoint.hub.failures import hub_error
from deltastore.checkpoint.hub.patience import Patience
from deltastore.checkpoint.hub.snapshot import Snapshot
from deltastore.errors import DeltastoreError, HubError, NoSpaceError, shown
from deltastore.manifest import format as fmt
from deltastore.system.threads import Workers

_SMALL_AT_ONCE = 4


def fetch_small(
    snapshot: Snapshot, filenames: Iterable[str], downloads: Downloads
) -> dict[str, Path]:
    """The files by name, downloaded where the cache lacks them, several at once.

    Raises:
        HubError: One of them cannot be had, or they are too many or too large.
        NoSpaceError: The cache's file system is full.
    """
    names = list(filenames)
    found = {name: path for name in names if (path := snapshot.cached(name)) is not None}
    missing = [name for name in names if name not in found]
    if not missing:
        return found
    patience = Patience(total_s=_check_small(snapshot, missing))
    with Workers(_SMALL_AT_ONCE, name="small-files") as pool:
        paths = list(pool.map(lambda name: _download(snapshot, name, patience, downloads), missing))
    return found | dict(zip(missing, paths, strict=True))


def _check_small(snapshot: Snapshot, names: list[str]) -> float:
    """Refuse what the list says is too much; the seconds that the rest may take."""
    if len(names) > limits.MAX_SMALL_FILES:
        raise _too_much(snapshot, f"{len(names)} small files", f"at most {limits.MAX_SMALL_FILES}")
    total = 0
    for name in names:
        size, most = snapshot.file(name).size or 0, _most_of_small(name)
        if size > most:
            raise _too_much(snapshot, f"{shown(name)} of {size} bytes", f"at most {most}")
        total += size
    if total > fmt.MAX_SMALL_FILES_BYTES:
        raise _too_much(
            snapshot,
            f"small files of {total} bytes together",
            f"at most {fmt.MAX_SMALL_FILES_BYTES}",
        )
    return limits.SMALL_FILES_S + total / limits.SMALL_FILES_BYTES_PER_S


def _too_much(snapshot: Snapshot, what: str, expected: str) -> HubError:
    return HubError(
        f"{snapshot.label} has {what}; expected {expected}.",
        hint="Such a file is no part of a model; look what it is before you fetch it.",
        repo=snapshot.repo,
        revision=snapshot.commit,
    )


def fetch(snapshot: Snapshot, filename: str, downloads: Downloads) -> Path:
    """A weight file's path in the local cache, downloaded if it is not there.

    What is downloaded is compared with the hub's own sha256 where it gives one.

    Raises:
        HubError: It cannot be had, or is not what the hub says it is.
        NoSpaceError: The cache's file system is full.
    """
    found = snapshot.cached(filename)
    if found is not None:
        return found
    if snapshot.file(filename).size is None:
        raise HubError(
            f"The hub does not say how large {filename} of {snapshot.label} is.",
            hint=f"Fetch it beforehand: `{snapshot.command}`.",
            repo=snapshot.repo,
            revision=snapshot.commit,
        )
    return _download(snapshot, filename, Patience(), downloads)


def _download(snapshot: Snapshot, filename: str, patience: Patience, downloads: Downloads) -> Path:
    file = snapshot.file(filename)
    nbytes = file.size or 0
    watched = _Watched(downloads)
    downloads.begin_download(filename, nbytes)
    try:
        path = download(snapshot, file, _most_of_small(filename), patience, watched)
    except DeltastoreError:
        raise
    except Exception as error:
        if watched.stopped is not None:
            raise watched.stopped from None
        raise hub_error(
            error,
            repo=snapshot.repo,
            revision=snapshot.commit,
            doing=f"{filename} of {snapshot.label} cannot be fetched:",
            hint=f"Check the connection, or fetch it beforehand: `{snapshot.command}`.",
        ) from error
    finally:
        downloads.end_download(nbytes)
    if not snapshot.is_recorded:
        snapshot.is_recorded = True
        write_ref(snapshot.repo, snapshot.revision or "main", snapshot.commit)
    return path


def require_space(snapshot: Snapshot, filenames: Iterable[str]) -> None:
    """Make sure that the missing ones of these files fit into the local cache.

    Raises:
        NoSpaceError: They do not.
    """
    files = snapshot.files or {}
    missing = [name for name in filenames if name in files and snapshot.cached(name) is None]
    # Another commit may have the same file: then only its name is missing.
    needed = sum(
        files[name].size or 0
        for name in missing
        if not has_blob(snapshot.repo, files[name].sha256 or files[name].blob, files[name].size)
    )
    place = next(parent for parent in snapshot.folder.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise NoSpaceError(
            f"{snapshot.label} takes {needed / 1e9:.2f} GB more in the hub's local cache at "
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
