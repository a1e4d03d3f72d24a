"""Parts of a file on the hub, read at positions without downloading it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deltastore.checkpoint.hub.failures import hub_error
from deltastore.checkpoint.hub.retrying import status_of, wait_before
from deltastore.errors import HubError

if TYPE_CHECKING:
    from deltastore.checkpoint.hub.snapshot import HubFile, Snapshot


class RemoteFile:
    """A file of a snapshot, by HTTP range requests; thread-safe."""

    def __init__(self, snapshot: Snapshot, file: HubFile) -> None:
        """Prepare; nothing is asked of the hub.

        Raises:
            HubError: The hub does not say how large the file is.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        if file.size is None:
            raise HubError(
                f"The hub does not say how large {file.name} of {snapshot.label} is.",
                hint=f"Fetch it beforehand: `{snapshot.command}`.",
                repo=snapshot.repo,
            )
        self._snapshot = snapshot
        self.name = file.name
        self.size = file.size
        self._url = hf_hub_url(snapshot.repo, file.name, revision=snapshot.commit)
        self._headers = build_hf_headers(library_name="deltastore")
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
        done, attempt = 0, 0
        while done < len(view):
            try:
                for piece in self._stream(offset + done, offset + len(view)):
                    view[done : done + len(piece)] = piece
                    done += len(piece)
            except HubError:
                raise
            except Exception as error:
                wait = wait_before(error, attempt, cut=True)
                if wait is None:
                    raise self._error(error) from error
                attempt += 1
                time.sleep(wait)

    def _stream(self, begin: int, end: int) -> Iterator[bytes]:
        """The bytes from ``begin`` to ``end``; fewer if the connection is cut."""
        with self._lock:
            direct = self._direct
        if direct is not None:
            try:
                yield from self._ask(direct, begin, end)
                return
            except Exception as error:
                status = status_of(error)
                if status is None or status in (408, 429) or status >= 500:
                    raise
                # Signed addresses expire: ask the hub for a new one.
                with self._lock:
                    self._direct = None
        yield from self._ask(self._url, begin, end)

    def _ask(self, url: str, begin: int, end: int) -> Iterator[bytes]:
        from huggingface_hub import constants
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            get_session,
            hf_raise_for_status,
        )

        headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        if url == self._url:
            # Elsewhere the token is nobody's business; redirects within a request drop it too.
            headers = self._headers | headers
        with get_session().stream(
            "GET",
            url,
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            follow_redirects=True,
        ) as response:
            hf_raise_for_status(response)
            self._check(response.status_code, response.headers.get("Content-Range"), begin, end)
            arrived = str(response.url)
            if urlsplit(arrived).netloc != urlsplit(self._url).netloc:
                with self._lock:
                    self._direct = arrived
            left = end - begin
            for piece in response.iter_raw():
                if len(piece) > left:
                    raise self._unlike("sent more bytes than it was asked for")
                left -= len(piece)
                yield piece

    def _check(self, status: int, content_range: str | None, begin: int, end: int) -> None:
        if status != 206:
            # Reading on would be a download of the whole file.
            raise self._unlike(f"answered a request for a part with status {status}")
        expected = f"bytes {begin}-{end - 1}/{self.size}"
        if content_range != expected:
            raise self._unlike(f"sent {str(content_range)[:60]!r}; expected {expected!r}")

    def _unlike(self, problem: str) -> HubError:
        return HubError(
            f"The server that holds {self.name} of {self._snapshot.label} {problem}.",
            hint=f"Fetch the checkpoint beforehand: `{self._snapshot.command}`.",
            repo=self._snapshot.repo,
            revision=self._snapshot.commit,
        )

    def _error(self, error: Exception) -> Exception:
        return hub_error(
            error,
            repo=self._snapshot.repo,
            revision=self._snapshot.commit,
            doing=f"{self.name} of {self._snapshot.label} cannot be read:",
            hint=f"Check the connection, or fetch it beforehand: `{self._snapshot.command}`.",
        )
