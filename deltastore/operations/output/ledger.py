"""What is said of an output's small files: whose each is, and what was decided on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

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
        self.notes.setdefault(name, []).append(text)

    def warn(self, name: str, text: str) -> None:
        """Say something of the file ``name`` that a user must see."""
        self.note(name, text)
        self.warnings.append(f"{name}: {text}.")

    def report(self) -> list[dict[str, Any]]:
        """Every file by name: ``name``, ``from`` and, where there is one, ``note``."""
        rows = []
        for name, origin in sorted(self.origins.items()):
            row = {"name": name, "from": origin}
            if name in self.notes:
                row["note"] = "; ".join(self.notes[name])
            rows.append(row)
        return rows
