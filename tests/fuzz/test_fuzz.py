"""The fuzz targets, for a moment: their seeds, and mutations of them that are always the same.

``scripts/fuzz`` runs them for longer, led by coverage.
"""

from __future__ import annotations

import random
import time

import pytest
import targets
from mutate import mutated

SECONDS = 1.5
MAX_INPUTS = 400


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds(name: str) -> None:
    seeds = targets.seeds(name)
    assert seeds
    for seed in seeds:
        targets.run(name, seed)


@pytest.mark.parametrize(
    "name",
    ["manifest", "records", "part", "header", "pickle", "refs", "vocabulary", "tokens"],
)
def test_some_seed_is_good(name: str) -> None:
    """Seeds that are all refused at once would show nothing."""
    good = 0
    for seed in targets.seeds(name):
        try:
            targets.TARGETS[name](seed)
        except targets.DeltastoreError:
            continue
        good += 1
    assert good


@pytest.mark.parametrize("name", targets.TARGETS)
def test_mutations(name: str) -> None:
    draw = random.Random(f"{name} 1")
    seeds = targets.seeds(name)
    until = time.monotonic() + SECONDS
    for _ in range(MAX_INPUTS):
        targets.run(name, mutated(draw, name, draw.choice(seeds)))
        if time.monotonic() > until:
            break
