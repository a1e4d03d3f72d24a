"""The heart of ``apply``: recipes in, an output checkpoint out, chunk by chunk in parallel."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deltastore.artifact.reader import ArtifactReader
from deltastore.blobs import BlobStore
from deltastore.checkpoint import ShardPlan, TensorInfo, Weights
from deltastore.delta import Term, add, add_tokens
from deltastore.digest import TensorHasher
from deltastore.execution.crew import Crew, Turns
from deltastore.execution.progress import Progress
from deltastore.kernels.buffers import scratch
from deltastore.manifest import Descriptor
from deltastore.manifest.format import (
    CHUNK_ELEMENTS,
    DELTA_DTYPES,
    DTYPE_BYTES,
    KEEP,
    KEEP_WIDE,
)
from deltastore.merging.recipes import Addend, Recipe
from deltastore.tokenizer.rows import runs

Bytes = npt.NDArray[np.uint8]


class Target(Protocol):
    """Where the output goes: files, or a model in memory."""

    def write(self, name: str, start_byte: int, data: Bytes) -> None:
        """Take a piece of a tensor; thread-safe, pieces come in any order."""


@dataclass(slots=True)
class Tally:
    """What came out: elements that overflowed, elements patched, BLAKE3 hex by output tensor."""

    overflowed: int
    patched: int
    digests: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Chunk:
    recipe: Recipe
    start: int
    count: int
    values: bool
    turns: Turns | None
    number: int
    last: bool


@dataclass(frozen=True, slots=True)
class _Check:
    blob: Descriptor


def _span_at(recipe: Recipe, element: int, step: int) -> tuple[int, int, bool]:
    """The chunk that an element of the output is in: start, elements, whether they are values.

    Chunks of ``step`` elements begin at 0, and again where the values begin, as frames do.
    """
    common, total = recipe.common_elements, recipe.output.elements
    values = element >= common
    begin, end = (common, total) if values else (0, common)
    start = begin + (element - begin) // step * step
    return start, min(step, end - start), values


class Applier:
    """Writes all tensors of one application and checks the blobs it reads meanwhile.

    Args:
        base: The new base.
        readers: One for each delta, in order.
        patches: Names of the tensors whose restore patch is to be used, where the output is of
            post's dtype.
        hashed: Whether to take the digest of every output tensor.
    """

    def __init__(
        self,
        base: Weights,
        readers: Sequence[ArtifactReader],
        *,
        patches: frozenset[str],
        hashed: bool,
    ) -> None:
        self._base = base
        self._readers = readers
        self._patches = patches
        self._hashed = hashed
        self._tally = Tally(0, 0, {})
        self._hashers: dict[str, Any] = {}
        self._lock = threading.Lock()

    def write(
        self,
        writer: Target,
        plan: Sequence[ShardPlan],
        recipes: Mapping[str, Recipe],
        blobs: BlobStore,
        checked: Sequence[Descriptor],
        jobs: int,
        progress: Progress,
    ) -> Tally:
        """Write every tensor, and compare every blob in ``checked`` with its digest.

        Raises:
            IntegrityError: A blob is missing or damaged.
            FormatError: A part breaks the specification.
            CheckpointError: The new base cannot be read, or the output not written.
        """
        crew = Crew(jobs)

        def work(_number: int, task: _Chunk | _Check) -> None:
            if isinstance(task, _Check):
                blobs.check(task.blob.digest, task.blob.size)
                return
            data = self._compute(task)
            name = task.recipe.output.name
            size = DTYPE_BYTES[task.recipe.output.dtype]
            for at, start, count in _spots(task):
                writer.write(name, start * size, data[at * size : (at + count) * size])
            if task.turns is not None:
                self._hash(task, data)
            progress.advance(data.size)

        crew.run(self._tasks(crew, plan, recipes, checked), work)
        return self._tally

    def _tasks(
        self,
        crew: Crew,
        plan: Sequence[ShardPlan],
        recipes: Mapping[str, Recipe],
        checked: Sequence[Descriptor],
    ) -> Iterator[_Chunk | _Check]:
        waiting = list(checked)
        for shard in plan:
            for tensor in shard.tensors:
                recipe = recipes[tensor.name]
                # One check now and then: it reads what the chunks around it read.
                if waiting:
                    yield _Check(waiting.pop(0))
                yield from self._chunks(crew, recipe)
        for blob in waiting:
            yield _Check(blob)

    def _chunks(self, crew: Crew, recipe: Recipe) -> Iterator[_Chunk]:
        total = recipe.output.elements
        turns = Turns(crew) if self._hashed else None
        if turns is not None:
            self._hashers[recipe.output.name] = TensorHasher()
            if not total:
                self._tally.digests[recipe.output.name] = TensorHasher().hexdigest()
        number = done = 0
        while done < total:
            start, count, values = _span_at(recipe, done, self._step)
            done += count
            yield _Chunk(recipe, start, count, values, turns, number, done == total)
            number += 1

    def chunk(self, recipe: Recipe, element: int) -> tuple[int, Bytes]:
        """The chunk that an element is in: its first element, and its bytes.

        They are in a buffer of this thread, valid until its next chunk.

        Raises:
            IntegrityError: A blob is missing or damaged.
            FormatError: A part breaks the specification.
            CheckpointError: The new base cannot be read.
        """
        start, count, values = _span_at(recipe, element, self._step)
        return start, self._compute(_Chunk(recipe, start, count, values, None, 0, last=True))

    @property
    def _step(self) -> int:
        return self._readers[0].config.chunk if self._readers else CHUNK_ELEMENTS

    def _compute(self, task: _Chunk) -> Bytes:
        return self._values(task) if task.values else self._sum(task)

    def _values(self, task: _Chunk) -> Bytes:
        recipe = task.recipe
        assert recipe.values is not None
        index, entry = recipe.values
        assert entry.post is not None
        raw = scratch("post", task.count * DTYPE_BYTES[entry.post.dtype], np.uint8)
        self._readers[index].values(entry, task.start - recipe.common_elements, raw)
        return self._converted(raw, entry.post.dtype, recipe.output.dtype)

    def _sum(self, task: _Chunk) -> Bytes:
        recipe = task.recipe
        info = recipe.base
        assert info is not None
        raw = self._base_values(task, info)
        if not recipe.addends:
            return self._converted(raw, info.dtype, recipe.output.dtype)
        out = scratch("out", task.count * DTYPE_BYTES[recipe.output.dtype], np.uint8)
        overflowed = self._add(task, raw, out)
        patched = 0
        if recipe.output.name in self._patches and _is_of_dtype(recipe):
            patched = self._readers[0].patch(recipe.addends[0].entry, task.start, out)
        if overflowed or patched:
            with self._lock:
                self._tally.overflowed += overflowed
                self._tally.patched += patched
        if recipe.order is not None:
            for addend in recipe.addends:
                self._place_values(task, addend, out)
        return out

    def _base_values(self, task: _Chunk, info: TensorInfo) -> Bytes:
        """The new base's elements of a chunk; zeros after its last, where rows of post will be."""
        size = DTYPE_BYTES[info.dtype]
        raw = scratch("base", task.count * size, np.uint8)
        for at, start, count in _spots(task):
            piece = raw[at * size : (at + count) * size]
            own = max(0, min(count, info.elements - start)) * size
            if own:
                self._base.read_into(info.name, start * size, piece[:own])
            piece[own:] = 0
        return raw

    def _add(self, task: _Chunk, raw: Bytes, out: Bytes) -> int:
        """The chunk's sum, from ``raw`` into ``out``; how many elements overflowed."""
        recipe = task.recipe
        assert recipe.base is not None
        dtype, output_dtype = recipe.base.dtype, recipe.output.dtype
        first = recipe.addends[0]
        if len(recipe.addends) == 1 and recipe.order is None and dtype == output_dtype == "BF16":
            tokens = self._readers[first.index].tokens(first.entry, task.start, task.count)
            if tokens is not None:
                return add_tokens(raw, tokens, first.scale, out)
        terms = [Term(self._delta(task, addend), addend.scale) for addend in recipe.addends]
        return add(raw, dtype, terms, output_dtype, out)

    def _delta(self, task: _Chunk, addend: Addend) -> npt.NDArray[Any]:
        """One delta's elements of a chunk; *keep* where it has none."""
        entry, reader = addend.entry, self._readers[addend.index]
        kind = np.uint64 if entry.wide else np.uint32
        chunk = scratch(f"delta{addend.index}.{kind().itemsize}", task.count, kind)
        if addend.rows is None:
            reader.delta(entry, task.start, chunk)
            return chunk
        chunk[:] = KEEP_WIDE if entry.wide else KEEP
        width = _row_elements(task.recipe)
        for at, source, count in runs(addend.rows.delta, width, task.start, task.count):
            reader.delta(entry, source, chunk[at : at + count])
        return chunk

    def _place_values(self, task: _Chunk, addend: Addend, out: Bytes) -> None:
        """Overwrite the rows of a chunk that are post's own."""
        assert addend.rows is not None
        post = addend.entry.post
        assert post is not None
        size, width = DTYPE_BYTES[task.recipe.output.dtype], _row_elements(task.recipe)
        for at, source, count in runs(addend.rows.values, width, task.start, task.count):
            raw = scratch("post", count * DTYPE_BYTES[post.dtype], np.uint8)
            self._readers[addend.index].values(addend.entry, source, raw)
            values = self._converted(raw, post.dtype, task.recipe.output.dtype, "post row")
            out[at * size : (at + count) * size] = values

    def _converted(self, raw: Bytes, dtype: str, output_dtype: str, role: str = "out") -> Bytes:
        """Values in the output's dtype, rounded once if it is another."""
        if dtype == output_dtype or dtype not in DELTA_DTYPES:
            return raw
        out = scratch(role, raw.size // DTYPE_BYTES[dtype] * DTYPE_BYTES[output_dtype], np.uint8)
        overflowed = add(raw, dtype, [], output_dtype, out)
        if overflowed:
            with self._lock:
                self._tally.overflowed += overflowed
        return out

    def _hash(self, task: _Chunk, data: Bytes) -> None:
        assert task.turns is not None
        name = task.recipe.output.name
        task.turns.wait(task.number)
        hasher = self._hashers[name]
        hasher.update(data.data)
        if task.last:
            self._tally.digests[name] = hasher.hexdigest()
            del self._hashers[name]
        task.turns.done()


def _spots(task: _Chunk) -> Iterable[tuple[int, int, int]]:
    """Where a chunk's elements are in the output: first of the chunk, first there, how many."""
    order = task.recipe.order
    if order is None:
        return [(0, task.start, task.count)]
    return runs(order, _row_elements(task.recipe), task.start, task.count)


def _is_of_dtype(recipe: Recipe) -> bool:
    """Whether a restore patch, which is of post's bits, fits the output: a sum in post's dtype."""
    post = recipe.addends[0].entry.post
    return post is not None and post.dtype == recipe.output.dtype


def _row_elements(recipe: Recipe) -> int:
    return math.prod(recipe.output.shape[1:])
