"""Downloading one file into the hub's local cache."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from deltastore.checkpoint.hub.addresses import MisbehavedError, NoPartsError
from deltastore.checkpoint.hub.cache import Blobs, open_blobs, snapshot_folder
from deltastore.checkpoint.hub.downloads import Downloads, Unwatched
from deltastore.checkpoint.hub.exchange import Head, ask
from deltastore.checkpoint.hub.listing import HubFile
from deltastore.checkpoint.hub.patience import Patience
from deltastore.checkpoint.hub.ranges import RemoteFile, file_url, require_range
from deltastore.checkpoint.hub.retrying import CutError, persist
from deltastore.checkpoint.hub.snapshot import Snapshot
from deltastore.errors import HubError, shown

_PIECE_BYTES = 1 << 20
_LOOK_S = 0.1

PART_BYTES = 64 << 20
"""A file of more than two such parts comes by several connections: one seldom fills a line."""

PARTS_AT_ONCE = 6


def download(
    snapshot: Snapshot, file: HubFile, most: int, patience: Patience, downloads: Downloads
) -> Path:
    """Download a file of a snapshot; its path in the cache.

    A connection that is cut is taken up where it broke. What the bytes are called in the cache is
    made of the bytes alone: of no header and of nothing else that a server says.

    Args:
        snapshot: The repository at its commit.
        file: The file in it.
        most: The bytes that it may have, if the hub did not say how many it has.
        patience: How long the hub is waited for.
        downloads: Who is told of the progress.

    Raises:
        HubError: It is not what the hub says it is.
        OSError: The cache cannot be written.
        Exception: The network's failures and the hub's refusals; for ``hub_error``.
    """
    known = file.sha256 or file.blob
    with open_blobs(snapshot.repo) as blobs:
        if known is None:
            blob = _fetch(snapshot, blobs, file, most, patience, downloads)
            blobs.link(snapshot.commit, file.name, blob, new=True)
        else:
            with blobs.locked(known, lambda: downloads.advance_download(0)):
                new = not blobs.has(known, file.size)
                blob = known
                if new:
                    blob = _fetch(snapshot, blobs, file, most, patience, downloads)
                blobs.link(snapshot.commit, file.name, blob, new=new)
    return snapshot_folder(snapshot.repo, snapshot.commit) / file.name


def _fetch(
    snapshot: Snapshot,
    blobs: Blobs,
    file: HubFile,
    most: int,
    patience: Patience,
    downloads: Downloads,
) -> str:
    """Make a blob of what the hub sends; its name."""
    temporary, descriptor = blobs.begin(file.sha256 or file.blob or "unnamed")
    try:
        try:
            _fill(snapshot, file, most, descriptor, patience, downloads)
            name = _name(snapshot, file, descriptor)
        finally:
            os.close(descriptor)
        blobs.finish(temporary, name)
    except BaseException:
        blobs.remove(temporary)
        raise
    return name


def _fill(
    snapshot: Snapshot,
    file: HubFile,
    most: int,
    descriptor: int,
    patience: Patience,
    downloads: Downloads,
) -> None:
    if file.size is not None and file.size > 2 * PART_BYTES:
        parts = _Parts(snapshot, file, descriptor, patience, downloads)
        try:
            parts.run()
            return
        except NoPartsError:
            downloads.advance_download(-parts.told)
            os.ftruncate(descriptor, 0)
    _Filling(snapshot, file, most, descriptor, patience, downloads).run()


class _LeftError(Exception):
    """Another part has failed, or the user wants to stop."""


class _Parts(Unwatched):
    """Fills a file by several connections; its own watcher for them."""

    def __init__(
        self,
        snapshot: Snapshot,
        file: HubFile,
        descriptor: int,
        patience: Patience,
        downloads: Downloads,
    ) -> None:
        assert file.size is not None
        self._remote = RemoteFile(snapshot, file, self)
        self._size = file.size
        self._descriptor = descriptor
        self._patience = patience
        self._downloads = downloads
        self._done = 0
        self._left = False
        self._lock = threading.Lock()
        self.told = 0

    def run(self) -> None:
        # The first alone: where it shows that there are no parts, nothing else is to be stopped.
        begins = range(0, self._size, PART_BYTES)
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            try:
                self._wait_for([pool.submit(self._part, begins[0])])
                self._wait_for([pool.submit(self._part, begin) for begin in begins[1:]])
            finally:
                self._left = True

    def _wait_for(self, parts: list[Future[None]]) -> None:
        pending = set(parts)
        try:
            while pending:
                ended, pending = wait(pending, _LOOK_S, FIRST_EXCEPTION)
                done = self._done
                new, self.told = done - self.told, done
                self._downloads.advance_download(new)
                for part in ended:
                    part.result()
        finally:
            for part in pending:
                part.cancel()

    def _part(self, begin: int) -> None:
        position = begin

        def takes(piece: bytes) -> None:
            nonlocal position
            _write_all(self._descriptor, piece, position)
            position += len(piece)
            with self._lock:
                self._done += len(piece)

        nbytes = min(PART_BYTES, self._size - begin)
        self._remote.stream(begin, nbytes, takes, self._patience)

    def advance_download(self, done_bytes: int) -> None:
        """Asked by each part now and then."""
        if self._left:
            raise _LeftError

    def warn(self, message: str) -> None:
        """Passed on."""
        self._downloads.warn(message)


class _Filling:
    """Fills a file by one connection, in as many attempts as it takes."""

    def __init__(
        self,
        snapshot: Snapshot,
        file: HubFile,
        most: int,
        descriptor: int,
        patience: Patience,
        downloads: Downloads,
    ) -> None:
        self._hub = snapshot.hub
        self._commit = snapshot.commit
        self._url = file_url(snapshot.hub, snapshot.repo, snapshot.commit, file.name)
        self._size = file.size
        self._most = most if file.size is None else file.size
        self._descriptor = descriptor
        self._patience = patience
        self._downloads = downloads
        self._done = 0
        self._told = 0

    def run(self) -> None:
        persist(self._attempt, self._patience, self._downloads, cut=True)

    def _attempt(self) -> None:
        if self._size is None:
            self._restart()
        wanted = None if not self._done else f"bytes={self._done}-{self._most - 1}"
        if self._done < self._most or self._size in (0, None):
            ask(
                self._hub,
                self._url,
                begins=self._begins,
                takes=self._takes,
                patience=self._patience,
                tells=lambda _: self._tell(),
                byte_range=wanted,
                commit=self._commit,
            )
        self._tell()
        if self._size is not None and self._done < self._size:
            raise CutError(f"{self._done} of {self._size} bytes came")

    def _begins(self, head: Head) -> int:
        if self._done and head.status == 206:
            require_range(head, self._done, self._most, self._most)
        elif head.status == 200:
            # Either all of it was asked for, or the server has no parts: then from the start.
            self._restart()
        else:
            raise MisbehavedError(f"answers with status {head.status}")
        left = self._most - self._done
        stated = head.headers.get("Content-Length")
        if self._size is not None and stated is not None and stated != str(left):
            raise MisbehavedError(f"states {shown(stated)} bytes; expected {left}")
        return left

    def _restart(self) -> None:
        if self._done:
            os.ftruncate(self._descriptor, 0)
            self._done = 0

    def _takes(self, piece: bytes) -> None:
        _write_all(self._descriptor, piece, self._done)
        self._done += len(piece)

    def _tell(self) -> None:
        done = self._done
        new, self._told = done - self._told, done
        self._downloads.advance_download(new)


def _write_all(descriptor: int, piece: bytes, position: int) -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(descriptor, view, position)
        position += written
        view = view[written:]


def _name(snapshot: Snapshot, file: HubFile, descriptor: int) -> str:
    """What git or LFS calls these bytes, which is what the hub's ETag says of honest ones.

    Raises:
        HubError: The hub names another sha256.
    """
    size = os.fstat(descriptor).st_size
    digest = hashlib.sha256()
    if file.sha256 is None:
        # Git's name for a blob, no proof of anything.
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    position = 0
    while piece := os.pread(descriptor, _PIECE_BYTES, position):
        digest.update(piece)
        position += len(piece)
    found = digest.hexdigest()
    if file.sha256 not in (None, found):
        raise HubError(
            f"{file.name} of {snapshot.label} was not fetched whole: expected sha256 "
            f"{file.sha256}, got {found}.",
            hint="It was not kept; run the command again.",
            repo=snapshot.repo,
            revision=snapshot.commit,
        )
    return found
