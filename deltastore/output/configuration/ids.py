"""Token ids in configurations: which fields hold them, and how they become the output's ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Translate = Callable[[int], int | None]
"""A token id of post as an id of the output; None if that token has no place in the output."""


def identity(token: int) -> int | None:
    """The translation where post and output have the same ids."""
    return token


@dataclass(slots=True)
class Translated:
    """A field's value in ids of the output.

    Attributes:
        value: The value; None if ``gone``.
        gone: Nothing of it has a place in the output.
        lost: Ids of post that have none, in order.
    """

    value: Any = None
    gone: bool = False
    lost: list[int] = field(default_factory=list)


_SUFFIXES = ("_token_id", "_token_ids", "_token_index")
_LISTS = frozenset({"suppress_tokens", "begin_suppress_tokens"})
_WORDS = frozenset({"bad_words_ids", "force_words_ids"})
_PAIRS = frozenset({"forced_decoder_ids"})
_BIASES = frozenset({"sequence_bias"})
_MAPS = frozenset({"lang_to_id", "task_to_id"})
_OTHERS = _LISTS | _WORDS | _PAIRS | _BIASES | _MAPS


def holds_ids(name: str) -> bool:
    """Whether a field of ``config.json`` or ``generation_config.json`` holds token ids.

    ``eos_token_id`` and its kin, one id or several, those of images and audio among them; lists of
    ids or words that generation forces or suppresses.
    """
    return name.endswith(_SUFFIXES) or name in _OTHERS


def translated(name: str, value: Any, translate: Translate) -> Translated:
    """The value of a field that holds ids, in ids of the output.

    Of several ids or words those that are lost are left out. What is no id stays what it is: null,
    and negative numbers, which stand for none.
    """
    result = Translated()
    if name in _WORDS:
        result.value = _words(value, translate, result.lost)
    elif name in _PAIRS:
        result.value = _parts(value, 1, translate, result.lost)
    elif name in _BIASES:
        result.value = _parts(value, 0, translate, result.lost)
    elif name in _MAPS and isinstance(value, dict):
        moved = {key: _ids(item, translate, result.lost) for key, item in value.items()}
        result.value = {key: item for key, item in moved.items() if item is not _GONE}
    else:
        result.value = _ids(value, translate, result.lost)
    result.gone = result.value is _GONE or (bool(result.lost) and not result.value)
    if result.gone:
        result.value = None
    return result


_GONE: Any = object()


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _ids(value: Any, translate: Translate, lost: list[int]) -> Any:
    """One id, or the list of those that have a place."""
    if isinstance(value, list):
        found = [_ids(item, translate, lost) for item in value]
        return [item for item in found if item is not _GONE]
    if not _is_id(value):
        return value
    moved = translate(value)
    if moved is None:
        lost.append(value)
        return _GONE
    return moved


def _words(value: Any, translate: Translate, lost: list[int]) -> Any:
    """Words, each a list of ids, at any depth: a word of which an id is lost is lost."""
    if not isinstance(value, list) or all(_is_id(item) for item in value):
        return _whole(value, translate, lost)
    found = [_words(item, translate, lost) for item in value]
    return [item for item in found if item is not _GONE]


def _parts(value: Any, place: int, translate: Translate, lost: list[int]) -> Any:
    """Rows of which one column is an id or a word."""
    if not isinstance(value, list):
        return value
    rows = []
    for row in value:
        if not isinstance(row, list) or len(row) <= place:
            rows.append(row)
            continue
        moved = _whole(row[place], translate, lost)
        if moved is not _GONE:
            rows.append([*row[:place], moved, *row[place + 1 :]])
    return rows


def _whole(value: Any, translate: Translate, lost: list[int]) -> Any:
    """An id or a word, or nothing if any of it is lost."""
    missing: list[int] = []
    moved = _ids(value, translate, missing)
    lost += missing
    return _GONE if missing else moved
