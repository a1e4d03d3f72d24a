"""Which failures of the hub pass by themselves, and how long to wait for that."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
"""Who is told to come back later than this is better told to do so himself."""

_PASSING = (408, 429, 500, 502, 503, 504)


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if the hub answered at all."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def retry_after(error: BaseException) -> float | None:
    """The seconds after which the hub wants to be asked again, if it said so."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return None
    text = headers.get("Retry-After")
    if text is not None and text.strip().isdigit():
        return float(text)
    limit = re.search(r"\bt=(\d+)", headers.get("RateLimit") or "")
    return float(limit[1]) if limit and status_of(error) == 429 else None


def wait_before(error: Exception, attempt: int, *, cut: bool) -> float | None:
    """How long to wait before the next attempt; None if there should be none.

    Args:
        error: What ended the last attempt.
        attempt: Its number, from 0.
        cut: Whether a lost connection is worth another attempt.
    """
    if attempt + 1 >= ATTEMPTS:
        return None
    status = status_of(error)
    if status is None:
        return FIRST_WAIT_S * float(2**attempt) if cut and is_transport(error) else None
    if status not in _PASSING:
        return None
    wait = retry_after(error)
    if wait is None:
        return FIRST_WAIT_S * float(2**attempt)
    return wait if wait <= LONGEST_WAIT_S else None


def retrying(call: Callable[[], T], *, cut: bool = False) -> T:
    """Call until the hub answers with anything but a passing refusal.

    Args:
        call: What to do.
        cut: Whether a lost connection is worth another attempt.

    Raises:
        Exception: What the last attempt raised.
    """
    attempt = 0
    while True:
        try:
            return call()
        except Exception as error:
            wait = wait_before(error, attempt, cut=cut)
            if wait is None:
                raise
        time.sleep(wait)
        attempt += 1


def is_transport(error: BaseException) -> bool:
    """Whether a connection could not be made, was lost, or took too long."""
    # huggingface_hub has changed its HTTP library twice; all of them call their errors so.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OfflineModeIsEnabled" in names:
        return False
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError", "ProtocolError"})
