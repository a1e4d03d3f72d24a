"""Many names of tensors in a few lines: those that differ by numbers alone are one pattern."""

from __future__ import annotations

from collections.abc import Iterable

from deltastore.text import excerpt

MOST_LINES = 10
_FIRST = 3


def pattern(name: str) -> str:
    """A name with ``N`` for each part that is a number: ``model.layers.N.mlp.up_proj.weight``."""
    return ".".join("N" if part.isdigit() else part for part in name.split("."))


def folded(items: Iterable[tuple[str, str]]) -> list[tuple[str, str, int]]:
    """Names, with what there is to say of each, by pattern.

    Returns:
        Of each pattern and saying: the pattern (the name where it is one), what is said, how many.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name, said in items:
        groups.setdefault((pattern(name), said), []).append(name)
    return [
        (names[0] if len(names) == 1 else shape, said, len(names))
        for (shape, said), names in groups.items()
    ]


def listed(names: Iterable[str]) -> str:
    """The first patterns of some names, for a sentence."""
    groups = folded((name, "") for name in names)
    told = [
        excerpt(name) if count == 1 else f"{excerpt(name)} ({count} of them)"
        for name, _, count in groups[:_FIRST]
    ]
    more = f" and {len(groups) - _FIRST} more patterns" if len(groups) > _FIRST else ""
    return ", ".join(told) + more


__all__ = ["MOST_LINES", "folded", "listed", "pattern"]
