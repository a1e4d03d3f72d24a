"""The example in the package's docstring is what the code does."""

from __future__ import annotations

import re

import numpy as np

import deltastore.tokenizer
from deltastore.tokenizer.matching import match_tokens
from deltastore.tokenizer.rows import NONE

COLUMNS = ("source base", "post", "new base", "output")


def table() -> list[list[str]]:
    """The docstring's rows: number, four columns of tokens, and what the row changes by."""
    text = deltastore.tokenizer.__doc__ or ""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    header = next(line for line in lines if line[0] == "row")
    assert header[1:5] == list(COLUMNS)
    return [line for line in lines if line[0].isdigit()]


def tokens(column: str) -> dict[str, int]:
    place = COLUMNS.index(column) + 1
    return {row[place]: int(row[0]) for row in table() if row[place] != "-"}


def test_the_worked_example() -> None:
    source, post, new, output = map(tokens, COLUMNS)
    assert (len(source), len(post), len(new), len(output)) == (6, 8, 6, 8)
    words = match_tokens(source, post, new, common=6, post_rows=8, new_rows=6)
    assert [(token.content, token.id) for token in words.added] == [("<think>", 6), ("</think>", 7)]
    assert words.renamed == (("<spare>", "<tool>"),)
    assert words.lost == ("dog",)
    assert (words.tokens, words.matched, words.own) == (6, 5, 1)
    assert {token: words.translate(number) for token, number in post.items()} == {
        token: output.get(token) for token in post
    }
    rows = words.rows(6, 6, 8)
    said = {int(row[0]): row[5] for row in table()}
    for row, (delta, value) in enumerate(zip(rows.delta, rows.values, strict=True)):
        if delta != NONE:
            assert said[row] == f"delta of row {delta}"
        elif value != NONE:
            assert said[row] == f"value of row {value + 6}"
        else:
            assert said[row] == "nothing"
    assert np.count_nonzero(rows.delta != NONE) == 5
