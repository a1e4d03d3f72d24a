"""``tie_word_embeddings`` of an output: whether its head and embeddings are one tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from deltastore.checkpoint import TensorInfo, Weights
from deltastore.lineage.copies import Copies
from deltastore.merging.recipes import Recipe
from deltastore.tensor_names.token_rows import (
    embedding_of,
    head_of,
    is_embedding,
    may_tie,
    tie_levels,
)

Document = dict[str, Any]

_FLAG = "tie_word_embeddings"

_SCALED_BY_IT = frozenset({"t5", "mt5", "umt5", "longt5", "pop2piano", "switch_transformers"})
"""Model types that always tie what they do not store, and where the field says how outputs are
scaled: it is the new base's, whatever the tensors are."""


def head_is_embeddings(base: Weights, recipes: Mapping[str, Recipe]) -> bool:
    """Whether the output stores its head, and this is its embeddings: once more, or for both.

    Args:
        base: The new base; two short reads at most where it stores both.
        recipes: The output's tensors.
    """
    head, embedding = head_of(recipes), embedding_of(recipes)
    if head is None or embedding is None:
        return head is not None and not any(map(is_embedding, recipes))
    one, other = recipes[head], recipes[embedding]
    if one.base is None or other.base is None or one.output.shape != other.output.shape:
        return False
    if len(one.addends) != len(other.addends):
        return False
    for ours, theirs in zip(one.addends, other.addends, strict=True):
        sides = [(a.index, a.scale, a.entry.base, a.entry.post) for a in (ours, theirs)]
        if sides[0] != sides[1]:
            return False
    same = one.base.name == other.base.name
    return same or Copies(base).are_copies(one.base.name, other.base.name)


def follow_tied_embeddings(
    output: Document,
    before: Document | None,
    after: Document | None,
    base: Mapping[str, TensorInfo],
    recipes: Mapping[str, Recipe],
    *,
    one: bool,
) -> None:
    """Say of the output whether its head is its embeddings.

    A head that the new base lacks would be ignored where its file says that it is tied, and one
    that is no longer there would be drawn at random where it says that it is not.

    Args:
        output: The output's ``config.json``, to be changed.
        before: The source base's; None if it has none.
        after: Post's; None likewise.
        base: The new base's tensors.
        recipes: The output's.
        one: Whether the head that it stores is its embeddings.
    """
    if output.get("model_type") in _SCALED_BY_IT:
        return
    head = head_of(recipes)
    heads = (_has_own_head(base), _has_own_head(recipes))
    said = tie_levels(after or {})
    changed = not tie_levels(before or {}) or may_tie(before) != may_tie(after)
    if heads[0] != heads[1]:
        _set(output, tied=one or not heads[1])
    elif said and changed:
        # Where post's head was left out, by its scale or for another reason, so is this.
        tied = may_tie(after)
        addends = recipes[head].addends if head is not None else ()
        if tied if head is None else any(addend.scale for addend in addends):
            _set(output, tied=tied)
    elif one:
        return
    elif heads[1] and may_tie(output) and after is not None and not may_tie(after):
        # A head beside embeddings that are said to be it is read by nobody; post's is its own.
        _set(output, tied=False)


def _has_own_head(names: Collection[str]) -> bool:
    """Whether a head is stored beside embeddings: one that is stored alone is these, too."""
    return head_of(names) is not None and any(map(is_embedding, names))


def _set(output: Document, *, tied: bool) -> None:
    """Have every level that says something say this; and the top, which counts first."""
    if may_tie(output) != tied:
        for name, part in list(output.items()):
            if isinstance(part, dict) and tie_levels(part):
                output[name] = _with(part, tied=tied)
    output[_FLAG] = tied


def _with(part: Document, *, tied: bool) -> Document:
    """A copy of a level and those in it, where they say something."""
    copy = {
        name: _with(value, tied=tied) if isinstance(value, dict) and tie_levels(value) else value
        for name, value in part.items()
    }
    if isinstance(copy.get(_FLAG), bool):
        copy[_FLAG] = tied
    return copy
