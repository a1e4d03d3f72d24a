"""The fuzz targets, for a moment: their seeds, and mutations of them that are always the same.

``scripts/fuzz`` runs them for longer, led by coverage.
"""

from __future__ import annotations

import random
import time

import pytest
import targets

SECONDS = 1.5
MAX_INPUTS = 400
_INTERESTING = (b"\0", b"\xff", b"-1", b"1e999", b"null", b"[", b"{", b'"', b"\\ud800", b"9" * 400)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds(name: str) -> None:
    seeds = targets.seeds(name)
    assert seeds
    for seed in seeds:
        targets.run(name, seed)


@pytest.mark.parametrize("name", ["manifest", "records", "part", "header", "refs"])
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
        targets.run(name, mutated(draw, seeds))
        if time.monotonic() > until:
            break


def mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds with a few bytes changed, removed, repeated or put in."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.randint(1, 5)):
        at, size = draw.randrange(len(data) + 1), draw.randint(1, 8)
        how = draw.randrange(5)
        if how == 0:
            data[at : at + size] = draw.randbytes(size)
        elif how == 1:
            del data[at : at + size]
        elif how == 2:
            data[at:at] = draw.choice(_INTERESTING)
        elif how == 3:
            data[at:at] = data[at : at + 16 * size]
        elif at < len(data):
            data[at] ^= 1 << draw.randrange(8)
    return bytes(data)
