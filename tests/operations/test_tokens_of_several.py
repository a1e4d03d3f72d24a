"""Several deltas that add tokens to rows that were padding: none is lost in silence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from operations.checkpoints import load
from operations.test_vocabulary import WORDS, Model

import deltastore
from deltastore.errors import DeltaConflictError

BACKWARDS = WORDS[::-1]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as store:
        yield store


def stored(store: deltastore.DeltaStore, place: Path, words: list[str], token: str) -> str:
    """A delta whose post has given the first padding row to a token."""
    name = f"delta{len(store.list())}"
    Model(words, padding=4).save(place / name / "base", 0)
    Model(words, padding=3, added=[token]).save(place / name / "post", 1)
    store.extract(place / name / "base", place / name / "post", name=name)
    return name


@pytest.mark.parametrize("new", [WORDS, BACKWARDS])
@pytest.mark.parametrize("second", [WORDS, BACKWARDS])
@pytest.mark.parametrize("token", ["<a>", "<b>"])
def test_two_deltas_that_add_tokens_to_padding_rows(
    store: deltastore.DeltaStore, tmp_path: Path, token: str, second: list[str], new: list[str]
) -> None:
    refs = [stored(store, tmp_path, WORDS, "<a>"), stored(store, tmp_path, second, token)]
    Model(new, padding=4).save(tmp_path / "new", 2)
    for i, order in enumerate(itertools.permutations(refs)):
        out = tmp_path / f"out{i}"
        if new == second == WORDS and token == "<a>":
            store.apply(order, base=tmp_path / "new", out=out)
            assert load(out)
        else:
            with pytest.raises(DeltaConflictError, match="tokens"):
                store.apply(order, base=tmp_path / "new", out=out)
            assert not out.exists()
