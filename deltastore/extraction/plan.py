"""What an extraction will do, as one value that is made before a byte is written.

A plan holds every decision: which tensor is paired with which and as what, the codec, where the
samples are, which small files travel and what is left and why, how near the pair is and what spoke
against it. It can be written as JSON and read again (``plan_document``), and each of its chunks can
be encoded by itself, here or elsewhere, with the same bytes.

The *form* of a tensor's delta (its palette, dense or sparse) is no part of it. It follows from the
plan and the weights: a sample at places that the tensor's size fixes. Whoever encodes chunks of a
tensor so comes to the same form by reading a few pages of it. In the plan the forms of a hundred
thousand tensors would take a hundred megabytes, and a reader would have to check every one of
them, as a foreign codec's are its own affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deltastore.artifact import small_files
from deltastore.checkpoint import Checkpoint, TensorSpec, Weights
from deltastore.digest import sha256_digest
from deltastore.errors import StructureMismatchError
from deltastore.execution.thread_pool import ThreadPool
from deltastore.extraction.forms import read_run
from deltastore.lineage import samples
from deltastore.lineage.pair_similarity import PairLineage
from deltastore.lineage.pairing import Pair, chunk_count, chunks_of
from deltastore.manifest import SampleRun
from deltastore.manifest.format import CHUNK_ELEMENTS


@dataclass(frozen=True, slots=True)
class PlannedSide:
    """One side of the pair.

    Attributes:
        repo: The Hub id that the artifact names.
        revision: Its commit.
        names: Where tensors are stored under other names than the plan's: stored name, plan's.
    """

    repo: str | None = None
    revision: str | None = None
    names: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> PlannedSide:
        """An open checkpoint as a side."""
        return cls(checkpoint.repo, checkpoint.revision, tuple(checkpoint.stored_names().items()))


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A small file that travels: its side, name, digest and size in bytes."""

    side: small_files.Side
    path: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class LeftFile:
    """What lies beside the weights of a side and is not stored, and why not."""

    side: small_files.Side
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class ExtractPlan:
    """Every decision of one extraction.

    Attributes:
        codec: The codec's specification in its canonical form.
        chunk: Elements of a chunk.
        base: The weights before post-training.
        post: The weights after it.
        tensors: The pairs, in the tensor table's order.
        samples: Where base is sampled, to be recognised later.
        files: The small files that travel.
        left: What does not, and why.
        not_stored: Those names of it that the artifact tells of.
        kinship: How near the two are, and which refusals were overruled.
        restore_only: Whether the artifact only restores this pair.
    """

    codec: str
    chunk: int
    base: PlannedSide
    post: PlannedSide
    tensors: tuple[Pair, ...]
    samples: tuple[SampleRun, ...]
    files: tuple[PlannedFile, ...]
    left: tuple[LeftFile, ...]
    not_stored: tuple[str, ...]
    kinship: PairLineage
    restore_only: bool

    @property
    def chunks(self) -> int:
        """How many chunks all tensors have together."""
        return sum(chunk_count(pair, self.chunk) for pair in self.tensors)

    def own(self, side: small_files.Side) -> Iterator[TensorSpec]:
        """All tensors of one side, each once."""
        for pair in self.tensors:
            tensor = pair.own_base if side == "base" else pair.post
            if tensor is not None:
                yield tensor

    def require(self, base: Weights, post: Weights) -> None:
        """Refuse other weights than the plan was made for, as far as their headers tell.

        Raises:
            StructureMismatchError: Some have other tensors.
        """
        sides: tuple[tuple[small_files.Side, Weights], ...] = (("base", base), ("post", post))
        for side, weights in sides:
            count = 0
            for tensor in self.own(side):
                count += 1
                found = weights.tensors.get(tensor.name)
                if found is None or (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
                    got = f"{found.dtype} {list(found.shape)}" if found else "none"
                    raise _not_planned(
                        side, weights, f"{tensor.dtype} {list(tensor.shape)}", got, tensor.name
                    )
            if count != len(weights.tensors):
                raise _not_planned(
                    side, weights, f"{count} tensors", f"{len(weights.tensors)}", "its table"
                )


def make_plan(
    base: Weights,
    post: Weights,
    pairs: Sequence[Pair],
    *,
    codec: str,
    sides: tuple[PlannedSide, PlannedSide],
    files: small_files.SmallFiles,
    left: Sequence[LeftFile],
    not_stored: tuple[str, ...],
    kinship: PairLineage,
    restore_only: bool,
    pool: ThreadPool,
) -> ExtractPlan:
    """Decide what is still open: which tensors without a meaningful difference are equal.

    Args:
        base: The weights before post-training.
        post: The weights after it.
        pairs: Their tensors.
        codec: The codec's specification in its canonical form.
        sides: What is known of either.
        files: The small files that travel.
        left: What does not.
        not_stored: Those names of it that the artifact tells of.
        kinship: As measured.
        restore_only: Whether the artifact only restores this pair.
        pool: Reads tensors of integers, which are to be compared.

    Raises:
        CheckpointError: A side cannot be read.
    """
    decided = list(pairs)

    def work(_: int, number: int) -> None:
        if _are_equal(base, post, decided[number]):
            decided[number] = replace(decided[number], kind="unchanged")

    pool.run([n for n, pair in enumerate(pairs) if pair.kind == "replaced"], work)
    return ExtractPlan(
        codec=codec,
        chunk=CHUNK_ELEMENTS,
        base=sides[0],
        post=sides[1],
        tensors=tuple(decided),
        samples=samples.choose_runs([(pair.name, pair.own_base) for pair in pairs]),
        files=tuple(
            PlannedFile(side, path, sha256_digest(data), len(data))
            for (side, path), data in files.items()
        ),
        left=tuple(left),
        not_stored=not_stored,
        kinship=kinship,
        restore_only=restore_only,
    )


def may_be_unchanged(pair: Pair) -> bool:
    """Whether two tensors without a meaningful difference have one dtype and shape."""
    if pair.kind != "replaced" or pair.base is None or pair.post is None:
        return False
    return (pair.base.dtype, pair.base.shape) == (pair.post.dtype, pair.post.shape)


def _are_equal(base: Weights, post: Weights, pair: Pair) -> bool:
    """Whether two tensors without a meaningful difference are the same."""
    if not may_be_unchanged(pair):
        return False
    before, after = pair.base, pair.post
    assert before is not None
    assert after is not None
    return all(
        np.array_equal(
            read_run(base, before, chunk.start, chunk.count, "base"),
            read_run(post, after, chunk.start, chunk.count, "post"),
        )
        for chunk in chunks_of(pair, CHUNK_ELEMENTS)
        if chunk.base
    )


def _not_planned(
    side: str, weights: Weights, expected: str, got: str, what: str
) -> StructureMismatchError:
    return StructureMismatchError(
        f"{weights.path} is not the {side} that the plan was made for: expected {expected} for "
        f"{what}, got {got}.",
        hint="Open the checkpoints that were planned, or make a plan for these.",
        side=side,
    )
