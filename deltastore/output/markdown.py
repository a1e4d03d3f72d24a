"""Text of strangers within Markdown: read as text, whatever it is."""

from __future__ import annotations

import re

from deltastore.text import excerpt

_MAX_CHARS = 200
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_MARKUP = re.compile(
    r"[\\`*{}\[\]()#!|~$:@^<>&\"']"
    # Within a word it is no emphasis.
    r"|(?<![^\W_])_|_(?![^\W_])"
    # Some readers make links of bare addresses.
    r"|(?<=www)\.",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """``text`` as Markdown that shows it, on one line: no markup, HTML, link or hidden mark."""
    seen = excerpt(text, _MAX_CHARS)
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), seen)
