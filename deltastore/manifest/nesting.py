"""How deep a JSON document is nested.

Parsers and printers recurse. Where they give up depends on the interpreter and on how deep the
caller is, so that a document could be read at one place and fail at another; a limit of our own
is the same everywhere.
"""

from __future__ import annotations

from typing import Any

from deltastore.manifest.format import MAX_JSON_DEPTH


def is_nested_too_deeply(document: Any) -> bool:
    """Whether arrays and objects stand in each other more than ``MAX_JSON_DEPTH`` deep."""
    return keys_within_depth(document) is None


def keys_within_depth(document: Any) -> int | None:
    """How many keys all objects of a document have; None where it is nested too deeply."""
    level = [document]
    keys = 0
    for _ in range(MAX_JSON_DEPTH + 1):
        deeper: list[Any] = []
        for holder in level:
            if isinstance(holder, dict):
                keys += len(holder)
                values: Any = holder.values()
            elif isinstance(holder, list):
                values = holder
            else:
                continue
            deeper += [value for value in values if isinstance(value, (dict, list))]
        if not deeper:
            return keys
        level = deeper
    return None
