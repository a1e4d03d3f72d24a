"""How near the two checkpoints of a pair are, measured at the places of lineage samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltastore.checkpoint import Weights
from deltastore.lineage.pairing import Pair
from deltastore.lineage.samples import choose_runs
from deltastore.lineage.similarity import SampledRun, Verdict, compared, sums_of
from deltastore.manifest.format import DTYPE_BYTES
from deltastore.tensor_names.token_rows import has_token_rows


@dataclass(frozen=True, slots=True)
class PairLineage:
    """How post stands to base.

    Attributes:
        verdict: As of a new base.
        cosine: Mean over the sampled matrices of the cosine between base's and post's weights;
            None if nothing was compared.
        change: Median over these of |post - base| / |base|; None likewise.
        tensors: How many matrices were compared.
        told: Both, and over what, in words.
        overruled: Why the pair would have been refused, had that not been overruled.
    """

    verdict: Verdict = "unknown"
    cosine: float | None = None
    change: float | None = None
    tensors: int = 0
    told: str = "nothing to compare"
    overruled: tuple[str, ...] = ()


def measure_pair(base: Weights, post: Weights, pairs: Sequence[Pair]) -> PairLineage:
    """Read both sides at the places of at most 256 samples.

    Embeddings and heads do not count where there is anything else: they may be made anew, for
    other tokens or another task.

    Raises:
        CheckpointError: A side cannot be read.
        HubError: It is on the hub and cannot be read there.
    """
    runs = sampled_runs(base, post, pairs)
    runs = [run for run in runs if not has_token_rows(run.name)] or runs
    figures = compared(runs, complete=False)
    if figures.cosine is None:
        return PairLineage(figures.verdict)
    sums = sums_of(runs).values()
    change = statistics.median(math.sqrt(one.moved / one.source) for one in sums)
    told = (
        f"cosine {figures.cosine:.3f}, relative change {change:.1%} over {figures.tensors} sampled "
        f"tensors, of which {figures.unlike} are unlike"
    )
    return PairLineage(figures.verdict, figures.cosine, change, figures.tensors, told)


def sampled_runs(base: Weights, post: Weights, pairs: Sequence[Pair]) -> list[SampledRun]:
    """At most 256 short runs of both sides of tensors that have a delta."""
    runs: list[SampledRun] = []
    places: tuple[list[Any], list[Any]] = ([], [])
    sides = [(pair.name, pair.base if pair.common_elements else None) for pair in pairs]
    for run in choose_runs(sides):
        pair = pairs[run.tensor]
        assert pair.base is not None
        assert pair.post is not None
        if run.start + run.count > pair.common_elements:
            continue
        buffers = []
        for info, where in zip((pair.base, pair.post), places, strict=True):
            size = DTYPE_BYTES[info.dtype]
            buffers.append(np.empty(run.count * size, np.uint8))
            where.append((info.name, run.start * size, buffers[-1]))
        matrix = len(pair.base.shape) > 1
        runs.append(
            SampledRun(pair.name, matrix, pair.base.dtype, buffers[0], pair.post.dtype, buffers[1])
        )
    base.read_samples(places[0])
    post.read_samples(places[1])
    return runs
