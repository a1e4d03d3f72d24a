"""What is said of an output's small files: whose each is, and what was decided on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deltastore.errors import shown
from deltastore.text import excerpt, sentence

MAX_LEFT = 1000
"""Fields that are named because they did not follow post; the rest is counted."""

_JOINED = 50
_QUOTED = 8

Origin = Literal["new base", "post", "both", "written"]
"""Whose a small file is; ``both`` if it is one's with something of the other's in it."""


@dataclass(slots=True)
class Ledger:
    """Filled while the small files are put together.

    Attributes:
        origins: Whose each file is.
        notes: What there is to say of a file, in order.
        config_left: Fields of ``config.json`` that post changed and that do not follow it: their
            path in the document (``field``), what ``post`` says and what the ``output`` does.
        warnings: Notes that a user must see.
    """

    origins: dict[str, Origin] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    config_left: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note(self, name: str, text: str) -> None:
        """Say something of the file ``name``."""
        self.notes.setdefault(name, []).append(sentence(text))

    def warn(self, name: str, text: str) -> None:
        """Say something of the file ``name`` that a user must see."""
        self.note(name, text)
        self.warnings.append(sentence(f"{name}: {text}."))

    def left(self) -> list[dict[str, str]]:
        """The fields that did not follow post, as they may be printed and written."""
        rows = [row | {"field": excerpt(row["field"])} for row in self.config_left[:MAX_LEFT]]
        if len(self.config_left) > MAX_LEFT:
            more = f"~ and {len(self.config_left) - MAX_LEFT} more"
            rows.append({"field": more, "post": "", "output": ""})
        return rows

    def report(self) -> list[dict[str, Any]]:
        """Every file by name: ``name``, ``from`` and, where there is one, ``note``."""
        rows = []
        for name, origin in sorted(self.origins.items()):
            row = {"name": name, "from": origin}
            if name in self.notes:
                row["note"] = sentence("; ".join(self.notes[name]))
            rows.append(row)
        return rows


def joined(names: Iterable[str]) -> str:
    """Names of fields for a note: the first of them, and how many there are besides."""
    found = list(names)
    more = f" and {len(found) - _JOINED} more" if len(found) > _JOINED else ""
    return ", ".join(map(excerpt, found[:_JOINED])) + more


def quoted(tokens: Sequence[str]) -> str:
    """Tokens for a note, likewise."""
    more = f" and {len(tokens) - _QUOTED} more" if len(tokens) > _QUOTED else ""
    return ", ".join(map(shown, tokens[:_QUOTED])) + more
