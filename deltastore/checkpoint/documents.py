"""JSON documents of small files, which strangers wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deltastore.manifest.format import MAX_JSON_MEMORY, MAX_TOKENIZER_MEMORY
from deltastore.manifest.strict_json import parse_loosely
from deltastore.text import is_shown_as_it_is

_SHOWN_CHARS = 80


def read_object(data: bytes | None) -> dict[str, Any] | None:
    """The JSON object in ``data``; None where there is none, or none that any tool wrote.

    What is nested deeper than ``MAX_JSON_DEPTH`` counts as not understood: comparing and writing
    it again would recurse. So does what has more values than any such document.
    """
    return _read(data, MAX_JSON_MEMORY)


def read_tokenizer(data: bytes | None) -> dict[str, Any] | None:
    """The same of a document that lists a whole vocabulary: ``tokenizer.json`` and its like."""
    return _read(data, MAX_TOKENIZER_MEMORY)


def _read(data: bytes | None, memory: int) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        document = parse_loosely(data, memory=memory)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def to_json(document: Mapping[str, Any]) -> bytes:
    """``document`` as transformers would write it."""
    try:
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can say
        return (json.dumps(document, indent=2) + "\n").encode()


def to_visible_json(document: Mapping[str, Any]) -> bytes:
    """Ditto, with escapes for all that cannot be seen or turns the direction of a text."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    lines = (_visible(line) for line in text.split("\n"))
    return ("\n".join(lines) + "\n").encode()


def _visible(line: str) -> str:
    if line.isprintable() and (line.isascii() or is_shown_as_it_is(line)):
        return line
    return "".join(c if c == " " or is_shown_as_it_is(c) else _escape(c) for c in line)


def _escape(character: str) -> str:
    return json.dumps(character)[1:-1] if character > "\x7f" else f"\\u{ord(character):04x}"


def same(first: Any, second: Any) -> bool:
    """Whether two values mean the same in a configuration, where null is as good as absent."""
    if isinstance(first, bool) is not isinstance(second, bool):
        return False  # for Python, 1 equals true
    # NaN, which Python writes into JSON, does not equal itself; its text does.
    return bool(first == second) or _text(first) == _text(second)


def brief(value: Any) -> str:
    """A value of a document as it may stand in a report: JSON of at most 80 characters."""
    text = _text(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
