"""What ``doctor`` finds, one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. ``next`` is what to do where it is not ``ok``; may be empty."""

    what: str
    status: Literal["ok", "warn", "fail"]
    found: str
    next: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, in order. ``healthy``: none failed."""

    healthy: bool
    checks: tuple[Check, ...]
