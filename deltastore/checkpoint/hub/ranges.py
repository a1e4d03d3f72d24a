"""Parts of a file on the hub, read at positions without downloading it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from deltastore.checkpoint.hub.addresses import MisbehavedError, NoPartsError
from deltastore.checkpoint.hub.downloads import Downloads
from deltastore.checkpoint.hub.exchange import Head, Hub, RefusedError, ask
from deltastore.checkpoint.hub.failures import hub_error
from deltastore.checkpoint.hub.listing import HubFile
from deltastore.checkpoint.hub.patience import Patience
from deltastore.checkpoint.hub.retrying import CutError, persist
from deltastore.checkpoint.hub.snapshot import Snapshot
from deltastore.errors import HubError, shown


def file_url(hub: Hub, repo: str, commit: str, filename: str) -> str:
    """Where a file of a commit is."""
    return f"{hub.endpoint}/{repo}/resolve/{commit}/{quote(filename)}"


def require_range(head: Head, begin: int, end: int, size: int) -> None:
    """Make sure that an answer is the part that was asked for.

    Raises:
        MisbehavedError: It is not.
    """
    if head.status != 206:
        # Reading on would be a download of the whole file.
        raise NoPartsError(f"answers a request for a part with status {head.status}")
    expected, found = f"bytes {begin}-{end - 1}/{size}", head.headers.get("Content-Range")
    if found != expected:
        raise MisbehavedError(f"sends {shown(found)}; expected {expected!r}")


class RemoteFile:
    """A file of a snapshot, by HTTP range requests; thread-safe."""

    def __init__(self, snapshot: Snapshot, file: HubFile, downloads: Downloads) -> None:
        """Prepare; nothing is asked of the hub.

        Raises:
            HubError: The hub does not say how large the file is.
        """
        if file.size is None:
            raise HubError(
                f"The hub does not say how large {file.name} of {snapshot.label} is.",
                hint=f"Fetch it beforehand: `{snapshot.command}`.",
                repo=snapshot.repo,
            )
        self._snapshot = snapshot
        self._downloads = downloads
        self.name = file.name
        self.size = file.size
        self._url = file_url(snapshot.hub, snapshot.repo, snapshot.commit, file.name)
        # Where the hub sent us for this file. Asked directly, every further read is one request.
        self._direct: str | None = None
        self._lock = threading.Lock()

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the file's bytes from ``offset``.

        A connection that is cut is taken up where it broke, a hub that is busy is asked again, a
        few times.

        Raises:
            HubError: The bytes cannot be had.
            ValueError: The range leaves the file; a mistake of the calling code.
        """
        if offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"bytes {offset} to {offset + len(view)} of {self.size}")
        done = 0

        def takes(piece: bytes) -> None:
            nonlocal done
            view[done : done + len(piece)] = piece
            done += len(piece)

        try:
            self.stream(offset, len(view), takes, self._snapshot.patience)
        except HubError:
            raise
        except Exception as error:
            problem = hub_error(
                error,
                repo=self._snapshot.repo,
                revision=self._snapshot.commit,
                doing=f"{self.name} of {self._snapshot.label} cannot be read:",
                hint=f"Check the connection, or fetch it beforehand: `{self._snapshot.command}`.",
            )
            raise problem from error

    def stream(
        self, offset: int, nbytes: int, takes: Callable[[bytes], None], patience: Patience
    ) -> None:
        """Hand on a part of the file, piece by piece in order.

        Raises:
            Exception: The network's failures and the hub's refusals; for ``hub_error``.
        """
        done = 0

        def counts(piece: bytes) -> None:
            nonlocal done
            takes(piece)
            done += len(piece)

        def attempt() -> None:
            self._ask(offset, done, nbytes, counts, patience)
            if done < nbytes:
                raise CutError(f"{done} of {nbytes} bytes came")

        if nbytes:
            persist(attempt, patience, self._downloads, cut=True)

    def _ask(
        self,
        offset: int,
        done: int,
        nbytes: int,
        takes: Callable[[bytes], None],
        patience: Patience,
    ) -> None:
        begin, end = offset + done, offset + nbytes
        with self._lock:
            direct = self._direct
        if direct is not None:
            try:
                self._ask_at(direct, begin, end, takes, patience)
                return
            except RefusedError as error:
                if error.status in (408, 429) or error.status >= 500:
                    raise
                # Signed addresses expire: ask the hub for a new one.
                with self._lock:
                    self._direct = None
        self._ask_at(self._url, begin, end, takes, patience)

    def _ask_at(
        self,
        url: str,
        begin: int,
        end: int,
        takes: Callable[[bytes], None],
        patience: Patience,
    ) -> None:
        def begins(head: Head) -> int:
            require_range(head, begin, end, self.size)
            if urlsplit(head.url).netloc != urlsplit(self._url).netloc:
                with self._lock:
                    self._direct = head.url
            return end - begin

        ask(
            self._snapshot.hub,
            url,
            begins=begins,
            takes=takes,
            patience=patience,
            tells=lambda _: self._downloads.advance_download(0),
            byte_range=f"bytes={begin}-{end - 1}",
            commit=self._snapshot.commit,
        )
