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
    level = [document]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            child
            for holder in level
            if isinstance(holder, (dict, list))
            for child in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True
