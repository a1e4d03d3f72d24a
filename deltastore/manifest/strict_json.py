"""Reading JSON that somebody else wrote, within limits of our own.

JSON's readers disagree about a key that stands twice, about NaN and about encodings; where it
matters, none of these is taken. Parsers and printers recurse. Where they give up depends on the
interpreter and on how deep the caller is, so that a document could be read at one place and fail
at another; a limit of our own is the same everywhere.

A document takes far more memory than bytes: thirty times as many where it is made of empty lists.
What values there are is counted in the bytes, before anything is parsed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import chain
from typing import Any

from deltastore.errors import shown
from deltastore.manifest.format import MAX_JSON_DEPTH, MAX_JSON_MEMORY

_PER_VALUE = 100
_PER_LIST = 64
_PER_OBJECT = 240
"""Bytes of memory: of a value with its place, or key, in what holds it; and of empty holders."""


class TooManyValuesError(ValueError):
    """A document that would take more memory than it may."""


class TooDeepError(ValueError):
    """Arrays and objects stand in each other deeper than they may."""

    def __init__(self) -> None:
        super().__init__(f"it is nested too deeply: more than {MAX_JSON_DEPTH} levels")


def parse(
    data: bytes,
    *,
    memory: int | None,
    unique: bool = True,
    constants: bool = False,
    any_utf: bool = False,
) -> Any:
    """The value of a JSON document.

    Args:
        data: The document.
        memory: About what it may take once parsed, in bytes; no limit but that of its own bytes
            if None.
        unique: Refuse a key that stands twice in one object; the last is taken if not.
        constants: Whether it may hold NaN and the infinities, as Python writes them.
        any_utf: Whether it may be UTF-16 and UTF-32 too, and begin with a byte order mark.

    Raises:
        ValueError: It is none, or not within these bounds; the text is the end of a sentence.
            TooManyValuesError, TooDeepError: those bounds.
    """
    if memory is not None and memory_of(data) > memory:
        raise TooManyValuesError(f"it has more values than fit into {memory >> 20} MiB of memory")
    text = data.decode(json.detect_encoding(data), "surrogatepass") if any_utf else data.decode()
    try:
        document = json.loads(text, parse_constant=None if constants else _no_constant)
    except RecursionError as error:
        raise TooDeepError from error
    keys = _keys_within_depth(document)
    if keys is None:
        raise TooDeepError
    if unique and keys != _count_keys(text, at_least=keys):
        del document
        return json.loads(text, object_pairs_hook=_unique)  # fails, and says which key
    return document


def parse_loosely(data: bytes, *, memory: int = MAX_JSON_MEMORY) -> Any:
    """Ditto, of what others' programs read: all is taken that Python's reader takes."""
    return parse(data, memory=memory, unique=False, constants=True, any_utf=True)


def memory_of(data: bytes) -> int:
    """How many bytes of memory a JSON document takes, within a factor of two."""
    values, lists, objects = (data.count(mark) for mark in (b",", b"[", b"{"))
    return _PER_VALUE * values + _PER_LIST * lists + _PER_OBJECT * objects


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {shown(counts.most_common(1)[0][0])} appears twice")
    return result


_HOLDERS = {dict, list}
_BLANK_BEFORE_COLON = re.compile(r'"[ \t\r\n]+:')
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')


def _count_keys(text: str, *, at_least: int) -> int:
    """How many keys there are in valid JSON, equal ones counted each time.

    The parser keeps the last of equal keys. To ask it for the pairs of every object takes three
    times as long as to count colons outside of strings.
    """
    # Each key ends with a quote and a colon, unless blanks part them; other things may, too.
    if text.count('":') == at_least and not _BLANK_BEFORE_COLON.search(text):
        return at_least
    keys = end = 0
    for string in _STRING.finditer(text):
        keys += text.count(":", end, string.start())
        end = string.end()
    return keys + text.count(":", end)


def _keys_within_depth(document: Any) -> int | None:
    """How many keys all objects of a document have; None where it is nested too deeply."""
    keys, level = 0, [document]
    for _ in range(MAX_JSON_DEPTH + 1):
        # Of a million small objects it is the calls that take time: one pass for all of a level.
        objects = [holder for holder in level if type(holder) is dict]
        arrays = [holder for holder in level if type(holder) is list]
        if not objects and not arrays:
            return keys
        keys += sum(map(len, objects))
        values = chain(chain.from_iterable(map(dict.values, objects)), chain.from_iterable(arrays))
        level = [value for value in values if type(value) in _HOLDERS]
    return keys if not level else None
