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
    matching = _Matching(source, post, new, common, post_rows, new_rows)
    late = [
        (number, token)
        for token, number in sorted(post.items(), key=lambda item: item[1])
        if not matching.take_row_of_its_string(number, token)
    ]
    for number, token in late:
        matching.rename_or_add(number, token)
    return matching.result()


class _Matching:
    """Tokens of post, placed one by one in rows of the new base, or after its last."""

    def __init__(
        self,
        source: Mapping[str, int],
        post: Mapping[str, int],
        new: Mapping[str, int],
        common: int,
        post_rows: int,
        new_rows: int,
    ) -> None:
        self._source = source
        self._post = post
        self._new = new
        self._common = common
        self._post_rows = post_rows
        self._new_rows = new_rows
        self._before = {number: token for token, number in source.items()}
        self._ids: dict[int, int] = {}
        """The output's ids by post's; ``NONE`` is lost."""
        self._pairs: list[tuple[int, int]] = []
        self._taken: set[int] = set()
        self._added: list[Added] = []
        self._renamed: list[tuple[str, str]] = []
        self._lost: list[str] = []
        self._moved = 0
        """Tokens of the new base whose rows stay, as post gave their delta to another token."""
        self._free = max(new.values(), default=-1) + 1
        """The first row that no token of the new base has."""
        self._rows = new_rows

    def take_row_of_its_string(self, number: int, token: str) -> bool:
        """Give a token of post the new base's row of the same string.

        Returns:
            False if there is none: whether it was renamed or added is seen when all others have
            their rows.
        """
        if number in self._ids:
            return True  # another name of a token that is placed
        target = self._new.get(token, NONE)
        if target == NONE:
            return False
        if number >= self._post_rows or not self._is_free(target):
            self._lose(number, token)
        elif self._is_difference_of_one(number, token):
            self._place(number, target)
        else:
            self._taken.add(target)
            self._ids[number] = target
            self._moved += 1
        return True

    def rename_or_add(self, number: int, token: str) -> None:
        """Give a token whose string the new base lacks the row of its old name, or one more."""
        if number in self._ids:
            return
        if number >= self._post_rows:
            self._lose(number, token)
            return
        old, target = self._row_of_old_name(number, token)
        if old is not None and self._is_free(target):
            self._renamed.append((old, token))
            self._place(number, target)
        elif token not in self._source and self._has_room(number):
            self._added.append(Added(token, number, self._free))
            self._place(number, self._free)
            self._rows = max(self._rows, self._free + 1)
            self._free += 1
        else:
            self._lose(number, token)

    def result(self) -> Vocabulary:
        """All tokens, matched."""
        own = self._new.keys() - self._post.keys()
        return Vocabulary(
            verdict="matched",
            tokens=len(self._new),
            matched=len(self._pairs) - len(self._added),
            own=len(own) - len(self._renamed) + self._moved,
            added=tuple(self._added),
            renamed=tuple(self._renamed),
            lost=tuple(self._lost),
            ids={number: target for number, target in self._ids.items() if number != target},
            pairs=tuple(self._pairs),
        )

    def _is_difference_of_one(self, number: int, token: str) -> bool:
        """Whether what post has in a row stands for the token that its base has there."""
        if number >= self._common:
            return True
        if token in self._source:
            return self._source[token] == number
        old = self._before.get(number)
        return old is None or old not in self._post

    def _row_of_old_name(self, number: int, token: str) -> tuple[str | None, int]:
        """What post's base calls the token, and the new base's row of that name."""
        old = self._before.get(number)
        if old is None or old in self._post or not self._is_difference_of_one(number, token):
            return old, NONE
        return old, self._new.get(old, NONE)

    def _is_free(self, target: int) -> bool:
        return 0 <= target < self._new_rows and target not in self._taken

    def _has_room(self, number: int) -> bool:
        """Whether a token gets a row: a padding row, or, if it is one of post's own, one more."""
        return self._free < self._rows or (number >= self._common and self._free == self._rows)

    def _place(self, number: int, target: int) -> None:
        self._taken.add(target)
        self._pairs.append((number, target))
        self._ids[number] = target

    def _lose(self, number: int, token: str) -> None:
        self._lost.append(token)
        self._ids[number] = NONE
