"""Rows are hostile: what a database says is held against what deltastore would have written.

A database may hold any type in any column, whatever its schema says, and a store may have come from
anywhere. Every row is checked here, and only here, as it is read. Whole columns are, because a list
may have thousands of rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from re import Pattern
from typing import Any

from deltastore.catalog.failures import damaged
from deltastore.catalog.rows import (
    MAX_TEXT_CHARS,
    TIME,
    UNREADABLE,
    Artifact,
    Listing,
    Record,
    columns,
)
from deltastore.digest import CONTENT_PATTERN, DIGEST_PATTERN
from deltastore.errors import shown
from deltastore.manifest import format as fmt
from deltastore.refs import MAX_VERSION, NAME, TAG

_Texts = Callable[[set[str]], bool]


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name and what stands in it, for messages, and whether all these values may."""

    name: str
    expected: str
    holds: Callable[[Collection[Any]], bool]


def check(columns: Sequence[Column], rows: Sequence[tuple[Any, ...]], where: str) -> None:
    """Refuse rows of which a value is not what its column may hold.

    Args:
        columns: In the order of the rows' values; further values are not looked at.
        rows: As the database gave them.
        where: The database's place, for the message.

    Raises:
        CatalogError: One is not, with the fact ``damaged``.
    """
    for column, values in zip(columns, zip(*rows, strict=True), strict=False):
        if not column.holds(values):
            wrong = next((value for value in values if not column.holds((value,))), None)
            raise damaged(where, f"{column.name} should be {column.expected}, got {shown(wrong)}")


def _texts(holds: _Texts, *, or_null: bool = False) -> Callable[[Collection[Any]], bool]:
    allowed: set[type] = {str, type(None)} if or_null else {str}

    def all_hold(values: Collection[Any]) -> bool:
        if not set(map(type, values)) <= allowed:
            return False
        return holds({value for value in values if value is not None} if or_null else set(values))

    return all_hold


def _matching(pattern: Pattern[str], *others: str) -> Callable[[Collection[Any]], bool]:
    return _texts(lambda found: all(map(pattern.match, found.difference(others))))


def _printable(limit: int) -> _Texts:
    def all_are(found: set[str]) -> bool:
        return "" not in found and "".join(found).isprintable() and _longest(found) <= limit

    return all_are


def _longest(found: Iterable[str]) -> int:
    return max(map(len, found), default=0)


def _integers(low: int, high: int) -> Callable[[Collection[Any]], bool]:
    # By type: a float that is equal to an integer would be told by nothing else.
    return lambda values: (
        set(map(type, values)) <= {int} and low <= min(values) and max(values) <= high
    )


def _numbers(values: Collection[Any]) -> bool:
    return (
        set(map(type, values)) <= {float} and all(map(math.isfinite, values)) and min(values) >= 0
    )


def _text(name: str, limit: int = MAX_TEXT_CHARS) -> Column:
    return Column(name, f"printable text of 1..{limit} characters", _texts(_printable(limit)))


def _text_or_null(name: str) -> Column:
    holds = _texts(_printable(fmt.MAX_NAME_CHARS), or_null=True)
    return Column(name, f"printable text of 1..{fmt.MAX_NAME_CHARS} characters, or nothing", holds)


def _count(name: str, high: int = (1 << 63) - 1) -> Column:
    return Column(name, f"an integer in 0..{high}", _integers(0, high))


def _content(name: str) -> Column:
    return Column(name, "blake3:<64 hex digits>", _matching(CONTENT_PATTERN, ""))


def _are_files(found: set[str]) -> bool:
    files = {file for text in found for file in text.split(" ")} - {"", "tags"}
    tags = {file for file in files if file.startswith("tags/")}
    names = (tag.removeprefix("tags/").removesuffix(".json") for tag in tags)
    return all(map(_RECORD_FILE.match, files - tags)) and all(map(TAG.match, names))


_RECORD_FILE = re.compile(r"v[0-9]{1,9}\.json\Z", re.ASCII)
_EXACTNESS = {"exact", "bounded", "lossy", UNREADABLE}

NAME_COLUMN = Column("name", "a name", _matching(NAME))
VERSION_COLUMN = Column("version", f"an integer in 1..{MAX_VERSION}", _integers(1, MAX_VERSION))
TAG_COLUMN = Column("tag", "a tag", _matching(TAG))
DIGEST_COLUMN = Column("digest", "sha256:<64 hex digits>", _matching(DIGEST_PATTERN))
FILES_COLUMN = Column("files", "paths of records and tags", _texts(_are_files))
STAMP_COLUMN = Column("stamp", "printable text", _texts(lambda found: "".join(found).isprintable()))

_COLUMNS = {
    column.name: column
    for column in (
        *(NAME_COLUMN, VERSION_COLUMN, DIGEST_COLUMN),
        Column("created", "a time such as 2025-01-31T12:00:00.000000Z", _matching(TIME)),
        *map(_text, ("created_by", "tool", "base_label", "post_label")),
        *map(_content, ("base_content", "post_content")),
        Column("base_fingerprint", "sha256:<64 hex digits>", _matching(DIGEST_PATTERN, "")),
        *map(_text_or_null, ("base_repo", "base_revision", "post_repo", "post_revision")),
        _text("codec", fmt.MAX_CODEC_CHARS),
        Column("exactness", "exact, bounded or lossy", _texts(_EXACTNESS.issuperset)),
        Column("restore_only", "0 or 1", _integers(0, 1)),
        *map(_count, ("raw_bytes", "stored_bytes", "parameters")),
        *(_count(name, fmt.MAX_TENSORS) for name in ("tensors", "unchanged")),
        Column("bits_per_weight", "a finite number >= 0", _numbers),
    )
}


def columns_of(kind: type[Record | Artifact | Listing]) -> tuple[Column, ...]:
    """The columns that the fields of ``kind`` come from, in their order."""
    return tuple(_COLUMNS[name] for name in columns(kind))
