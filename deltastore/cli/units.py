"""Sizes, durations and numbers as people read and type them."""

from __future__ import annotations

import re

_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB")
_FACTORS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def size(n_bytes: float) -> str:
    """Bytes with three significant digits in decimal units, as in ``1.42 GB``."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    value = float(n_bytes)
    for unit in _DECIMAL[1:]:
        value /= 1000
        # 999.5 would be printed as 1000: the next unit has it as 1.00.
        if value < 999.5 or unit == _DECIMAL[-1]:
            break
    return f"{value:.{_decimals(value)}f} {unit}"


def duration(seconds: float) -> str:
    """Seconds as in ``0.42 s``, ``12.3 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun, as in ``1 tensor`` and ``1,024 tensors``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def parse_size(text: str) -> int:
    """The bytes that ``5GB``, ``512 MiB`` or ``1000`` stand for.

    Raises:
        ValueError: The text is no size, or the size is less than one byte.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size such as 5GB, 512MiB or 1000000")
    n_bytes = int(float(match[1]) * factor)
    if n_bytes < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return n_bytes


def _decimals(value: float) -> int:
    """Digits after the point that make three significant ones."""
    if value < 9.995:
        return 2
    return 1 if value < 99.95 else 0
