"""Text of strangers as it may be shown: in sight, on one line, and of bounded length.

Names, ids and tokens come out of files that anybody may have written. On a terminal or in a
document they must not move the cursor, turn the direction of what follows, or be invisible.
"""

from __future__ import annotations

import re
import shlex
import unicodedata

MAX_MESSAGE_CHARS = 4096
"""Of a message as a whole, however many values stand in it."""

MAX_NAME_CHARS = 200
"""Of one name or token of several, in a sentence or in a document that is written."""

_MAX_MARKS = 8
"""Combining marks on one character; no script needs more, and hundreds cover the lines above."""

# Printable for Python, and for people nothing: fillers, selectors of variants, blank patterns.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U00013441\U00013442\U00016fe4\U0001d159\U000e0100-\U000e01ef]"
)


def is_shown_as_it_is(text: str) -> bool:
    """Whether all of ``text`` can be seen where it is printed, and nothing else happens."""
    if not text.isprintable():
        return False
    if text.isascii():
        return not text.isspace()
    return not text.isspace() and _BLANK.search(text) is None and not _is_piled(text)


def escaped(text: str) -> str:
    """``text`` with escapes for what cannot be seen, moves the cursor or turns the direction.

    Controls, marks of direction, halves of surrogate pairs, blanks that are no spaces, and of many
    combining marks on one character all but the first; where there is nothing but spaces, they.
    """
    if is_shown_as_it_is(text):
        return text
    if text.isspace() and text.isprintable():
        return text.replace(" ", "\\x20")
    kept: list[str] = []
    marks = 0
    for character in text:
        marks = marks + 1 if _is_mark(character) else 0
        seen = character.isprintable() and marks <= _MAX_MARKS and not _BLANK.match(character)
        kept.append(character if seen else character.encode("unicode_escape").decode())
    return "".join(kept)


def bounded(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """``text`` of at most ``limit`` characters; ``…`` says that there were more."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def excerpt(text: str, limit: int = MAX_NAME_CHARS) -> str:
    """The beginning of a name or a value of many, as it may stand in a list."""
    # Cut before as well: to escape what is cut off would take its time.
    return bounded(escaped(bounded(text, limit)), limit)


def typed(path: object) -> str:
    """A path, or what else is one word of a command, as it is typed in a shell."""
    return shlex.quote(str(path))


def sentence(text: str) -> str:
    """A message as a whole: on one line, in sight, bounded, whatever stands in it."""
    return excerpt(text, MAX_MESSAGE_CHARS)


def _is_piled(text: str) -> bool:
    """Whether a character has more combining marks than any script needs."""
    marks = 0
    for character in text:
        marks = marks + 1 if _is_mark(character) else 0
        if marks > _MAX_MARKS:
            return True
    return False


def _is_mark(character: str) -> bool:
    return character > "\u02ff" and unicodedata.category(character) in ("Mn", "Me")
