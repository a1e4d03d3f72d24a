"""Lineage samples: short runs of the source base, by which a new base is recognised later."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from deltastore.checkpoint import Weights
from deltastore.manifest import SampleRun
from deltastore.manifest.format import (
    DELTA_DTYPES,
    DTYPE_BYTES,
    MAX_SAMPLE_BYTES,
    MAX_SAMPLE_RUNS,
    MAX_SAMPLE_TENSORS,
)

_RUN_BYTES = MAX_SAMPLE_BYTES // MAX_SAMPLE_RUNS


class Sampled(Protocol):
    """A tensor of the base, as far as it says where its samples are."""

    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def elements(self) -> int: ...  # noqa: D102


def choose_runs(sides: Sequence[tuple[str, Sampled | None]]) -> tuple[SampleRun, ...]:
    """At most 256 runs over at most 64 floating-point tensors of the base.

    Tensors are drawn by the hash of their names: spread over depth and kind as a random draw is,
    and the same on every machine. Runs are spread evenly over each tensor. Matrices come before
    vectors, which are few numbers close to one and tell little.

    Args:
        sides: Name and base's tensor of each row of the table; None where base has no such tensor
            of its own.
    """
    eligible = [
        (i, side)
        for i, (_, side) in enumerate(sides)
        if side is not None and side.dtype in DELTA_DTYPES and side.elements
    ]
    eligible.sort(key=lambda item: (len(item[1].shape) < 2, _draw(sides[item[0]][0])))
    chosen = eligible[:MAX_SAMPLE_TENSORS]
    if not chosen:
        return ()
    per_tensor = MAX_SAMPLE_RUNS // len(chosen)
    runs = []
    for index, side in sorted(chosen):
        length = min(_RUN_BYTES // DTYPE_BYTES[side.dtype], side.elements)
        count = min(per_tensor, side.elements // length)
        for j in range(count):
            start = (2 * j + 1) * (side.elements - length) // (2 * count)
            runs.append(SampleRun(index, start, length))
    return tuple(runs)


def read_runs(
    checkpoint: Weights, names: list[str], runs: tuple[SampleRun, ...]
) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """The bytes of each run; ``names`` is what the base calls the table's tensors."""
    pieces = []
    for run in runs:
        info = checkpoint.tensors[names[run.tensor]]
        size = DTYPE_BYTES[info.dtype]
        piece = np.empty(run.count * size, np.uint8)
        checkpoint.read_into(info.name, run.start * size, piece)
        pieces.append(piece)
    return pieces


def _draw(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
