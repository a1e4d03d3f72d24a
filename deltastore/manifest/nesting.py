"""How deep a JSON document is nested, and how much memory it takes.

Parsers and printers recurse. Where they give up depends on the interpreter and on how deep the
caller is, so that a document could be read at one place and fail at another; a limit of our own
is the same everywhere.

A document takes far more memory than bytes: thirty times as many where it is made of empty lists.
What values there are is counted in the bytes, before anything is parsed.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

from deltastore.manifest.format import MAX_JSON_DEPTH, MAX_JSON_MEMORY

_PER_VALUE = 100
_PER_LIST = 64
_PER_OBJECT = 240
"""Bytes of memory: of a value with its place, or key, in what holds it; and of empty holders."""


def memory_of(data: bytes) -> int:
    """How many bytes of memory a JSON document takes, within a factor of two."""
    values, lists, objects = (data.count(mark) for mark in (b",", b"[", b"{"))
    return _PER_VALUE * values + _PER_LIST * lists + _PER_OBJECT * objects


def parse_bounded(data: bytes, *, memory: int = MAX_JSON_MEMORY) -> Any:
    """Parse JSON, if it takes no more than about so much memory and is not nested too deeply.

    Raises:
        ValueError: It does, or it is no JSON.
    """
    if memory_of(data) > memory:
        raise ValueError(f"it has more values than fit into {memory >> 20} MiB of memory")
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if is_nested_too_deeply(document):
        raise ValueError("it is nested too deeply")
    return document


_HOLDERS = {dict, list}
_BLANK_BEFORE_COLON = re.compile(r'"[ \t\r\n]+:')
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')


def is_nested_too_deeply(document: Any) -> bool:
    """Whether arrays and objects stand in each other more than ``MAX_JSON_DEPTH`` deep."""
    return _keys_within_depth(document) is None


def check_keys(text: str, document: Any) -> bool:
    """Whether a document is nested no deeper than it may be; of one that is not, no more is said.

    Args:
        text: Its JSON.
        document: What the parser made of it, which keeps the last of equal keys.

    Raises:
        ValueError: A key stands twice in one object.
    """
    keys = _keys_within_depth(document)
    if keys is not None and keys != _count_keys(text, at_least=keys):
        raise ValueError("a key stands twice in one object")
    return keys is not None


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
