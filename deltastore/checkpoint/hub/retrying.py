"""Which failures of the hub pass by themselves, and how long to wait for that."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from deltastore.checkpoint.hub.downloads import Downloads
from deltastore.checkpoint.hub.exchange import RefusedError
from deltastore.checkpoint.hub.patience import Patience, TooSlowError

ATTEMPTS = 5
FIRST_WAIT_S = 0.5

_PROGRESS_BYTES = 1 << 20
"""An attempt that brought so much is no failed one: a long download may be cut many times."""

_WORTH_SAYING_S = 2.0
_LOOK_S = 0.1

_PASSING = (408, 429, 500, 502, 503, 504)
_SECONDS = re.compile(r"\s*([0-9]{1,9})\s*\Z")
_LIMIT = re.compile(r"\bt=([0-9]{1,9})\b")


class CutError(ConnectionError):
    """An answer ended early, though its connection did not break."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if the hub answered at all."""
    if isinstance(error, RefusedError):
        return error.status
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def retry_after(error: BaseException) -> float | None:
    """The seconds after which the hub wants to be asked again, if it said so."""
    if not isinstance(error, RefusedError):
        return None
    found = _SECONDS.match(error.headers.get("Retry-After") or "")
    if found is None and error.status == 429:
        found = _LIMIT.search(error.headers.get("RateLimit") or "")
    return float(found[1]) if found else None


def persist(
    attempt: Callable[[], None],
    patience: Patience,
    downloads: Downloads,
    *,
    cut: bool,
) -> None:
    """Try until it is done, or fails with anything but what passes by itself.

    Args:
        attempt: Does what is left to do.
        patience: What ``attempt`` asks with.
        downloads: Told of long waits.
        cut: Whether a lost connection is worth another attempt.

    Raises:
        Exception: What the last attempt raised.
    """
    failed = 0
    while True:
        before = patience.arrived_bytes
        try:
            attempt()
            return
        except Exception as error:
            if patience.arrived_bytes - before >= _PROGRESS_BYTES:
                failed = 0
            wait = _wait_after(error, failed, patience, cut=cut)
            if wait is None:
                raise
        failed += 1
        _sleep(wait, downloads)


def _wait_after(error: Exception, failed: int, patience: Patience, *, cut: bool) -> float | None:
    """How long to wait before the next attempt; None if there should be none."""
    if failed + 1 >= ATTEMPTS or isinstance(error, TooSlowError):
        return None
    status = status_of(error)
    if status is None:
        return FIRST_WAIT_S * float(2**failed) if cut and is_transport(error) else None
    if status not in _PASSING:
        return None
    wait = retry_after(error)
    if wait is None:
        return FIRST_WAIT_S * float(2**failed)
    if not patience.may_wait(wait):
        # Who is told to come back later than this is better told to do so himself.
        return None
    patience.waited(wait)
    return wait


def _sleep(seconds: float, downloads: Downloads) -> None:
    if seconds >= _WORTH_SAYING_S:
        downloads.warn(f"The hub asks to wait {seconds:.0f} s before it is asked again.")
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_S))
        downloads.advance_download(0)


def is_transport(error: BaseException) -> bool:
    """Whether a connection could not be made, was lost, or took too long."""
    # huggingface_hub has changed its HTTP library twice; all of them call their errors so.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OfflineModeIsEnabled" in names:
        return False
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError", "ProtocolError"})
