"""Which of some names may have been meant by one that is none of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

_MOST_NAMES = 10_000
_MOST_CHARS = 128
_MOST_COMPARED = 300
"""To compare two names takes some milliseconds at worst."""


def nearest(word: str, names: Iterable[str], *, most: int, cutoff: float = 0.5) -> list[str]:
    """The most alike of the names, the best first.

    Names longer than 128 characters are left out, and of many those that have other letters.

    Args:
        word: What was given.
        names: What there is.
        most: How many are wanted at most.
        cutoff: How alike they are at least, from 0 to 1.
    """
    from difflib import SequenceMatcher, get_close_matches
    from heapq import nlargest

    if len(word) > _MOST_CHARS:
        return []
    near = [name for name in islice(names, _MOST_NAMES) if len(name) <= _MOST_CHARS]
    if len(near) > _MOST_COMPARED:
        matcher: SequenceMatcher[str] = SequenceMatcher(b=word)

        def likeness(name: str) -> float:
            matcher.set_seq1(name)
            return matcher.quick_ratio()

        near = nlargest(_MOST_COMPARED, near, key=likeness)
    return get_close_matches(word, near, n=most, cutoff=cutoff)
