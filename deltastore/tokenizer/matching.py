"""Rows of embeddings and heads matched by token string, where tokenizers differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from deltastore.errors import IncompatibleError
from deltastore.text import excerpt
from deltastore.tokenizer.rows import NONE, Rows

Verdict = Literal["same", "matched", "skipped", "not compared"]

_LISTED = 1000


@dataclass(frozen=True, slots=True)
class Added:
    """A token of post that its base lacks, and its ids there and in the output."""

    content: str
    post_id: int
    id: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How the tokens of a delta stand to those of a new base.

    Attributes:
        verdict: ``same`` (rows are paired by index), ``matched`` (by token string), ``skipped``
            (left as they are, as was asked), ``not compared`` (a tokenizer is missing, or there
            are no rows of tokens; paired by index).
        unlike: The tokenizers are not the same files, though their rows were not compared.
        tokens: Tokens of the new base.
        matched: Its tokens whose rows get a delta, or post's row.
        own: Its tokens that post does not have, or has in the row of another token of its base;
            their rows stay as they are.
        added: Tokens that post has added and the output has now.
        renamed: Tokens that post calls otherwise than its base and the new base: old, new.
        lost: Tokens of post that have no row in the output.
        ids: The output's ids by post's; ``NONE`` is lost. Those that are left out are equal, or
            lost where rows were skipped, unless ``alike``.
        alike: Rows were skipped, and post's tokens have the same ids all the same.
        pairs: Row of post and row of the output, for all tokens that have both.
    """

    verdict: Verdict
    unlike: bool = False
    tokens: int = 0
    matched: int = 0
    own: int = 0
    added: tuple[Added, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    lost: tuple[str, ...] = ()
    ids: Mapping[int, int] = field(default_factory=dict, repr=False)
    alike: bool = False
    pairs: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    def translate(self, token: int) -> int | None:
        """The output's id for an id of post; None if the output does not have that token."""
        lost = self.verdict == "skipped" and not self.alike
        found = self.ids.get(token, NONE if lost else token)
        return None if found == NONE else found

    def report(self) -> dict[str, object]:
        """The figures, with the first few names of each list."""

        def listed(names: Sequence[str], count: int) -> dict[str, object]:
            return {"count": count, "tokens": list(map(excerpt, names))}

        return {
            "verdict": self.verdict,
            "tokens": self.tokens,
            "matched": self.matched,
            "own": self.own,
            "added": listed([token.content for token in self.added[:_LISTED]], len(self.added)),
            "renamed": {
                "count": len(self.renamed),
                "tokens": [list(map(excerpt, p)) for p in self.renamed[:_LISTED]],
            },
            "lost": listed(self.lost[:_LISTED], len(self.lost)),
        }

    def rows(self, base: int, common: int, post: int) -> Rows:
        """Where each row of an output tensor comes from.

        Args:
            base: Rows of the new base's tensor.
            common: Rows that have a delta.
            post: Rows of post's tensor.

        Raises:
            IncompatibleError: A token has a row in one tensor and not in another.
        """
        count = max([base, *(item.id + 1 for item in self.added)])
        delta, values = np.full(count, NONE, np.int64), np.full(count, NONE, np.int64)
        for source, target in self.pairs:
            if target >= count or source >= post:
                continue
            if source < common:
                delta[target] = source
            else:
                values[target] = source - common
        if (values[base:] == NONE).any():
            raise IncompatibleError(
                f"A token that post added has no row among post's {post}; expected one for each of "
                f"the output's {count}.",
                hint="Leave embeddings and head as they are: `--skip-embeddings`.",
            )
        return Rows(delta, values)


def match_tokens(
    source: Mapping[str, int],
    post: Mapping[str, int],
    new: Mapping[str, int],
    *,
    common: int,
    post_rows: int,
    new_rows: int,
) -> Vocabulary:
    """Find the output's row of every token of post.

    A token keeps the new base's row of the same string. One whose name post changed takes the row
    of its old name, and renames it. One that post added comes after the new base's last token:
    into a padding row, or a row more. Where post gave one token's row to another, the delta is a
    difference of two tokens, and is given to none.

    Args:
        source: Ids by token string of the source base.
        post: Of post.
        new: Of the new base.
        common: Rows that have a delta; further rows of post are known by value.
        post_rows: Rows of post's embeddings.
        new_rows: Rows of the new base's embeddings.
    """
    before = {number: token for token, number in source.items()}
    free = max(new.values(), default=-1) + 1
    pairs: list[tuple[int, int]] = []
    ids: dict[int, int] = {}
    added: list[Added] = []
    renamed: list[tuple[str, str]] = []
    lost: list[str] = []
    taken: set[int] = set()
    late: list[tuple[int, str]] = []
    rows = new_rows
    moved = 0

    def is_difference_of_one(number: int, token: str) -> bool:
        if number >= common:
            return True
        if token in source:
            return source[token] == number
        old = before.get(number)
        return old is None or old not in post

    def place(number: int, target: int) -> None:
        taken.add(target)
        pairs.append((number, target))
        ids[number] = target

    def lose(number: int, token: str) -> None:
        lost.append(token)
        ids[number] = NONE

    for token, number in sorted(post.items(), key=lambda item: item[1]):
        target = new.get(token, NONE)
        if number in ids:
            continue  # another name of a token that is placed
        if target == NONE:
            late.append((number, token))
        elif number < post_rows and 0 <= target < new_rows and target not in taken:
            if is_difference_of_one(number, token):
                place(number, target)
            else:
                taken.add(target)
                ids[number] = target
                moved += 1
        else:
            lose(number, token)
    for number, token in late:
        old = before.get(number)
        target = NONE
        if old is not None and is_difference_of_one(number, token) and old not in post:
            target = new.get(old, NONE)
        if number in ids:
            continue
        if number >= post_rows:
            lose(number, token)
        elif old is not None and 0 <= target < new_rows and target not in taken:
            renamed.append((old, token))
            place(number, target)
        elif token not in source and (free < rows or (number >= common and free == rows)):
            added.append(Added(token, number, free))
            place(number, free)
            rows = max(rows, free + 1)
            free += 1
        else:
            lose(number, token)
    return Vocabulary(
        verdict="matched",
        tokens=len(new),
        matched=len(pairs) - len(added),
        own=len(new.keys() - post.keys()) - len(renamed) + moved,
        added=tuple(added),
        renamed=tuple(renamed),
        lost=tuple(lost),
        ids={number: target for number, target in ids.items() if number != target},
        pairs=tuple(pairs),
    )
