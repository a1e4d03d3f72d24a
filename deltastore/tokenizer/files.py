"""What a tokenizer's files say of its tokens: which there are, and how each is treated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deltastore.checkpoint.documents import read_tokenizer

Flags = dict[str, bool]
"""How an added token is treated: ``special``, ``normalized``, ``lstrip``, …"""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class TokenFile:
    """The tokens of one file; ``flags`` are those of its added tokens."""

    tokens: frozenset[str]
    flags: dict[str, Flags] = field(default_factory=dict)


@dataclass(slots=True)
class Reader:
    """Reads each file once: a vocabulary of 17 MB takes half a second and much memory."""

    _read: dict[bytes, TokenFile | None] = field(default_factory=dict)

    def vocabulary(self, data: bytes) -> TokenFile | None:
        """The tokens of a vocabulary file; None if it is not understood."""
        if data not in self._read:
            self._read[data] = _vocabulary(data)
        return self._read[data]


def added_tokens_decoder(config: Mapping[str, Any]) -> dict[str, Flags]:
    """The flags of the tokens that a ``tokenizer_config.json`` has in its table of added ones."""
    table = config.get("added_tokens_decoder")
    return _flags(list(table.values())) if isinstance(table, dict) else {}


def holds_token(data: bytes, token: str, reader: Reader) -> bool:
    """Whether a ``tokenizer.json`` has this token; true if it is not understood."""
    # A look at the bytes spares reading it all: nearly always the token is there.
    if any(_spelled(token, ascii_only=ascii_only) in data for ascii_only in (False, True)):
        return True
    found = reader.vocabulary(data)
    return found is None or token in found.tokens


def _spelled(token: str, *, ascii_only: bool) -> bytes:
    return json.dumps(token, ensure_ascii=ascii_only).encode("utf-8", "replace")


def _vocabulary(data: bytes) -> TokenFile | None:
    document = read_tokenizer(data)
    if document is None:
        return None
    model = document.get("model")
    if not isinstance(model, dict):
        return TokenFile(frozenset(document))
    vocabulary = model.get("vocab")
    tokens: set[str] = set()
    if isinstance(vocabulary, dict):
        tokens |= set(vocabulary)
    elif isinstance(vocabulary, list):
        tokens |= {str(item[0]) for item in vocabulary if isinstance(item, list) and item}
    else:
        return None
    added = document.get("added_tokens")
    flags = _flags(added) if isinstance(added, list) else {}
    return TokenFile(frozenset(tokens | set(flags)), flags)


def _flags(rows: list[Any]) -> dict[str, Flags]:
    """The flags of added tokens, by token."""
    return {
        str(row.get("content")): {name: row[name] for name in _FLAGS if row.get(name) in (0, 1)}
        for row in rows
        if isinstance(row, dict)
    }
