"""One request to the hub or where it sends us: where it goes, what comes, how long it takes.

All that comes over the network comes through here. The request is made by a thread of its own,
as no timeout of an HTTP library ends a server that sends a byte now and then: who asked looks on,
and leaves it behind when there is no patience left, or when the user wants to stop.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from deltastore.checkpoint.hub import limits
from deltastore.checkpoint.hub.addresses import MisbehavedError, origin_of, redirected
from deltastore.checkpoint.hub.patience import Patience
from deltastore.errors import shown

_LOOK_S = 0.1
_REDIRECTS = (301, 302, 303, 307, 308)
_LENGTH = re.compile(r"[0-9]{1,19}\Z")


class RefusedError(Exception):
    """The hub's answer is a refusal.

    Attributes:
        status: The HTTP status.
        code: The hub's own word for it, as "GatedRepo"; empty if it has none.
        headers: Those of the answer.
    """

    def __init__(self, status: int, code: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.code = code
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins: where it came from in the end, and what its headers say."""

    url: str
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Hub:
    """An endpoint and the credentials for it, which go to its scheme, host and port alone."""

    endpoint: str
    headers: dict[str, str] = field(repr=False)
    authorization: str | None = field(repr=False)

    @classmethod
    def at_hand(cls) -> Hub:
        """The one that the environment names."""
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = build_hf_headers(library_name="deltastore")
        authorization = headers.pop("authorization", None)
        return cls(constants.ENDPOINT, headers, authorization)


def ask(
    hub: Hub,
    url: str,
    *,
    begins: Callable[[Head], int],
    takes: Callable[[bytes], None],
    patience: Patience,
    tells: Callable[[int], None] = lambda nbytes: None,
    byte_range: str | None = None,
    commit: str | None = None,
    timeout_s: float | None = None,
) -> None:
    """Ask for something, and hand on what comes.

    Args:
        hub: To whom the credentials belong.
        url: What to ask for.
        begins: Looks at the beginning of the answer, and says how many bytes may come.
        takes: Gets the bytes, in a thread of its own, but never after this has returned.
        patience: How long the server is waited for.
        tells: Is told now and then, in the caller's thread, how many bytes have come since; may
            raise to stop.
        byte_range: The header ``Range``.
        commit: The commit that the hub must not contradict.
        timeout_s: For each read from the network; the library's own for downloads if None.

    Raises:
        RefusedError: The answer is a refusal.
        MisbehavedError: The server does what none may.
        TooSlowError: There is no patience left.
        Exception: What the HTTP library raises, or ``begins``, ``takes`` or ``tells``.
    """
    from huggingface_hub import constants

    headers = hub.headers | {"Accept-Encoding": "identity"}
    if byte_range is not None:
        headers["Range"] = byte_range
    job = _Job(
        hub,
        url,
        headers,
        commit,
        constants.HF_HUB_DOWNLOAD_TIMEOUT if timeout_s is None else timeout_s,
        begins,
        takes,
    )
    told = 0
    with patience.asking():
        threading.Thread(target=job.run, name="hub", daemon=True).start()
        try:
            ended = False
            while not ended:
                ended = job.ended.wait(_LOOK_S)
                count = job.count
                if count > told:
                    patience.arrived(count - told)
                    told, new = count, count - told
                    tells(new)
                elif not ended:
                    tells(0)
                if job.taking:
                    patience.excuse()
                if not ended:
                    patience.check()
        finally:
            if not job.ended.is_set():
                job.leave()
        if job.failure is not None:
            raise job.failure
        patience.answered()


@dataclass(slots=True)
class _Job:
    """What the thread of a request does."""

    hub: Hub
    url: str
    headers: dict[str, str]
    commit: str | None
    timeout_s: float
    begins: Callable[[Head], int]
    takes: Callable[[bytes], None]
    count: int = 0
    taking: bool = False
    failure: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    _left: bool = False
    _response: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        try:
            self._ask()
        except BaseException as error:  # noqa: BLE001 - it is raised by whoever looks on
            self.failure = error
        finally:
            self.ended.set()

    def leave(self) -> None:
        """Go away while it runs: nothing is taken any more, and its connection is cut."""
        import huggingface_hub

        with self._lock:
            self._left = True
            response = self._response
        with suppress(Exception):
            if response is None:
                # Which connection it has, only the library knows.
                huggingface_hub.close_session()
            else:
                # Not closed: its number would be another file's while the thread still reads.
                stream = response.extensions["network_stream"]
                stream.get_extra_info("socket").shutdown(2)

    def _ask(self) -> None:
        url = self.url
        for _ in range(limits.MAX_REDIRECTS + 1):
            with closing(self._send(url)) as response:
                with self._lock:
                    self._response = response
                    if self._left:
                        return
                following = self._answer(url, response)
                with self._lock:
                    self._response = None
            if following is None:
                return
            url = following
        raise MisbehavedError(f"redirects more than {limits.MAX_REDIRECTS} times")

    def _send(self, url: str) -> Any:
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

        while True:
            client = get_session()
            request = client.build_request("GET", url, headers=self.headers, timeout=self.timeout_s)
            home = client.build_request("GET", self.hub.endpoint).url
            if self.hub.authorization is not None and origin_of(request.url) == origin_of(home):
                request.headers["Authorization"] = self.hub.authorization
            try:
                return client.send(request, stream=True, follow_redirects=False)
            except RuntimeError:
                # Closed meanwhile by somebody who left; the library makes a new one.
                if not client.is_closed or client is get_session():
                    raise

    def _answer(self, url: str, response: Any) -> str | None:
        """Take an answer; the address to ask instead, if it is a redirect."""
        status, headers = int(response.status_code), response.headers
        named = headers.get("X-Repo-Commit")
        if self.commit is not None and named is not None and named != self.commit:
            raise MisbehavedError(
                f"answers for the commit {shown(named)}; expected {shown(self.commit)}"
            )
        if status in _REDIRECTS:
            _drain(response)
            return redirected(url, headers.get("Location"))
        if status >= 400:
            _drain(response)
            raise RefusedError(status, str(headers.get("X-Error-Code") or "")[:64], headers)
        encoding = (headers.get("Content-Encoding") or "identity").strip().lower()
        if encoding != "identity":
            raise MisbehavedError(f"sends it encoded as {shown(encoding)}, which was not asked for")
        most = self.begins(Head(url, status, headers))
        stated = headers.get("Content-Length")
        if stated is not None and (not _LENGTH.match(stated) or int(stated) > most):
            raise MisbehavedError(f"states {shown(stated)} bytes; expected at most {most}")
        self._take(response.iter_raw(), most)
        return None

    def _take(self, pieces: Iterator[bytes], most: int) -> None:
        for piece in pieces:
            if self.count + len(piece) > most:
                raise MisbehavedError(f"sends more than {most} bytes")
            with self._lock:
                if self._left:
                    return
                self.taking = True
                self.takes(piece)
                self.taking = False
                self.count += len(piece)


def _drain(response: Any) -> None:
    """Read what stands beside a redirect or a refusal, so that the connection can be used again."""
    left = limits.MAX_ASIDE_BYTES
    for piece in response.iter_raw():
        left -= len(piece)
        if left < 0:
            return
