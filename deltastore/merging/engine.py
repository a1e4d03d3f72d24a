"""The heart of ``apply``: a plan in, an output out, chunk by chunk and in parallel."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deltastore.artifact.reader import ArtifactReader
from deltastore.checkpoint import TensorInfo, Weights
from deltastore.delta import add
from deltastore.digest import TensorHasher
from deltastore.execution.progress import Progress
from deltastore.execution.thread_pool import ThreadPool, Turns
from deltastore.kernels.buffers import scratch
from deltastore.kernels.palette import Tokens
from deltastore.manifest import Descriptor
from deltastore.manifest.format import DELTA_DTYPES, DTYPE_BYTES, KEEP, KEEP_WIDE
from deltastore.merging.method import Chunk
from deltastore.merging.plan import MergePlan
from deltastore.merging.recipes import Addend, Recipe
from deltastore.tokenizer.rows import runs

Bytes = npt.NDArray[np.uint8]


class Target(Protocol):
    """Where the output goes: files, a model in memory, another machine."""

    def write(self, name: str, start_byte: int, data: Bytes) -> None:
        """Take a piece of a tensor; thread-safe, pieces come in any order."""


@dataclass(slots=True)
class Tally:
    """What came out: elements that overflowed, elements patched, BLAKE3 hex by output tensor."""

    overflowed: int = 0
    patched: int = 0
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Task:
    """A chunk to be computed: ``count`` elements from ``start`` on.

    ``number`` counts the tensor's chunks in the order of ``turns``, if its digest is taken.
    """

    recipe: Recipe
    start: int
    count: int
    values: bool
    turns: Turns | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class _Check:
    """A part that is to be compared with its digest."""

    reader: ArtifactReader
    part: Descriptor


class Engine:
    """Computes the chunks of a plan.

    Args:
        plan: What is to be done.
        base: The new base.
        readers: The plan's deltas, in its order.
    """

    def __init__(self, plan: MergePlan, base: Weights, readers: Sequence[ArtifactReader]) -> None:
        self._plan = plan
        self._base = base
        self._readers = readers
        self._patches = plan.patches or frozenset()
        self._tally = Tally()
        self._hashers: dict[str, Any] = {}
        self._lock = threading.Lock()

    def run(
        self,
        target: Target,
        chunks: Sequence[range] | None = None,
        *,
        jobs: int,
        progress: Progress,
        check: bool = True,
    ) -> Tally:
        """Write chunks of the output, and compare the parts that they are made of with digests.

        Ranges that together are the whole plan, in whatever processes they run, write every chunk
        and check every part. ``plan.divided`` gives such ranges.

        Args:
            target: Where they go.
            chunks: Which, as the plan numbers them; all if None.
            jobs: Threads.
            progress: Is told the bytes that were written.
            check: Whether parts are compared; not needed where that was done already.

        Raises:
            IntegrityError: A blob is missing or damaged.
            FormatError: A part breaks the specification.
            CheckpointError: The new base cannot be read, or the output not written.
            ValueError: A range cuts a tensor of which the digest is to be taken.
        """
        pool = ThreadPool(jobs)
        passing = (
            check and chunks is None and all(reader.take_digests() for reader in self._readers)
        )

        def work(_number: int, task: _Task | _Check) -> None:
            if isinstance(task, _Check):
                task.reader.check_part(task.part)
                return
            data = self._compute(task)
            name = task.recipe.output.name
            size = DTYPE_BYTES[task.recipe.output.dtype]
            for at, start, count in _spots(task):
                target.write(name, start * size, data[at * size : (at + count) * size])
            if task.turns is not None:
                self._hash(task, data)
            progress.advance(data.size)

        pool.run(self._tasks(pool, chunks, check=check, passing=passing), work)
        return self._tally

    def _tasks(
        self, pool: ThreadPool, chunks: Sequence[range] | None, *, check: bool, passing: bool
    ) -> Iterator[_Task | _Check]:
        """The chunks in file order, and one check with each tensor as long as there are any.

        A check reads what the chunks around it read; where digests are taken in passing, what no
        chunk has read, so that it comes last.
        """
        checks = deque(_checks(self._readers) if check else ())
        number = 0
        for shard in self._plan.shards:
            for tensor in shard.tensors:
                recipe = self._plan.tensors[tensor.name]
                due = checks.popleft() if checks and not passing else None
                if chunks is None:
                    pieces: list[tuple[int, int | None]] = [(0, None)]
                else:
                    end = number + self._plan.chunks_of(recipe)
                    pieces = list(_overlaps(chunks, number, end))
                    if not any(first == 0 for first, _ in pieces):
                        due = None
                    number = end
                if due is not None:
                    yield due
                for first, last in pieces:
                    yield from self._chunks(pool, recipe, first, last)
        if chunks is None or any(piece and piece.stop == number for piece in chunks):
            yield from checks

    def _chunks(
        self, pool: ThreadPool, recipe: Recipe, first: int, last: int | None
    ) -> Iterator[_Task]:
        """Chunks of one tensor by their numbers in it; to its end if ``last`` is None."""
        spans = islice(_spans(recipe, self._plan.chunk), first, last)
        if self._plan.patches is None:
            for start, count, values in spans:
                yield _Task(recipe, start, count, values)
            return
        if first or last not in (None, self._plan.chunks_of(recipe)):
            raise ValueError(f"a range cuts {recipe.output.name}, whose digest is to be taken")
        turns = Turns(pool)
        self._hashers[recipe.output.name] = TensorHasher()
        if not recipe.output.elements:
            self._tally.digests[recipe.output.name] = TensorHasher().hexdigest()
        for number, (start, count, values) in enumerate(spans):
            yield _Task(recipe, start, count, values, turns, number)

    def chunk(self, recipe: Recipe, element: int) -> tuple[int, Bytes]:
        """The chunk that an element is in: its first element, and its bytes.

        They are in a buffer of this thread, valid until its next chunk.

        Raises:
            IntegrityError: A blob is missing or damaged.
            FormatError: A part breaks the specification.
            CheckpointError: The new base cannot be read.
        """
        common, step = recipe.common_elements, self._plan.chunk
        values = element >= common
        begin, end = (common, recipe.output.elements) if values else (0, common)
        start = begin + (element - begin) // step * step
        return start, self._compute(_Task(recipe, start, min(step, end - start), values))

    def _compute(self, task: _Task) -> Bytes:
        return self._values(task) if task.values else self._sum(task)

    def _values(self, task: _Task) -> Bytes:
        recipe = task.recipe
        assert recipe.values is not None
        index, entry = recipe.values
        assert entry.post is not None
        raw = scratch("post", task.count * DTYPE_BYTES[entry.post.dtype], np.uint8)
        self._readers[index].values(entry, task.start - recipe.common_elements, raw)
        return self._converted(raw, entry.post.dtype, recipe.output.dtype)

    def _sum(self, task: _Task) -> Bytes:
        recipe = task.recipe
        info = recipe.base
        assert info is not None
        raw = self._base_values(task, info)
        if not recipe.addends:
            return self._converted(raw, info.dtype, recipe.output.dtype)
        out = scratch("out", task.count * DTYPE_BYTES[recipe.output.dtype], np.uint8)
        overflowed = self._plan.method.combine(
            Chunk(
                recipe,
                task.start,
                raw,
                out,
                self._plan.prepared.get(recipe.output.name, ()),
                partial(self._delta, task),
                partial(self._tokens, task),
            )
        )
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

    def _base_values(self, task: _Task, info: TensorInfo) -> Bytes:
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

    def _tokens(self, task: _Task, addend: Addend) -> Tokens | None:
        """One delta's elements of a chunk as palette tokens, where they are one frame of these."""
        if task.recipe.order is not None:
            return None
        return self._readers[addend.index].tokens(addend.entry, task.start, task.count)

    def _delta(self, task: _Task, addend: Addend) -> npt.NDArray[Any]:
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

    def _place_values(self, task: _Task, addend: Addend, out: Bytes) -> None:
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

    def _hash(self, task: _Task, data: Bytes) -> None:
        assert task.turns is not None
        name = task.recipe.output.name
        task.turns.wait(task.number)
        hasher = self._hashers[name]
        hasher.update(data.data)
        if task.start + task.count == task.recipe.output.elements:
            self._tally.digests[name] = hasher.hexdigest()
            del self._hashers[name]
        task.turns.done()


def _checks(readers: Sequence[ArtifactReader]) -> list[_Check]:
    """The parts of all deltas, each once; what else is read is checked as it is read."""
    found: dict[str, _Check] = {}
    for reader in readers:
        for part in reader.parts:
            found.setdefault(part.digest, _Check(reader, part))
    return list(found.values())


def _overlaps(chunks: Sequence[range], first: int, end: int) -> Iterator[tuple[int, int]]:
    """What ranges have of a tensor's chunks ``first .. end``, by their numbers in the tensor."""
    for piece in chunks:
        low, high = max(piece.start, first), min(piece.stop, end)
        if low < high:
            yield low - first, high - first


def _spans(recipe: Recipe, step: int) -> Iterator[tuple[int, int, bool]]:
    """The chunks of an output tensor: first element, elements, whether they are values.

    Chunks begin at 0, and again where the values begin, as frames do.
    """
    common, total = recipe.common_elements, recipe.output.elements
    for begin, end, values in ((0, common, False), (common, total, True)):
        for start in range(begin, end, step):
            yield start, min(step, end - start), values


def _spots(task: _Task) -> Iterable[tuple[int, int, int]]:
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
